"""The `gantx` command, also as `python -m gantx`."""

from gantx.runtime.signals import leave_at_once


def main() -> None:
    """Run the command line; a signal during the imports ends the program without a traceback."""
    leave_at_once()
    from gantx.cli import main as program

    program()


# Spawned workers and torchrun import this file again; only the first one may act.
if __name__ == "__main__":
    main()
