"""The folder for downloads, prepared images and reference statistics."""

from __future__ import annotations

import os
from pathlib import Path

from gantx.errors import MissingError


def cache_folder() -> Path:
    """The folder of the cache: $GANTX_CACHE, else `gantx` in the user's cache directory.

    Raises:
        MissingError: the user has no home folder, as in a container with a foreign user number.
    """
    chosen, base = os.environ.get("GANTX_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        if chosen:
            return Path(chosen).expanduser()
        return (Path(base) if base else Path.home() / ".cache") / "gantx"
    except RuntimeError:
        raise MissingError(
            "this user has no home folder for the cache of downloads and prepared images: set GANTX_CACHE to "
            "the full path of a folder that can be written"
        ) from None
