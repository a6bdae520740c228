"""Text from files, escaped for where it is shown: a terminal, Markdown."""

from __future__ import annotations

import re

# Control characters, what turns the direction of text around, and lone surrogates (names that are not UTF-8).
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_LINES = re.compile(_UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))
# Characters with a meaning in Markdown; an underscore inside a word has none.
_MARKDOWN = re.compile(r"[\\`*<>&|~]|\](?=\()|(?<![^\W_])_|_(?![^\W_])")


def printable(text: str, *, lines: bool = False) -> str:
    r"""Text that a terminal shows and does not obey: control characters become `\x1b` and the like.

    Args:
        text: any text, for example the name of a file or a value in it.
        lines: line breaks and tabs may stay.
    """
    return (_UNSAFE_LINES if lines else _UNSAFE).sub(_named, text)


def _named(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def shortened(value: object, length: int = 80) -> str:
    """The `repr` of a value from a file for a message, cut in the middle when it is long."""
    if isinstance(value, int) and value.bit_length() > 512:
        return f"a number of {value.bit_length():,} bits"
    text = repr(value[: length + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= length + 2 else f"{text[: length - 10]}…{text[-8:]}"


def markdown(text: str) -> str:
    """Text on one line, escaped for Markdown inside a table or outside; it contains no HTML then."""
    return printable(_MARKDOWN.sub(lambda found: f"\\{found[0]}", " ".join(text.split())))


def markdown_code(text: str) -> str:
    """Text on one line as a code span, whatever backticks it contains."""
    shown = printable(" ".join(text.split())) or " "
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    return f"{fence} {shown} {fence}" if "`" in shown else f"{fence}{shown}{fence}"
