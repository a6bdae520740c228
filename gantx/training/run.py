"""A run from its first file to its last: assembles what the loop needs, from nothing or from a checkpoint."""

from __future__ import annotations

import gc
import json
import os
import platform
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from gantx import checkpoint, config, devices
from gantx.checkpoint import Header, replacing
from gantx.config import RunConfig
from gantx.data.batches import Batches
from gantx.data.prepare import Prepared, prepare
from gantx.errors import DataError, GantxError, Interrupted, MissingError, Stopped, UsageError
from gantx.training.display import Display
from gantx.training.journal import Journal, create_folder
from gantx.training.loop import target_images, train
from gantx.training.recipes import stages
from gantx.training.schedules import window_scale
from gantx.training.state import TrainingState

# What may differ when a run goes on: its length, how often it writes, and where its images lie.
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
}

Say = Callable[[str], None]
Progress = Callable[[int, int], None]


def start(
    settings: RunConfig,
    *,
    parent: Path,
    out: Path | None,
    device: torch.device,
    command: Sequence[str],
    say: Say,
    progress: Progress | None = None,
) -> Path:
    """Train a new run.

    Args:
        settings: its configuration.
        parent: folder in which `NNNN-<name>-<data>` is made.
        out: this folder instead, taken literally; must be absent or empty.
        device: where to train.
        command: the command line, for the record.
        say: receives lines until the run's own log is open.
        progress: receives (done, total) while images are prepared.

    Returns:
        The run's folder.

    Raises:
        UsageError: no data is named, or `out` is in use.
        Stopped: a signal ended the run; its state is saved.
    """
    if settings.data.source is None:
        raise UsageError("no data: add --data with a folder, a zip, a known data set, or `shapes`")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} already exists and is not empty: name another, or go on with --resume {out}")
    notes: list[str] = []
    settings = _settle(settings, device, notes.append)
    for note in notes:
        say(note)
    prepared = prepare(settings.data, say=_both(notes, say), progress=progress)
    folder = out or create_folder(parent, f"{settings.name}-{prepared.name}")
    _write_text(folder / "config.yaml", settings.to_yaml())
    return _run(settings, folder, None, prepared, device, command, notes)


def resume(
    folder: Path,
    *,
    changes: dict[str, Any],
    overrides: Sequence[str],
    device: torch.device,
    command: Sequence[str],
    say: Say,
    progress: Progress | None = None,
) -> Path:
    """Go on with a run from its latest checkpoint, or from the beginning when it has none yet.

    Args:
        folder: the run.
        changes: dotted settings from command-line flags.
        overrides: `key=value` texts.
        device: where to train.
        command: the command line, for the record.
        say: receives lines until the run's own log is open.
        progress: receives (done, total) while images are prepared.

    Raises:
        MissingError: there is no such run.
        UsageError: the configuration was changed, or the run is already complete.
        DataError: the images are not those the run began with.
    """
    if not (folder / "config.yaml").is_file():
        raise MissingError(f"{folder} is no run: --resume takes the folder that `gantx train` made")
    latest = checkpoint.latest_in(folder / "checkpoints")
    header = checkpoint.read_header(latest) if latest else None
    stored = header.config if header else config.load(files=[folder / "config.yaml"])
    settings = config.load(base=stored, settings=changes, overrides=overrides)
    changed = [key for key in config.differences(stored, settings) if key not in CHANGEABLE]
    if changed:
        raise UsageError(
            f"{folder} was trained with other values of {', '.join(changed)}: resume without changing them, "
            "or start a new run"
        )
    if header and header.images >= target_images(settings):
        raise UsageError(
            f"{folder} is already complete at {header.images / 1000:g} kimg: extend it with --kimg "
            f"{2 * settings.training.kimg:g}"
        )
    notes: list[str] = []
    settings = _settle(settings, device, notes.append)
    prepared = prepare(settings.data, say=_both(notes, say), progress=progress)
    if header and header.data["digest"] != prepared.digest:
        raise DataError(
            f"{settings.data.source} does not hold the images {folder.name} began with: name them with --data"
        )
    _write_text(folder / "config.yaml", settings.to_yaml())
    return _run(settings, folder, header, prepared, device, command, notes)


def _run(
    settings: RunConfig,
    folder: Path,
    header: Header | None,
    prepared: Prepared,
    device: torch.device,
    command: Sequence[str],
    notes: list[str],
) -> Path:
    training = settings.training
    assert isinstance(training.threads, int)
    torch.set_num_threads(training.threads)
    _set_determinism(training.deterministic is True)
    if training.precision == "bf16" and device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in fp32

    state = TrainingState(settings, device)
    if header is not None:
        state.restore(header)
    batches = Batches(
        prepared,
        seed=training.seed,
        mirror=settings.data.mirror,
        device=device,
        resident=settings.data.resident,
    )
    _record(folder, settings, device, command)
    display = Display(target_images(settings))
    with StopSignals(display.say, folder) as signals:
        data = {"name": prepared.name, "digest": prepared.digest, "images": len(prepared.images)}
        journal = Journal(folder, settings, state, data, display, signals.reason)
        try:
            journal.rewind()
            for note in notes if header is None else []:
                journal.log(note)
            _announce(journal, settings, state, header)
            gc.collect()
            gc.freeze()  # the networks live as long as the run: no need to search them for garbage
            journal.start()
            train(settings, state, stages(settings, state.generator, state.discriminator), batches, journal)
            journal.say(f"done: {state.images / 1000:g} kimg in {state.seconds:.0f} s")
        except torch.OutOfMemoryError as problem:
            raise MissingError(
                f"{device} has too little memory for this step: set training.micro_batch to a divisor of "
                f"training.batch {training.batch}, or choose a smaller preset"
            ) from problem
        except GantxError as problem:
            journal.log(str(problem))
            raise
        finally:
            gc.unfreeze()
            display.close()
    return folder


class StopSignals:
    """Turns Ctrl-C and SIGTERM into a wish to stop that the journal grants after the iteration.

    A second Ctrl-C stops at once. Works in the main thread; elsewhere it does nothing.
    """

    def __init__(self, say: Say, folder: Path) -> None:
        self._say = say
        self._folder = folder
        self._received: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._old[number] = signal.signal(number, self._receive)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def reason(self) -> GantxError | None:
        """The exception to raise once the state is saved, or None."""
        if self._received is None:
            return None
        error = Interrupted if self._received == signal.SIGINT else Stopped
        return error(f"stopped; the state is saved, go on with: gantx train --resume {self._folder}")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number
        self._say("stopping: this iteration is finished and saved first (Ctrl-C again stops at once)")


def _settle(settings: RunConfig, device: torch.device, say: Say) -> RunConfig:
    """Fix every value that would otherwise depend on the moment, so that a resumed run repeats it."""
    training = settings.training
    precision, note = devices.pick_precision(training.precision, device)
    if note:
        say(note)
    threads, note = devices.pick_threads(training.threads)
    say(note)
    deterministic = device.type == "cpu" if training.deterministic is None else training.deterministic
    settled = {"precision": precision, "threads": threads, "deterministic": deterministic}
    return settings.model_copy(update={"training": training.model_copy(update=settled)})


def _set_determinism(wanted: bool) -> None:
    torch.use_deterministic_algorithms(wanted)
    # Filling fresh memory with NaN finds bugs of ours, not of the user's, and costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts


def _announce(journal: Journal, settings: RunConfig, state: TrainingState, header: Header | None) -> None:
    where = "starting" if header is None else f"resuming at {state.images / 1000:g} kimg"
    training = settings.training
    journal.say(
        f"{where}: {journal.folder} on {state.device}, {training.precision}, {training.threads} thread(s), "
        f"to {training.kimg:g} kimg"
    )
    schedule = training.attention_window
    if schedule is not None and (scale := window_scale(schedule, training.kimg)) < 1:
        steps = ", ".join(f"{window} until {until * scale:.4g}" for until, window in schedule.steps)
        journal.say(
            f"attention window: written for {schedule.of_kimg:g} kimg, scaled to this run: {steps} kimg"
        )


def _record(folder: Path, settings: RunConfig, device: torch.device, command: Sequence[str]) -> None:
    """Keep how the run was started and on what."""
    environment = {
        **checkpoint.versions(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": settings.training.threads,
        "precision": settings.training.precision,
    }
    _write_text(folder / "env.json", json.dumps(environment, indent=2) + "\n")
    lines = folder / "command.txt"
    before = lines.read_text(encoding="utf-8") if lines.is_file() else ""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    _write_text(lines, f"{before}{stamp} {' '.join(command)}\n")


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _both(notes: list[str], say: Say) -> Say:
    def speak(text: str) -> None:
        notes.append(text)
        say(text)

    return speak
