"""Signals that ask to stop: training stops after the current iteration, everything else at once.

Ctrl-C and SIGTERM are meant, and what terminals and batch systems send: SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU. A
signal that the platform lacks is left out. SIGHUP stays ignored where it is (`nohup`).
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

from gantx.errors import GantxError, Interrupted, Stopped

STOPPING = tuple(
    int(getattr(signal, name))
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)

_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
_NOTHING_LOST = "stopped before an iteration was finished; nothing is lost"
_PAUSE = 0.05  # seconds until a signal that arrived during an import is looked at again

_program = False  # whether this process is the command line and may be ended


class StopNow(BaseException):
    """Ends the work at once. Not an Exception, so that no library takes it for a failure of its own."""


def leave_at_once() -> None:
    """Let every stopping signal end the process from now on, while there is nothing to clean up."""
    global _program
    _program = True

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        _leave(number, "stopped before anything was done")

    for number in (signal.SIGINT, *STOPPING):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave)


def _leave(number: int, message: str) -> NoReturn:
    with contextlib.suppress(OSError):
        show_cursor = "\x1b[?25h" if os.isatty(2) else ""
        os.write(2, f"{show_cursor}{message}\n".encode())
    os._exit(Interrupted.exit_code if number == signal.SIGINT else Stopped.exit_code)


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Send this process SIGTERM if the block takes longer than this; None for no limit."""
    if seconds is None:
        yield
        return
    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), _terminate)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _terminate() -> None:
    if hasattr(signal, "pthread_kill"):  # also wakes a main thread that waits for the system
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    else:
        _thread.interrupt_main(signal.SIGTERM)


class _Handlers:
    """Replaces the handlers by `_receive` inside a `with` block; has no effect outside the main thread."""

    numbers: tuple[int, ...] = ()
    keeps_ignored: tuple[int, ...] = (int(getattr(signal, "SIGHUP", -1)),)

    def __init__(self) -> None:
        self._old: dict[int, Any] = {}
        self._received: int | None = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        raise StopNow

    def __enter__(self) -> Any:
        for number in self.numbers:
            old = signal.getsignal(number)
            if old is None or (old is signal.SIG_IGN and number in self.keeps_ignored):
                continue
            try:
                signal.signal(number, self._receive)
            except ValueError:  # not the main thread
                break
            self._old[number] = old
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


class StopAtOnce(_Handlers):
    """Ends a block at once, so that its unfinished files are removed: Ctrl-C, or else Stopped.

    What arrives during an import waits for its end: an exception there could be lost. Whatever exception
    leaves the block after a signal counts as its consequence.

    Args:
        message: of Stopped.
        leaves: during an import, end the program without cleaning up: a kill would do no harm.
    """

    numbers = (signal.SIGINT, *STOPPING)
    keeps_ignored = (signal.SIGINT, *_Handlers.keeps_ignored)

    def __init__(self, message: str, *, leaves: bool = False) -> None:
        super().__init__()
        self._message = message
        self._leaves = leaves

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if _importing(frame):
            if self._leaves and _program:
                _leave(number, self._message)
            _postpone(number)
            return
        self._received = number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise StopNow

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the handlers and name the reason.

        Raises:
            Stopped: a signal other than Ctrl-C arrived.
            KeyboardInterrupt: Ctrl-C.
        """
        super().__exit__(kind, value, trace)
        if kind is None or self._received is None or issubclass(kind, Stopped | KeyboardInterrupt):
            return
        if self._received == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise Stopped(self._message) from None


class StopAfterIteration(_Handlers):
    """Turns signals into a request to stop, which takes effect once the state is saved.

    While there is nothing to save, as when the first iteration compiles, the block ends at once. A second
    Ctrl-C always does that.

    Args:
        log: receives a line that confirms the request.
        folder: the run, named in the message on how to resume.
        nothing_to_save: whether no iteration has been finished yet.
    """

    numbers = (signal.SIGINT, *STOPPING)

    def __init__(
        self, log: Callable[[str], None], folder: Path, nothing_to_save: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__()
        self._log = log
        self._folder = folder
        self._nothing_to_save = nothing_to_save
        self._at_once = False

    def reason(self) -> GantxError | None:
        """The exception to raise once the state is saved, or None."""
        if self._received is None:
            return None
        return self._stopped("stopped; the state is saved")

    def _stopped(self, what: str) -> Stopped:
        error = Interrupted if self._received == signal.SIGINT else Stopped
        return error(f"{what}, go on with: gantx train --resume {self._folder}")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._nothing_to_save():
            if _importing(frame):
                if _program:
                    _leave(number, str(self._stopped(_NOTHING_LOST)))
                _postpone(number)
                return
            self._received, self._at_once = number, True
            raise StopNow
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number
        self._log("stopping: this iteration is finished and saved first (Ctrl-C again stops at once)")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the handlers.

        Raises:
            Stopped: a signal ended the block while there was nothing to save.
        """
        super().__exit__(kind, value, trace)
        if kind is not None and self._at_once and not issubclass(kind, Stopped | KeyboardInterrupt):
            raise self._stopped(_NOTHING_LOST) from None


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != _IMPORT_SYSTEM:
        frame = frame.f_back
    return frame is not None


def _postpone(number: int) -> None:
    """Let the signal come again a little later."""
    timer = threading.Timer(_PAUSE, _thread.interrupt_main, (number,))
    timer.daemon = True
    timer.start()
