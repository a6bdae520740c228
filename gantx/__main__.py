"""`python -m gantx`: the same program as the installed `gantx` command."""

from gantx.cli import main

# Spawned workers and torchrun import this file again; only the first one may act.
if __name__ == "__main__":
    main()
