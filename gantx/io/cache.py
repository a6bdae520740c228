"""Where what is downloaded, prepared or computed once is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where prepared data and downloads live: $GANTX_CACHE, else the user's cache directory."""
    if chosen := os.environ.get("GANTX_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gantx"
