"""Signals: every stopping signal asks for an end, at once or after the iteration."""

import contextlib
import importlib
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from gantx.errors import Interrupted, Stopped
from gantx.runtime import signals

NAMES = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
PRESENT = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
RUN = Path("runs/1")


def test_every_stopping_signal_of_this_platform_is_handled():
    assert list(signals.STOPPING) == PRESENT


@pytest.mark.parametrize("number", PRESENT)
def test_a_signal_stops_after_the_iteration(number):
    said = []
    before = signal.getsignal(number)
    with signals.StopAfterIteration(said.append, RUN) as stop:
        signal.raise_signal(number)
        assert type(stop.reason()) is Stopped
        assert "--resume runs/1" in str(stop.reason())
        signal.raise_signal(number)  # impatience changes nothing
    assert len(said) == 2
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", PRESENT)
def test_with_nothing_to_save_a_signal_stops_at_once(number):
    with (
        pytest.raises(Stopped, match="nothing is lost, go on with: gantx train --resume") as stopped,
        signals.StopAfterIteration(print, RUN, lambda: True),
    ):
        signal.raise_signal(number)
    assert stopped.value.exit_code == 75


def test_ctrl_c_with_nothing_to_save():
    with pytest.raises(Interrupted) as stopped, signals.StopAfterIteration(print, RUN, lambda: True):
        signal.raise_signal(signal.SIGINT)
    assert stopped.value.exit_code == 130


@pytest.mark.parametrize("number", PRESENT)
def test_at_once_passes_those_who_catch_exceptions(number):
    with pytest.raises(Stopped, match="over"), signals.StopAtOnce("over"), contextlib.suppress(Exception):
        signal.raise_signal(number)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_what_a_signal_breaks_counts_as_the_stop(number, error):
    def compiles():
        try:
            signal.raise_signal(number)
        except BaseException:
            raise RuntimeError("the compiler was killed") from None

    with pytest.raises(error), signals.StopAtOnce("over"):
        compiles()


def test_a_signal_during_an_import_waits_for_its_end(tmp_path, monkeypatch):
    (tmp_path / "slow_to_import.py").write_text(
        "import signal\nsignal.raise_signal(signal.SIGTERM)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def works():
        importlib.import_module("slow_to_import")
        until = time.monotonic() + 60
        while time.monotonic() < until:
            time.sleep(0.001)

    with pytest.raises(Stopped), signals.StopAtOnce("over"):
        works()
    assert sys.modules["slow_to_import"].whole


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")
def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.StopAfterIteration(print, RUN) as stop, signals.StopAtOnce("over"):
            signal.raise_signal(signal.SIGHUP)
        assert stop.reason() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_time_limit_is_a_sigterm():
    over = threading.Event()
    with signals.StopAfterIteration(lambda text: over.set(), RUN) as stop, signals.time_limit(0.001):
        assert over.wait(60)
    assert stop.reason().exit_code == 75
    with signals.StopAfterIteration(print, RUN) as stop:
        with signals.time_limit(3600), signals.time_limit(None):
            pass
        assert stop.reason() is None


def test_no_effect_outside_the_main_thread():
    done = []

    def elsewhere():
        with signals.StopAtOnce("over"):
            done.append(True)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert done
