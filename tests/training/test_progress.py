"""What a person sees: plain lines in pipes, a live line in terminals."""

import io
import re

import pytest
from rich.console import Console

from gantx.runtime.activity import duration
from gantx.training import progress
from gantx.training.progress import ProgressDisplay

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


@pytest.fixture
def clock(monkeypatch):
    """Sets the clock of the display."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def set_clock(seconds):
        now[0] = seconds

    return set_clock


def test_a_pipe_gets_plain_lines_now_and_then(clock):
    out = io.StringIO()
    shown = ProgressDisplay(10_000, Console(file=out, width=40))
    lines = [shown.advance(0)]
    clock(10.0)
    lines.append(shown.advance(1000))  # ten seconds later, some of which went to compiling: silent
    shown.figure(LINE)
    clock(40.0)
    lines.append(shown.advance(4000))  # forty seconds after the start: a line
    clock(50.0)
    lines.append(shown.advance(5000))  # ten seconds later: silent
    clock(60.0)
    lines.append(shown.advance(10_000))  # the end always speaks
    shown.close()
    first, last = out.getvalue().splitlines()
    assert first == "kimg 4 of 10 eta 1m00 img/s 100 loss_d 0.61 loss_g 0.93 mem 1.2G gnorm 3.1/2"
    assert last.startswith("kimg 10 of 10 eta 0s")
    assert lines == [None, None, first, None, last]  # for the log of the run
    assert "\x1b" not in out.getvalue()


def test_the_first_line_comes_soon_and_later_ones_follow_the_load(clock):
    shown = ProgressDisplay(100_000, Console(file=io.StringIO(), width=80))
    shown.advance(0)
    clock(20.0)
    shown.advance(16)  # after compilation
    clock(24.0)
    assert shown.advance(416) is None
    clock(25.0)
    assert shown.advance(516).startswith("kimg 0.516 of 100 eta 16m35 img/s 100")
    for second in range(26, 126):  # half as fast from now on
        clock(float(second))
        shown.advance(516 + 50 * (second - 25))
    assert " img/s 50" in " ".join(shown._parts())


def live(width, total=20_000_000):
    out = io.StringIO()
    return ProgressDisplay(total, Console(file=out, force_terminal=True, width=width)), out


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_a_line_that_fits(monkeypatch, clock, width):
    monkeypatch.delenv("CI", raising=False)
    shown, _ = live(width)
    shown.advance(0)
    clock(10.0)
    shown.advance(64)
    shown.figure(LINE)
    clock(10_000.0)
    shown.advance(12_345_664)
    line = shown._line().plain
    shown.close()
    assert len(line) <= width
    wanted = r"kimg 12345.7 of 20000 (━+ )?62% eta 1h43 img/s 1,236 loss_d 0.61 loss_g 0.93 mem 1.2G"
    found = re.match(wanted, line)
    assert found
    assert (found[1] is not None) == (width == 120)
    assert line.endswith("gnorm 3.1/2") == (width == 120)


def test_a_narrow_terminal_keeps_what_comes_first(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    shown, _ = live(44, 2000)
    shown.figure(LINE)
    line = shown._line().plain
    shown.close()
    assert line == "kimg 0 of 2 0% eta ? img/s 0 loss_d 0.61"


def test_a_live_line_is_gone_at_the_end(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    shown, out = live(80, 2000)
    shown.advance(0)
    shown.figure(LINE)
    shown.log("attention window closed")
    shown.advance(1000)
    shown.advance(2000)
    shown.close()
    written = out.getvalue()
    assert "attention window closed\n" in written
    assert "kimg 2 of 2" in written
    assert not re.sub(r"\x1b\[[\d?]*[A-Za-z]", "", written.rpartition("\x1b[2K")[2]).strip()


def test_the_live_line_says_what_interrupts_training(monkeypatch, clock):
    monkeypatch.delenv("CI", raising=False)
    shown, _ = live(80, 2000)
    shown.advance(0)
    with shown.working("compiling the loss of discriminator"):
        clock(125.0)
        during = shown._line().plain
    after = shown._line().plain
    shown.show("measuring images", 64, 2000)
    scoring = shown._line().plain
    shown.show("measuring images", 2000, 2000)
    scored = shown._line().plain
    shown.close()
    assert during == "kimg 0 of 2 0% eta ? compiling the loss of discriminator (2m05)"
    assert scoring == "kimg 0 of 2 0% eta ? measuring images: 64 of 2,000 (0s)"
    assert after == scored == "kimg 0 of 2 0% eta ? img/s 0"


def test_a_ci_log_stays_plain_even_in_a_terminal(monkeypatch):
    monkeypatch.setenv("CI", "true")
    out = io.StringIO()
    shown = ProgressDisplay(1000, Console(file=out, force_terminal=True, highlight=False, width=120))
    shown.advance(0)
    shown.advance(1000)
    shown.close()
    assert out.getvalue().splitlines()[-1].startswith("kimg 1 of 1 ")
