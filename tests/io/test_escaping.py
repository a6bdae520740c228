"""Text from files, escaped for terminals and Markdown."""

import pytest

from gantx.io.escaping import markdown, markdown_code, printable, shortened

HOSTILE = "a\x1b[31mred\x07\n\u202egnp.<script>alert(1)</script> `x` [y](javascript:z)\udcff"


def test_a_terminal_gets_no_control_characters():
    shown = printable(HOSTILE)
    assert shown.startswith(r"a\x1b[31mred\x07\x0a\u202egnp")
    assert shown.encode("utf-8").isascii()
    assert printable("two\nlines\tand \x1b", lines=True) == "two\nlines\tand \\x1b"
    assert printable("Größe 9×7, 日本") == "Größe 9×7, 日本"


def test_markdown_contains_no_html_code_or_link():
    shown = markdown(HOSTILE)
    assert "\n" not in shown
    assert r"\<script\>" in shown
    assert r"\`x\`" in shown
    assert r"\](javascript" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("text", ["`", "``` `", "a\n\n# b", "plain", "", "\x1b"])
def test_a_code_span_has_more_backticks_around_it_than_in_it(text):
    shown = markdown_code(text)
    fence = shown[: len(shown) - len(shown.lstrip("`"))]
    assert shown.endswith(fence)
    assert fence not in shown[len(fence) : -len(fence)]
    assert "\n" not in shown


def test_values_in_messages_are_short():
    assert shortened("x" * 10_000).count("x") < 100
    assert shortened(10**5000) == "a number of 16,610 bits"
    assert shortened([1, 2]) == "[1, 2]"
