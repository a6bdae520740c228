"""What may differ when a run is resumed: always, or with `--allow-changes`, which `changes.jsonl` records."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gantx.config import presets
from gantx.config.schema import EvaluationConfig, RunConfig
from gantx.errors import UsageError
from gantx.io.atomic import replacing

FILE = "changes.jsonl"

# Always: the length, what is written and how often, where the images are.
CHANGEABLE = {
    "data.source",
    "data.resident",
    "training.kimg",
    "training.keep_checkpoints",
    "training.checkpoint_kimg",
    "training.sample_kimg",
    "training.report_kimg",
    "training.samples",
    "training.threads",
    "training.compile",
    "training.cuda_graphs",
    "training.evaluate_every",
    "training.diagnostics",
    "training.on_divergence",
    "training.max_rollbacks",
    *(f"evaluation.{field}" for field in EvaluationConfig.model_fields),
}

# What follows from `conditioning.classes` and the data, whose digest is compared.
_OF_THE_DATA = {"conditioning.names", "conditioning.counts", "generator.classes", "discriminator.classes"}

# With --allow-changes: how it is trained from here on. Networks, images, the batch (which counts the images)
# and the seed stay.
_ALLOWED = (
    "optimizer",
    "augment",
    "ema",
    "objective",
    "data.mirror",
    "training.generator_batch",
    "training.micro_batch",
    "training.penalty_micro_batch",
    "training.recompute",
    "training.precision",
    "training.deterministic",
    "training.attention_window",
)


def contradictions(trained: RunConfig, settings: RunConfig) -> list[str]:
    """The keys that a resumed run does not simply accept, and that differ."""
    return [key for key in presets.differences(trained, settings) if key not in CHANGEABLE | _OF_THE_DATA]


def is_allowed(key: str) -> bool:
    """Whether `--allow-changes` lets a key change."""
    return any(key == name or key.startswith(f"{name}.") for name in _ALLOWED)


def require_allowed(
    folder: Path, trained: RunConfig, settings: RunConfig, changed: Sequence[str], *, allow: bool
) -> None:
    """Check that a run may go on with changed values.

    Args:
        folder: the run.
        trained: its configuration at the checkpoint.
        settings: the configuration it goes on with.
        changed: keys that differ.
        allow: `--allow-changes` was given.

    Raises:
        UsageError: a key must not change, or not without `--allow-changes`.
    """
    values = presets.flat(settings)
    known = recorded(folder)
    changed = [key for key in changed if key not in known or known[key] != values.get(key)]
    fixed = [key for key in changed if not is_allowed(key)]
    if fixed:
        raise UsageError(
            f"{folder} was trained with other values of {', '.join(fixed)}, which cannot change within a "
            f"run: leave them out, or start a new run from its weights with --init {folder}"
        )
    if changed and not allow:
        raise UsageError(
            f"{folder} was trained with other values of {', '.join(changed)}: leave them out, or add "
            "--allow-changes to go on with the new ones"
        )


def recorded(folder: Path) -> dict[str, Any]:
    """The values of the keys that were changed in a run so far."""
    return {key: after for entry in entries(folder) for key, (_, after) in entry["changes"].items()}


def entries(folder: Path) -> list[dict[str, Any]]:
    """The lines of changes.jsonl; one that cannot be read counts as absent."""
    try:
        lines = (folder / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            entry = json.loads(line)
            if isinstance(entry["images"], int) and all(len(pair) == 2 for pair in entry["changes"].values()):
                found.append(entry)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return found


def record(folder: Path, images: int, trained: RunConfig, settings: RunConfig) -> str | None:
    """Add the changed values to changes.jsonl unless they are there; returns the line of log for them."""
    before, after = presets.flat(trained), presets.flat(settings)
    known = recorded(folder)
    changed = {
        key: [before.get(key), after.get(key)]
        for key in contradictions(trained, settings)
        if key not in known or known[key] != after.get(key)
    }
    if not changed:
        return None
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    write(folder / FILE, [*entries(folder), {"time": stamp, "images": images, "changes": changed}])
    values = ", ".join(f"{key} {_shown(old)} → {_shown(new)}" for key, (old, new) in changed.items())
    return f"changed from {images / 1000:g} kimg on: {values}"


def write(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write lines of changes.jsonl; MissingError when the file cannot be written."""
    with replacing(path) as beside:
        beside.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
