"""A run from its first file to its last: sets up the training loop, from scratch or from a checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from gantx import checkpoint
from gantx.checkpoint import Header
from gantx.config import presets
from gantx.config.schema import RunConfig
from gantx.data.batches import Batches
from gantx.data.prepare import Prepared, prepare, require_enough
from gantx.errors import CheckpointError, DataError, DivergedError, GantxError, MissingError, UsageError
from gantx.generation import sampling
from gantx.generation.labels import drawn_labels
from gantx.io.atomic import replacing
from gantx.runtime import devices, memory
from gantx.runtime.signals import StopAfterIteration, StopAtOnce, StopNow
from gantx.training import changes as allowed_changes
from gantx.training import health
from gantx.training.changes import CHANGEABLE, contradictions
from gantx.training.conditioning import with_classes
from gantx.training.diagnostics import diagnose
from gantx.training.initialization import initialize, located, require_size, same_origin
from gantx.training.loop import target_images, train
from gantx.training.microbatch import resolve_micro_batch
from gantx.training.periodic_eval import PeriodicEvaluation
from gantx.training.phases import penalty_micro_batch_size
from gantx.training.preconditions import require_new_run, require_run
from gantx.training.progress import ProgressDisplay
from gantx.training.resolve import Log, fix_workspace, frozen_garbage, prepared_process, resolve
from gantx.training.rollback import go_back
from gantx.training.run_folder import (
    ClaimedFolder,
    RunExistsError,
    claimed,
    claimed_for_new_run,
    create_folder,
)
from gantx.training.run_logger import RunLogger
from gantx.training.schedules import window_scale
from gantx.training.set_aside import set_newer_aside
from gantx.training.state import TrainingState
from gantx.training.steps import Required, build_steps

DIAGNOSED = 16  # images for `training.diagnostics`

_WHILE_PREPARING = "stopped while the images were prepared; the same command starts again"

Progress = Callable[[int, int], None]


def start(
    settings: RunConfig,
    *,
    parent: Path,
    out: Path | None,
    device: torch.device,
    command: Sequence[str],
    log: Log,
    progress: Progress | None = None,
) -> Path:
    """Train a new run.

    Args:
        settings: its configuration.
        parent: folder in which `NNNN-<name>-<data>` is made.
        out: this folder instead, taken literally; must be absent or empty.
        device: where to train.
        command: the command line, for the record.
        log: receives lines until the run's own log is open.
        progress: receives (done, total) while images are prepared.

    Returns:
        The run's folder.

    Raises:
        UsageError: no data is named, or `out` is in use, or no weight of `initialization` fits.
        MissingError: the checkpoint of `initialization` does not exist.
        CheckpointError: it cannot be used.
        Stopped: a signal ended the run; its state is saved.
    """
    require_new_run(settings, out)
    notes = _Notes(log)
    required = Required(settings.training.compile is True, settings.training.cuda_graphs is True)
    settings = located(settings)
    require_size(settings)
    settings = resolve(settings, device, _steps_left(settings, 0), notes)
    with contextlib.ExitStack() as claim:
        with StopAtOnce(_WHILE_PREPARING):
            folder = claim.enter_context(claimed_for_new_run(out)) if out is not None else None
            prepared = _prepared(settings, notes, progress)
            settings = with_classes(settings, prepared, notes)
            require_enough(len(prepared.images), settings.data, notes)
            evaluation = _periodic_evaluation(settings, device, notes, progress)
            if folder is None:
                made = create_folder(parent, f"{settings.name}-{prepared.name}")
                folder = claim.enter_context(claimed_for_new_run(made, made=True))
            _write_text(folder, "config.yaml", settings.to_yaml())
        with _stop_at_once(folder.path):
            return _run(settings, folder, None, prepared, evaluation, device, command, notes, required)


def start_or_resume(
    settings: RunConfig,
    folder: Path,
    *,
    changes: dict[str, Any],
    overrides: Sequence[str],
    device: torch.device,
    command: Sequence[str],
    log: Log,
    progress: Progress | None = None,
    allow_changes: bool = False,
) -> Path:
    """Train the run in a folder to its end, however often this is called: start it, resume it, or do nothing.

    A value `auto` accepts whatever the run began with.

    Args:
        settings: the configuration that a new run would have.
        folder: the run.
        changes: the dotted settings in it that come from command-line flags.
        overrides: the `key=value` texts in it.
        device: see `resume`.
        command: see `resume`.
        log: see `resume`.
        progress: see `resume`.
        allow_changes: see `resume`; values of presets and files then count as well.

    Raises:
        GantxError: see `start` and `resume`.
    """
    if not (folder / "config.yaml").is_file():
        with contextlib.suppress(RunExistsError):  # started by another process in between
            return start(
                settings,
                parent=folder.parent,
                out=folder,
                device=device,
                command=command,
                log=log,
                progress=progress,
            )
    return resume(
        folder,
        changes={key: value for key, value in changes.items() if _counts(key, value)},
        overrides=[text for text in overrides if _counts(*text.split("=", 1))],
        device=device,
        command=command,
        log=log,
        progress=progress,
        whole=settings,
        allow_changes=allow_changes,
    )


def _counts(key: str, value: Any) -> bool:
    """Whether a value replaces that of the run; the others are only compared with it."""
    return value != "auto" and any(name == key or name.startswith(f"{key}.") for name in CHANGEABLE)


def resume(
    folder: Path,
    *,
    changes: dict[str, Any],
    overrides: Sequence[str],
    device: torch.device,
    command: Sequence[str],
    log: Log,
    progress: Progress | None = None,
    whole: RunConfig | None = None,
    back_to: Path | None = None,
    allow_changes: bool = False,
) -> Path:
    """Resume a run from its latest checkpoint or an earlier one, or start it over if it has none yet.

    The run's config.yaml describes its goal (an earlier resume may have extended it), the checkpoint what it
    was trained with so far.

    Args:
        folder: the run.
        changes: dotted settings from command-line flags.
        overrides: `key=value` texts.
        device: where to train.
        command: the command line, for the record.
        log: receives lines until the run's own log is open.
        progress: receives (done, total) while images are prepared.
        whole: the configuration that a new run would have; a complete run is then no error.
        back_to: a checkpoint of the run to go back to, with the values it was trained with; what is newer is
            set aside.
        allow_changes: go on with other values of what does not make another run (gantx.training.changes).

    Raises:
        MissingError: there is no such run.
        UsageError: the configuration was changed, the run is complete, or another process trains it.
        DataError: the images are not those the run began with.
        CheckpointError: the latest checkpoint cannot be read.
    """
    require_run(folder)
    with claimed(folder) as ours:
        intended = presets.load(files=[folder / "config.yaml"])
        with _naming_an_older_checkpoint(folder, back_to):
            latest = back_to or checkpoint.latest_in(folder / "checkpoints")
            header = checkpoint.read_header(latest) if latest else None
            if header and back_to:
                checkpoint.verify(header)
        trained = header.config if header else intended
        if back_to:
            intended = presets.with_values_of(trained, intended, CHANGEABLE)
        settings = presets.load(base=intended, settings=changes, overrides=overrides)
        changed = contradictions(trained, settings)
        allowed_changes.require_allowed(folder, trained, settings, changed, allow=allow_changes)
        if whole is not None:
            chosen = presets.automatic(whole)  # by this program when the run began
            if trained.conditioning.classes is None:  # `auto` classes would have been a number
                chosen = [key for key in chosen if key != "conditioning.classes"]
            # bf16 may mean fp32 here
            here = resolve(same_origin(whole, trained), device, 0, lambda text: None)
            changed = [key for key in contradictions(settings, here) if key not in chosen]
            allowed_changes.require_allowed(folder, settings, here, changed, allow=allow_changes)
            settings = presets.with_values_of(settings, here, changed)
        if header and header.images >= target_images(settings):
            if whole is not None:
                log(f"{folder} is complete at {header.images / 1000:g} kimg: nothing to do")
                return folder
            raise UsageError(
                f"{folder} is already complete at {header.images / 1000:g} kimg: extend it with --kimg "
                f"{2 * max(settings.training.kimg, header.images / 1000):g}"
            )
        # Stored values may be the result of `auto`: only what this command sets counts.
        given = {*changes, *(text.partition("=")[0] for text in overrides)}
        required = Required(
            "training.compile" in given and settings.training.compile is True,
            "training.cuda_graphs" in given and settings.training.cuda_graphs is True,
        )
        notes = _Notes(log)
        steps = _steps_left(settings, header.images if header else 0)
        wanted, settings = settings, resolve(settings, device, steps, notes)
        if header:
            _note_changes(header, settings, device, notes)
        with StopAtOnce(_WHILE_PREPARING):
            prepared = _prepared(settings, notes, progress)
            evaluation = _periodic_evaluation(settings, device, notes, progress)
        if header and header.data.get("digest") != _digest(settings, prepared):
            what = "images" if settings.conditioning.classes is None else "images and classes"
            raise DataError(
                f"{settings.data.source} does not contain the {what} that {folder.name} began with: "
                "name them with --data"
            )
        if header and back_to and (line := set_newer_aside(folder, header)):
            notes(line)
        images = header.images if header else 0
        # bf16 may have become fp32 on this machine.
        used = presets.with_values_of(wanted, settings, ["training.precision"])
        if line := allowed_changes.record(folder, images, trained, used):
            notes(line)
        _write_text(ours, "config.yaml", settings.to_yaml())
        return _run(settings, ours, header, prepared, evaluation, device, command, notes, required)


def _prepared(settings: RunConfig, log: Log, progress: Progress | None) -> Prepared:
    """The images of a run, with labels if it is conditional."""
    labels = settings.conditioning.classes is not None
    return prepare(settings.data, log=log, progress=progress, labels=labels)


def _digest(settings: RunConfig, prepared: Prepared) -> str:
    """Digest of what the networks are given of the data: pixels, and labels in a conditional run."""
    return prepared.digest if settings.conditioning.classes is None else prepared.labelled_digest


def _stop_at_once(folder: Path) -> StopAtOnce:
    """For the time in which a run is set up: it can be resumed, whatever it has by then."""
    return StopAtOnce(f"stopped; go on with: gantx train --resume {folder}", leaves=True)


def _run(
    settings: RunConfig,
    claimed: ClaimedFolder,
    header: Header | None,
    prepared: Prepared,
    evaluation: PeriodicEvaluation | None,
    device: torch.device,
    command: Sequence[str],
    notes: _Notes,
    required: Required,
) -> Path:
    """Train to the end; where `training.on_divergence` says so, go back after a divergence."""
    rollbacks = 0
    while True:
        try:
            return _attempt(
                *(settings, claimed, header, prepared, evaluation, device, command, notes, required),
                rollbacks=rollbacks,
            )
        except DivergedError as problem:
            if settings.training.on_divergence != "rollback":
                raise
            header, rollbacks, sentence = go_back(claimed.path, settings.training, problem)
        # Not inside the handler: the exception refers to the networks and graphs of the attempt.
        devices.free_unused(device)
        # It contains the number that stands for a micro-batch of `auto`.
        settings = presets.load(files=[claimed.path / "config.yaml"])
        notes = notes.anew()
        notes(sentence)


def _attempt(
    settings: RunConfig,
    claimed: ClaimedFolder,
    header: Header | None,
    prepared: Prepared,
    evaluation: PeriodicEvaluation | None,
    device: torch.device,
    command: Sequence[str],
    notes: _Notes,
    required: Required,
    *,
    rollbacks: int,
) -> Path:
    training, folder = settings.training, claimed.path
    at_once = _stop_at_once(folder)
    size = "auto or to a divisor" if device.type == "cuda" else "a divisor"
    too_little = (
        f"{device} has too little memory for this run: set training.micro_batch to {size} of the batch "
        f"{training.batch}, or choose a smaller preset"
    )
    with at_once, prepared_process(settings, device), memory.explained(too_little):
        if header is not None:
            for part in ("generator_ema", "discriminator"):
                sampling.check_size(header, part)
        state = TrainingState(settings, device)
        initialized = header is None and settings.initialization is not None
        if header is not None:
            with _naming_an_older_checkpoint(folder, header.path):
                state.restore(header)
        elif initialized:
            for line in initialize(state):
                notes(line)
        state.rollbacks = max(state.rollbacks, rollbacks)
        if (resolved := resolve_micro_batch(settings, state, notes)) is not settings:
            settings = state.config = resolved
            training = settings.training
            _write_text(claimed, "config.yaml", settings.to_yaml())
        batches = Batches(
            prepared,
            seed=training.seed,
            mirror=settings.data.mirror,
            device=device,
            resident=settings.data.resident,
        )
        _record(claimed, settings, device, command)
        display = ProgressDisplay(target_images(settings))
        began = state.images
        stop = StopAfterIteration(display.log, folder, lambda: state.images == began)
        with stop as signals, contextlib.closing(display):
            digest = _digest(settings, prepared)
            data = {"name": prepared.name, "digest": digest, "images": len(prepared.images)}
            diagnostics = _Diagnostics(state, batches)
            logger = RunLogger(
                claimed, settings, state, data, display, signals.reason, evaluation, diagnostics
            )
            try:
                logger.rewind()
                for note in notes.lines:
                    logger.record(note)
                if rollbacks:
                    logger.save()  # so that the run remembers it, however soon it is stopped
                _announce(logger, settings, state, header)
                if initialized:
                    logger.save()  # so that the run can be resumed without the other checkpoint
                steps = build_steps(
                    settings, state, log=logger.log, required=required, working=logger.working
                )
                logger.release = steps.release
                with frozen_garbage():
                    logger.start()
                    train(settings, state, steps, batches, logger)
                logger.log(f"done: {state.images / 1000:g} kimg in {state.seconds:.0f} s")
                logger.log(f"look at {logger.last_picture}")
            except StopNow:
                with contextlib.suppress(MissingError):
                    logger.record("stopped before an iteration was finished")
                raise
            except GantxError as problem:
                with contextlib.suppress(MissingError):  # a full disk must not hide the reason
                    if not isinstance(problem, health.Unhealthy):  # said already
                        logger.record(str(problem))
                if isinstance(problem, MissingError):
                    again = f"{problem}; once that is fixed, go on with: gantx train --resume {folder}"
                    raise MissingError(again) from problem
                raise
    return folder


def _periodic_evaluation(
    settings: RunConfig, device: torch.device, log: Log, progress: Progress | None
) -> PeriodicEvaluation | None:
    """Scoring during training, if configured; made before anything is written, so that errors come early."""
    if settings.training.evaluate_every is None:
        return None
    fix_workspace(settings, device)  # the features of the real images may be computed now
    return PeriodicEvaluation(settings, device, log, progress)


class _Diagnostics:
    """Figures of the networks for every report: the diversity of images, and of D if that is asked for."""

    def __init__(self, state: TrainingState, batches: Batches) -> None:
        self._state = state
        self._batches = batches
        self._real: tuple[float, float] | None = None

    def __call__(self) -> dict[str, float]:
        state, ratio = self._state, self._state.config.data.ratio
        seeds = range(health.IMAGES)
        if self._real is None:
            real = self._batches.at("health", 0, health.IMAGES)
            self._real = health.diversity(sampling.crop(sampling.quantise(real), ratio))
        generator, average = (
            torch.cat(
                list(
                    sampling.sample(
                        *(network, seeds),
                        batch=health.IMAGES,
                        device=state.device,
                        ratio=ratio,
                        labels=drawn_labels(state.config.conditioning, seeds),
                    )
                )
            )
            for network in (state.generator.network, state.average.network)
        )
        return {**health.figures(self._real, generator, average), **self._of_discriminator()}

    def _of_discriminator(self) -> dict[str, float]:
        """Figures of D on the images it saw last."""
        state, training = self._state, self._state.config.training
        if not training.diagnostics:
            return {}
        size = min(penalty_micro_batch_size(training, training.batch), DIAGNOSED)
        first = state.images - size
        labels = self._batches.labels_at("real", first, size) if state.config.conditioning.labels else None
        return diagnose(state.discriminator.network, self._batches.at("real", first, size), labels)


class _Notes:
    """Shows lines before the run has a log, and stores them for it."""

    def __init__(self, log: Log) -> None:
        self.lines: list[str] = []
        self._log = log

    def __call__(self, text: str) -> None:
        self.lines.append(text)
        self._log(text)

    def anew(self) -> _Notes:
        """The same without the lines so far."""
        return _Notes(self._log)


def _steps_left(settings: RunConfig, images: int) -> int:
    """D steps from here to the end of the run."""
    return (target_images(settings) - images) // settings.training.batch


def _note_changes(header: Header, settings: RunConfig, device: torch.device, log: Log) -> None:
    """Log what differs from the machine of the checkpoint and may change the last bits."""
    here = {
        **checkpoint.versions(),
        "device": device.type,
        "precision": settings.training.precision,
        "threads": settings.training.threads,
        "compile": settings.training.compile,
    }
    before = {
        **header.versions,
        "device": header.progress.get("device", device.type),
        "precision": header.config.training.precision,
        "threads": header.config.training.threads,
        "compile": header.config.training.compile,
    }
    changed = [f"{key} {before[key]} → {here[key]}" for key in here if before.get(key) != here[key]]
    if changed:
        log(f"resuming with {', '.join(changed)}: results may differ in last bits from an unbroken run")


@contextlib.contextmanager
def _naming_an_older_checkpoint(folder: Path, chosen: Path | None = None) -> Iterator[None]:
    """Add to a CheckpointError how to resume from the checkpoint before the damaged one.

    Args:
        folder: the run.
        chosen: the checkpoint that is read; None for the newest.
    """
    try:
        yield
    except CheckpointError as problem:
        if isinstance(problem.__cause__, OSError):  # it may be good
            raise
        found = checkpoint.all_in(folder / "checkpoints")
        damaged = chosen or found[-1]
        numbered = checkpoint.images_in_name(damaged) is not None  # or it is a best one
        older = [path for path in found if path.name < damaged.name or not numbered]
        if older:
            raise CheckpointError(
                f"{problem}; go on from there with: gantx train --resume {older[-1]}"
            ) from problem
        raise CheckpointError(f"{problem}; remove {damaged.name} to start over") from problem


def _announce(logger: RunLogger, settings: RunConfig, state: TrainingState, header: Header | None) -> None:
    where = "starting" if header is None else f"resuming at {state.images / 1000:g} kimg"
    training = settings.training
    logger.log(
        f"{where}: {logger.folder} on {state.device}, {training.precision}, {training.threads} thread(s), "
        f"to {training.kimg:g} kimg"
    )
    schedule = training.attention_window
    if schedule is not None and (scale := window_scale(schedule, training.kimg)) < 1:
        steps = ", ".join(f"{window} until {until * scale:.4g}" for until, window in schedule.steps)
        logger.log(
            f"attention window: written for {schedule.of_kimg:g} kimg, scaled to this run: {steps} kimg"
        )


def _record(folder: ClaimedFolder, settings: RunConfig, device: torch.device, command: Sequence[str]) -> None:
    """Record how and on what the run was started."""
    environment = {
        **checkpoint.versions(),
        "device": str(device),
        "device_name": devices.device_name(device),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": settings.training.threads,
        "precision": settings.training.precision,
        "compile": settings.training.compile,
        "cuda_graphs": settings.training.cuda_graphs,
    }
    _write_text(folder, "env.json", json.dumps(environment, indent=2) + "\n")
    lines = folder.path / "command.txt"
    before = lines.read_text(encoding="utf-8", errors="surrogateescape") if lines.is_file() else ""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    _write_text(folder, lines.name, f"{before}{stamp} {shlex.join(command)}\n")


def _write_text(folder: ClaimedFolder, name: str, text: str) -> None:
    folder.require()
    with replacing(folder.path / name) as beside:
        beside.write_text(text, encoding="utf-8", errors="surrogateescape")
