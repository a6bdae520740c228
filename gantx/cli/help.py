"""The texts of `--help`: complete at every width, without padding, with examples that can be pasted."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

from typer.core import TyperCommand, TyperGroup

_OPTION = re.compile(r"((?<= )--?[\w-]+) (?=[^-])")


class Group(TyperGroup):
    """A command with subcommands; each is listed with its whole first sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the subcommands, in their panels."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                panel = getattr(command, "rich_help_panel", None)
                first = inspect.cleandoc(command.help or "").split("\n\n")[0]
                panels.setdefault(panel if isinstance(panel, str) else "Commands", []).append(
                    (name, " ".join(first.split()))
                )
        for title, rows in panels.items():
            with formatter.section(title):
                formatter.write_dl(rows)


class Command(TyperCommand):
    """A command whose examples stay lines that can be pasted."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the docstring: paragraphs are wrapped, examples continued with a backslash."""
        text, _, examples = inspect.cleandoc(self.help or "").partition("\n\nExample")
        for paragraph in text.split("\n\n"):
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(paragraph)
        lines = [line.strip() for line in examples.splitlines()[1:] if line.strip()]
        if lines:
            with formatter.section("Examples" if len(lines) > 1 else "Example"):
                for line in lines:
                    for part in continued(line, formatter.width - formatter.current_indent):
                        formatter.write(" " * formatter.current_indent + part + "\n")


def continued(command: str, width: int) -> list[str]:
    """A shell command in lines of at most `width` columns, where its words allow that."""
    together = _OPTION.sub("\\1\0", command)  # an option and its value stay on one line
    parts = textwrap.wrap(
        together,
        max(width - 2, 20),
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    if len(command) <= width:
        return [command]
    return [part.replace("\0", " ") for part in (*(f"{part} \\" for part in parts[:-1]), parts[-1])]
