"""Writes docs/settings.md from the sections of a configuration: their fields, and what their docstrings say.

PYTHONPATH=.:tests python -m helpers.settings_reference > docs/settings.md
"""

import inspect
import json
import re
import types
import typing

from gantx.config.networks import DISCRIMINATORS, GENERATORS
from gantx.config.schema import RunConfig
from gantx.config.section import Section

HEAD = """\
# Settings

Every key of a configuration, with its values and its default. `gantx presets show NAME` prints what a
preset sets and where that comes from, `gantx train --preset NAME --print-config` all that a run would have.
On the command line a key is written with its section: `optimizer.generator.lr=0.0002`
([presets.md](presets.md#change-values)).

This page is made from the docstrings in `gantx/config/`, and a test compares the two.
"""


def described(section):
    """The sentence of a section's docstring, and what it says of each field."""
    text = inspect.getdoc(section) or ""
    summary, _, rest = text.partition("Attributes:\n")
    fields, name = {}, None
    for line in rest.splitlines():
        if match := re.match(r"^ {4}(\w+): (.*)$", line):
            name = match[1]
            fields[name] = match[2]
        elif line.startswith(" " * 8) and name:
            fields[name] += " " + line.strip()
        elif line.strip():
            name = None
    return " ".join(summary.split()), fields


def values(schema):
    """The values that a field takes, in words, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(values(each) for each in schema["anyOf"]))
    if "const" in schema or "enum" in schema:
        return ", ".join(
            f"`{json.dumps(each).strip(chr(34))}`" for each in schema.get("enum", [schema.get("const")])
        )
    if "$ref" in schema or "allOf" in schema or "oneOf" in schema:
        return "a section"
    kind = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`", "string": "text",
            "null": "`null`", "array": "list", "object": "mapping"}[schema["type"]]  # fmt: skip
    if kind == "list" and "items" in schema:
        return f"list: {values(schema['items'])}"
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    limits = [
        f"{words} {limit:,g}"
        for words, limit in (("from", low), ("above", above), ("to", high), ("below", below))
        if limit is not None and abs(limit) < 1e6
    ]
    return " ".join([kind, *limits])


def sections(section, key=""):
    """Every section below one, each with its dotted key; those of a family once for each family."""
    for name, field in section.model_fields.items():
        inner = f"{key}.{name}".lstrip(".")
        if inner in ("generator", "discriminator"):
            continue
        for option in _options(field.annotation):
            yield inner, option
            yield from sections(option, inner)


def _options(annotation):
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) in (
        typing.Union,
        typing.Annotated,
    ):
        return [each for part in typing.get_args(annotation) for each in _options(part)]
    return []


def table(section):
    """The fields of a section as a table; those that are sections themselves follow with their own."""
    _, told = described(section)
    schema = section.model_json_schema()["properties"]
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        if name == "family":
            continue
        default = (
            "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        )
        cells = name, values(schema[name]), default, told.get(name, "")
        lines.append("| `{}` | {} | {} | {} |".format(*(cell.replace("|", "\\|") for cell in cells)))
    return lines


def _default(value):
    if isinstance(value, Section):
        return "below"
    if isinstance(value, tuple):
        value = list(value)
    text = json.dumps(value, default=str) if not isinstance(value, str) else value
    return f"`{text}`" if text else ""


def reference():
    """The whole page."""
    lines = [HEAD, "## At the top", "", *table(RunConfig)]
    done = set()
    for key, section in sections(RunConfig):
        if section in done and key.count("."):
            lines += ["", f"## {key}", "", f"As {next(k for k, s in sections(RunConfig) if s is section)}."]
            continue
        done.add(section)
        lines += ["", f"## {key}", "", described(section)[0], "", *table(section)]
    for title, families in (("generator", GENERATORS), ("discriminator", DISCRIMINATORS)):
        for family, section in families.items():
            lines += ["", f"## {title}, family {family}", "", described(section)[0], "", *table(section)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
