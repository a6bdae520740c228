"""The folder for downloads, prepared images and reference statistics."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder of the cache: $GANTX_CACHE, else `gantx` in the user's cache directory."""
    if chosen := os.environ.get("GANTX_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gantx"
