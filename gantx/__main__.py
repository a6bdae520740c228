"""The `gantx` command, also as `python -m gantx`."""

import os
import signal


def main() -> None:
    """Run the command line; a signal during the imports ends the program without a traceback."""
    # Before anything is imported that takes time; gantx.runtime.signals does more, but is slower to import.
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    from gantx.runtime.signals import leave_at_once

    leave_at_once()
    from gantx.cli import main as program

    program()


def _leave(number: int, frame: object) -> None:
    os.write(2, b"stopped before anything was done\n")
    os._exit(130 if number == signal.SIGINT else 75)


# Spawned workers and torchrun import this file again; only the first one may act.
if __name__ == "__main__":
    main()
