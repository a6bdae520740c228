"""`gantx info`: configuration, progress and origin of a checkpoint."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from gantx.cli.options import AsJson, Best, Checkpoint, require_checkpoint
from gantx.cli.status import StatusDisplay, load_torch
from gantx.errors import UsageError
from gantx.io.escaping import printable


def info(
    checkpoint: Checkpoint,
    config: Annotated[
        bool, typer.Option("--config", help="Print the whole configuration as YAML instead.")
    ] = False,
    best: Best = None,
    as_json: AsJson = False,
) -> None:
    """Show what a checkpoint is, how far it was trained and on what, and verify that it is undamaged.

    Examples:

      gantx info demo

      gantx info demo --config > mine.yaml
    """
    if config and as_json:
        raise UsageError("--json has the configuration already: omit --config")
    from gantx import checkpoint as checkpoints
    from gantx.data.crop import size_of

    header = checkpoints.read_header(require_checkpoint(checkpoint, best))
    if config:
        print(header.config.to_yaml(), end="")
        return
    load_torch()
    with StatusDisplay() as status, status.working(f"verifying {header.path.name}", noted=False):
        checkpoints.verify(header)
    if as_json:
        document = {
            "schema": "gantx.info/1",
            "path": str(header.path),
            "config": header.config.model_dump(mode="json"),
            "progress": header.progress,
            "data": header.data,
            "versions": header.versions,
            "digests": header.digests,
            "sealed": header.sealed,
        }
        print(json.dumps(document))
        return
    side = header.config.data.resolution
    width, height = size_of(side, header.config.data.ratio)
    rows = {
        "file": str(header.path),
        "preset": header.config.name,
        "generator": header.config.generator.family,
        "discriminator": header.config.discriminator.family,
        "resolution": f"{width} px" + (f", {height} px high" if height != width else ""),
        **_CHANNELS.get(header.config.data.channels, {}),
        "progress": f"{header.images / 1000:g} of {header.config.training.kimg:g} kimg",
        "data": _origin(header.data),
        "versions": ", ".join(f"{name} {version}" for name, version in header.versions.items()),
        "parts": ", ".join(header.digests),
        "digest": header.digests.get("generator_ema", "-"),
        "integrity": "header and weights match their digests" if header.sealed else _UNSEALED,
    }
    for label, value in rows.items():
        print(printable(f"{label:<14}{value}"))
    print("\nthe whole configuration: --config")


_CHANNELS = {1: {"channels": "1 (grey)"}, 4: {"channels": "4 (RGB and alpha)"}}
_UNSEALED = "weights match their digests; no digest of the header (written before gantx kept one)"


def _origin(data: dict[str, Any]) -> str:
    """The training images, or the official file that was imported."""
    if (source := data.get("imported_from")) is not None:
        return f"imported from {source.get('file')} (SHA-256 {str(source.get('sha256'))[:12]})"
    return f"{data.get('name')} ({data.get('images')} images)"
