"""The user's home folder, `~` in paths."""

from __future__ import annotations

from pathlib import Path

from gantx.errors import UsageError


def expanded(path: str | Path) -> Path:
    """A path with its leading `~` replaced by the home folder; UsageError where that is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(f"{path}: that home folder is not known here, write the path in full") from None
