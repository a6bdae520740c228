"""Values on the command line: any text ends with a documented exit code; no control character is shown."""

from helpers.mutations import fuzzed, survives
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from gantx.cli import app
from gantx.evaluation import gates
from gantx.generation import interpolation
from gantx.generation.truncation import parse_truncation

TEXTS = (
    st.text(max_size=30)
    | st.text(st.sampled_from("0123456789-,:%=.eE+ "), max_size=30)
    | st.sampled_from(("", "-1", "1e999", "nan", "9" * 5000, "\x1b[31m", "~", "/dev/null/x", "a" * 300))
)


@fuzzed
@given(TEXTS, TEXTS)
def test_gates_and_truncations(text, number):
    survives(gates.parse_gate, text, "above")
    survives(gates.parse_gate, f"fid={text}", "below")
    survives(gates.parse_regression, f"fid={text}")
    survives(interpolation.parse_sweep, text, None)
    survives(lambda: parse_truncation(float(number) if _is_float(number) else 1.0, None))


def _is_float(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


# Each ends before any work is done, whatever the value is.
COMMANDS = (
    ("train", "--print-config", "--preset", ...),
    ("train", "--print-config", "--preset", "transgan-s", "--kimg", ...),
    ("train", "--print-config", "--preset", "transgan-s", "--data", ...),
    ("info", ...),
    ("sample", "absent", "-o", "absent/x.png", "--seeds", ...),
    ("sample", "absent", "-o", "absent/x.png", "--batch", ...),
    ("presets", "show", ...),
)


@fuzzed
@given(st.sampled_from(COMMANDS), TEXTS.filter(lambda text: not text.startswith("-") and "\0" not in text))
def test_values(command, text):
    given = [text if part is ... else part for part in command]
    result = CliRunner().invoke(app, given)
    assert result.exit_code in (0, 2, 3, 4), (result.output, result.exception)
    assert "\x1b" not in result.stderr
