"""Error messages for configurations that do not validate. Imports no torch."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from gantx.config.networks import DISCRIMINATORS, GENERATORS
from gantx.config.schema import RunConfig
from gantx.errors import closest
from gantx.io.escaping import shortened

_FAMILIES = {"generator": GENERATORS, "discriminator": DISCRIMINATORS}


def explain(problem: ValidationError) -> str:
    """The first error of a validation as one sentence: which key, what is wrong, what to write instead."""
    error = problem.errors(include_url=False)[0]
    where: list[str] = []
    section: type[BaseModel] = RunConfig
    for part in error["loc"]:
        if len(where) == 1 and part in _FAMILIES.get(where[0], {}):
            section = _FAMILIES[where[0]][str(part)]
            continue
        if isinstance(part, int) or part in section.model_fields or error["type"] == "extra_forbidden":
            where.append(str(part))
        section = _section_of(section, str(part)) or section
    key = ".".join(where)
    given = "null" if error["input"] is None else shortened(error["input"])
    if error["type"] == "extra_forbidden":
        elsewhere = " or ".join(_places_of(where[-1])[:3])
        similar = closest(where[-1], section.model_fields)
        if elsewhere and (len(where) == 1 or not similar):
            similar = f" (did you mean {elsewhere}?)"
        return f"unknown key '{key}'{similar}: " + (
            f"the keys of {'.'.join(where[:-1]) or 'the top level'} are {', '.join(section.model_fields)}"
        )
    if error["type"] == "union_tag_invalid":
        families = _FAMILIES[where[0]]
        found = error["ctx"]["tag"]
        return (
            f"{key}.family cannot be {_quoted(found)}{closest(found[:80], families)}: "
            f"use {', '.join(families)}"
        )
    if error["type"] == "missing":
        return f"{key} is missing: it has no default"
    if error["type"] == "model_type":
        keys = ", ".join(section.model_fields)
        return f"{key} cannot be {given}: it is a section with the keys {keys}"
    if error["type"] == "literal_error":
        expected = str(error["ctx"]["expected"])
        known = [word.strip(" '") for word in expected.replace(" or ", ", ").split(",")]
        rest = "".join(
            ", on or off" if other["type"] == "bool_parsing" else f", or {_what_else(other)}"
            for other in _alternatives(problem)
        )
        return (
            f"{key} cannot be {_quoted(error['input'])}{closest(str(error['input'])[:80], known)}: "
            f"use {expected}{rest}"
        )
    if error["type"] == "string_pattern_mismatch":  # `name` alone has a pattern
        return (
            f"{key} cannot be {_quoted(error['input'])}: use at most 64 letters, digits, dots, hyphens and "
            "underscores, and begin with a letter or digit"
        )
    reason = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{key}: {reason}" if key else reason
    if error["type"] == "tuple_type":
        one = str(error["input"])
        example = f", such as [{one}]" if isinstance(error["input"], str | int) and len(one) < 40 else ""
        return f"{key} cannot be {given}: it is a list{example}"
    wanted = _range(section, where[-1:]) if error["type"] in _OUTSIDE else None
    return f"{key} cannot be {given}: {wanted or _lower(reason)}"


def _places_of(name: str, section: type[BaseModel] = RunConfig, above: str = "") -> list[str]:
    """The dotted keys of a configuration that end with a name, in their order."""
    found = []
    for key in section.model_fields:
        if key == name:
            found.append(f"{above}{key}")
        for inner in (_section_of(section, key), *_FAMILIES.get(f"{above}{key}", {}).values()):
            if inner is not None:
                found += _places_of(name, inner, f"{above}{key}.")
    return list(dict.fromkeys(found))


def _alternatives(problem: ValidationError) -> list[Any]:
    """The errors of the other members of a union, such as `auto or a number`, for the key of the first."""
    first, *others = problem.errors(include_url=False)
    return [other for other in others if other["loc"][:-1] == first["loc"][:-1] and other is not first]


_TAKES = {
    "greater_than_equal": "{ge} or more",
    "greater_than": "more than {gt}",
    "less_than_equal": "{le} or less",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
}


def _what_else(error: Any) -> str:
    """What another member of a union takes, from its error."""
    if (words := _TAKES.get(error["type"])) is None:
        return f"a value for which {_lower(error['msg'])}"
    return words.format(**error.get("ctx", {}))


_OUTSIDE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


def _range(section: type[BaseModel], key: list[str]) -> str | None:
    """The numbers that a field takes, as "use 1 to 4096"; None where it is not limited on both sides."""
    low = high = None
    waiting: list[Any] = [section.model_fields[name] for name in key if name in section.model_fields]
    while waiting:
        part = waiting.pop()
        for attribute in ("metadata", "__metadata__", "__args__"):
            waiting += getattr(part, attribute, ())
        if isinstance(part, FieldInfo):
            waiting.append(part.annotation)
        low = next((getattr(part, name) for name in ("ge", "gt") if hasattr(part, name)), low)
        high = next((getattr(part, name) for name in ("le", "lt") if hasattr(part, name)), high)
    return None if low is None or high is None else f"use {_number(low)} to {_number(high)}"


def _number(limit: float) -> str:
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


def _quoted(value: object) -> str:
    """A value from a file or the command line between single quotes, not too long."""
    text = str(value)
    return f"'{text if len(text) <= 80 else text[:70] + '…' + text[-8:]}'"


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _section_of(section: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The Section class behind a field, looking through `X | None`."""
    if key not in section.model_fields:
        return None
    annotation = section.model_fields[key].annotation
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
