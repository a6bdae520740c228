"""What a person sees: plain lines in pipes, a live line in terminals."""

import io

import pytest
from rich.console import Console

from gantx.training import progress
from gantx.training.progress import ProgressDisplay, duration

LINE = {
    "discriminator/loss": 0.61,
    "discriminator/gradient_norm": 3.1,
    "generator/loss": 0.93,
    "generator/gradient_norm": 2.0,
    "memory_gb": 1.25,
}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (45.4, "45s"), (725, "12m05"), (3720, "1h02"), (86400 * 3 + 4 * 3600, "3d04h"), (-3, "0s")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_pipe_gets_plain_lines_now_and_then(monkeypatch):
    clock = iter([0.0, 0.0, 10.0, 40.0, 50.0, 60.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    shown = ProgressDisplay(10_000, Console(file=out, width=200))
    shown.advance(0)
    shown.advance(1000)  # ten seconds later, some of which went to compiling: silent
    shown.figure(LINE)
    shown.advance(4000)  # forty seconds after the start: a line
    shown.advance(5000)  # ten seconds later: silent
    shown.advance(10_000)  # the end always speaks
    shown.close()
    first, last = out.getvalue().splitlines()
    assert first == "kimg 4/10 eta 1m00 img/s 100 loss_d 0.61 loss_g 0.93 gnorm 3.1/2 mem 1.2G"
    assert last.startswith("kimg 10/10 eta 0s")
    assert "\x1b" not in out.getvalue()


def test_a_terminal_gets_a_live_line(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    out = io.StringIO()
    shown = ProgressDisplay(2000, Console(file=out, force_terminal=True, width=120))
    shown.advance(0)
    shown.figure(LINE)
    shown.log("attention window closed")
    shown.advance(1000)
    shown.close()
    assert "attention window closed" in out.getvalue()
    assert "kimg 1/2" in out.getvalue()
    assert "50%" in out.getvalue()


def test_a_ci_log_stays_plain_even_in_a_terminal(monkeypatch):
    monkeypatch.setenv("CI", "true")
    out = io.StringIO()
    shown = ProgressDisplay(1000, Console(file=out, force_terminal=True, highlight=False, width=120))
    shown.advance(0)
    shown.advance(1000)
    shown.close()
    assert out.getvalue().splitlines()[-1].startswith("kimg 1/1 ")
