"""One sentence for a value that an option does not take, in place of the parser's message."""

from __future__ import annotations

_LIMITS = {
    "greater_than_equal": "{ge:g} or more",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "{le:g} or less",
    "less_than": "less than {lt:g}",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
}


def value_refused(problem: Exception) -> str | None:
    """What is wrong with a number or a choice, and which would do.

    Args:
        problem: a usage error of typer, which validates values by pydantic.

    Returns:
        For example "-n 0: give 1 or more"; None where the error is about something else, or comes from a
        typer that validates by itself.
    """
    from pydantic import ValidationError

    cause = problem.__cause__
    names = getattr(getattr(problem, "param", None), "opts", None)
    if not isinstance(cause, ValidationError) or not names:
        return None
    error = cause.errors(include_url=False)[0]
    if error["type"] == "value_error":
        return f"{max(names, key=len)}: {error['msg'].removeprefix('Value error, ')}"
    if (limit := _LIMITS.get(error["type"])) is None:
        return None
    value = str(error["input"]) or "''"
    return f"{max(names, key=len)} {value}: give {limit.format(**error.get('ctx', {}))}"
