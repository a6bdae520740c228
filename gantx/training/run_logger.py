"""The run's folder: the files written during training, and the removal of newer files by a resumed run."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from gantx import checkpoint
from gantx.config.schema import RunConfig
from gantx.errors import DivergedError, GantxError, MissingError
from gantx.generation import sampling
from gantx.generation.labels import drawn_labels
from gantx.io import imaging
from gantx.io.atomic import replacing
from gantx.io.escaping import printable
from gantx.runtime import devices, memory
from gantx.runtime.activity import duration
from gantx.training import best, metrics_file
from gantx.training.health import FATAL, Health, Unhealthy
from gantx.training.periodic_eval import PeriodicEvaluation
from gantx.training.progress import ProgressDisplay
from gantx.training.run_folder import ClaimedFolder
from gantx.training.schedules import due
from gantx.training.state import TrainingState

Result = TypeVar("Result")

_SAMPLE = re.compile(r"kimg-(\d{6}\.\d{3})\.png")


class RunLogger:
    """Writes metrics, pictures, checkpoints and the log of one run.

    Args:
        folder: the run's folder, claimed.
        config: the resolved configuration.
        state: the state of training.
        data: name and digest of the images, for checkpoints.
        display: shows progress.
        stop: returns an exception to raise once the state is saved, or None to continue.
        evaluation: scores the averaged generator, or None.
        diagnose: further figures for every report.

    Attributes:
        release: discards captured steps for their memory; returns whether there were any.
    """

    def __init__(
        self,
        folder: ClaimedFolder,
        config: RunConfig,
        state: TrainingState,
        data: Mapping[str, Any],
        display: ProgressDisplay,
        stop: Callable[[], GantxError | None],
        evaluation: PeriodicEvaluation | None = None,
        diagnose: Callable[[], dict[str, float]] = dict,
    ) -> None:
        self.folder = folder.path
        self._claim = folder
        self.config = config
        self.state = state
        self.data = dict(data)
        self.display = display
        self.stop = stop
        self.evaluation = evaluation
        self.diagnose = diagnose
        self.release: Callable[[], bool] = bool
        self.checkpoints = folder.path / "checkpoints"
        self.last_picture: Path | None = None
        self.health = Health(config)
        self._clock = time.monotonic()
        self._reported = (state.images, state.seconds)
        self._scored = self._saved = -1  # images at the last evaluation, and at the last save
        self._best: dict[str, int] = {}  # images at the best evaluations of a resumed run, by score

    def log(self, text: str) -> None:
        """Show a line and write it to train.log."""
        self.display.log(text)
        self.record(text)

    def record(self, text: str) -> None:
        """Write a line to train.log only."""
        stamp = datetime.now().astimezone().isoformat(timespec="seconds")
        self._append("train.log", f"{stamp} {printable(text, lines=True)}\n")

    @contextlib.contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Log that `what` begins, show it while it goes on, and log how long it took."""
        self.log(what)
        started = time.monotonic()
        with self.display.working(what):
            yield
        self.log(f"{what} took {duration(time.monotonic() - started)}")

    def _beside_steps(self, work: Callable[[], Result]) -> Result:
        """Call `work`; if memory runs out beside captured steps, again without them."""
        try:
            return work()
        except (MissingError, RuntimeError) as problem:
            if not memory.ran_out(problem.__cause__ or problem) or not self.release():
                raise
        self.log("memory ran out beside captured steps: they are discarded and run without replay, slower")
        return work()

    def _advance(self) -> None:
        if (line := self.display.advance(self.state.images)) is not None:
            self.record(line)

    def start(self) -> None:
        """Start the clocks, and complete an evaluation that was stopped; call right before the loop.

        Raises:
            Stopped: a stop was requested meanwhile; no iteration is made, so that the next start repeats it.
        """
        self._advance()
        self._claim.require()
        best.restore(self.checkpoints, self._best)
        self.evaluate(self.state.images - self.config.training.batch)
        if (reason := self.stop()) is not None:
            raise reason
        self._clock = time.monotonic()

    def after_iteration(self, before: int, *, finished: bool) -> None:
        """Write whatever is due after an iteration that began at `before` images.

        Raises:
            DivergedError: a reported value is not finite; or the run is unhealthy and may go back.
            Stopped: a stop was requested; the state is saved.
        """
        now = time.monotonic()
        self.state.seconds += now - self._clock
        self._clock = now
        settings, images = self.config.training, self.state.images
        if finished or due(settings.report_kimg, before, images):
            self.report()
        self._advance()
        if finished or due(settings.sample_kimg, before, images):
            self.picture()
        self.evaluate(before, finished=finished)
        reason = None if finished else self.stop()
        if finished or reason is not None or due(settings.checkpoint_kimg, before, images):
            self.save()
        if reason is not None:
            raise reason
        self._clock = (
            time.monotonic() if self._scored == images else self._clock
        )  # scoring does not count as training time

    def evaluate(self, before: int, *, finished: bool = False) -> None:
        """Score the averaged generator if that is due, and keep the checkpoint if it is the best so far.

        A stop that is requested meanwhile cancels the evaluation; the resumed run repeats it.

        Args:
            before: images seen before the last iteration.
            finished: this is the end of the run.
        """
        interval, images = self.config.training.evaluate_every, self.state.images
        if self.evaluation is None or interval is None or self._scored == images or images == 0:
            return
        if not finished and not due(interval, before, images):
            return
        self._refuse_divergence(self.state.statistics.means())
        # A stop does not cancel the last evaluation: no resumed run would repeat it.
        average = self.state.average.network
        evaluation, show = self.evaluation, self.display.show
        scored = self._beside_steps(
            lambda: evaluation.score(average, lambda: not finished and self.stop() is not None, show)
        )
        if scored is None:
            return
        line = {"kimg": images / 1000, "images": images, "seconds": round(self.state.seconds, 2), **scored}
        self._append("metrics.jsonl", json.dumps(line) + "\n")
        self._scored = images
        improved = self.evaluation.improved(line)
        values = ", ".join(
            f"{name} {value:.4g}{' (best so far)' if name in improved else ''}"
            for name, value in scored["scores"].items()
        )
        self.log(f"kimg {images / 1000:g}: {values}")
        if improved:
            self.save()
            latest = self.checkpoints / checkpoint.checkpoint_name(images)
            best.keep(latest, improved, self.checkpoints)

    def report(self) -> None:
        """Append a line of means since the last report to metrics.jsonl."""
        means = self.state.statistics.means()
        self._refuse_divergence(means)
        self.state.statistics.clear()
        images, seconds = self.state.images, self.state.seconds
        old_images, old_seconds = self._reported
        self._reported = (images, seconds)
        speed = (images - old_images) / (seconds - old_seconds) if seconds > old_seconds else 0.0
        line: dict[str, Any] = {
            "kimg": images / 1000,
            "images": images,
            "iteration": self.state.iteration,
            **{name: float(f"{mean:.6g}") for name, mean in means.items()},
            **self._beside_steps(self.diagnose),
            "seconds": round(seconds, 2),
            "images_per_second": float(f"{speed:.4g}"),
            "memory_gb": round(devices.memory_gb(self.state.device), 3),
        }
        found = self.health.observe(line)
        if found:
            line["health"] = [finding.kind for finding in found]
        self._append("metrics.jsonl", json.dumps(line) + "\n")
        self.display.figure(line)
        for finding in found:
            self.log(f"kimg {images / 1000:g}: {finding.sentence}")
            if self.config.training.on_divergence == "rollback" and finding.kind in FATAL:
                raise Unhealthy(finding, self.health.healthy_until(finding.kind))

    def picture(self) -> None:
        """Generate the images of the fixed seeds with the averaged generator."""
        seeds = range(self.config.training.samples)
        self._refuse_divergence(self.state.statistics.means())
        name = f"kimg-{self.state.images / 1000:010.3f}.png"
        text = {
            "Software": "gantx",
            "gantx:preset": self.config.name,
            "gantx:images": str(self.state.images),
        }
        self._claim.require()
        self.last_picture = path = self.folder / "samples" / name

        def generate() -> None:
            images = sampling.sample(
                self.state.average.network,
                seeds,
                batch=sampling.BATCH,
                device=self.state.device,
                ratio=self.config.data.ratio,
                labels=drawn_labels(self.config.conditioning, seeds),
            )
            imaging.save_images(path, images, seeds, text)

        self._beside_steps(generate)

    def save(self) -> None:
        """Write a checkpoint, once for each state, and remove the oldest beyond `keep_checkpoints`."""
        if self._saved == self.state.images:
            return
        self._refuse_divergence(self.state.statistics.means())
        self._claim.require()
        self._flush_metrics()
        try:
            self.state.save(self.checkpoints / checkpoint.checkpoint_name(self.state.images), self.data)
        except DivergedError as problem:
            raise self._diverged(str(problem)) from None
        checkpoint.prune(self.checkpoints, self.config.training.keep_checkpoints)
        self._saved = self.state.images

    def rewind(self) -> None:
        """Remove metrics and pictures that are newer than the state, and unfinished files.

        Raises:
            MissingError: the folder cannot be changed.
        """
        images = self.state.images
        try:
            for unfinished in self.folder.rglob(".*.part"):
                unfinished.unlink(missing_ok=True)
            for picture in (self.folder / "samples").glob("kimg-*.png"):
                if (match := _SAMPLE.fullmatch(picture.name)) and round(float(match[1]) * 1000) > images:
                    picture.unlink(missing_ok=True)
        except OSError as problem:
            raise MissingError(f"cannot clean up {self.folder}: {problem.strerror or problem}") from problem
        metrics = self.folder / "metrics.jsonl"
        if metrics.is_file():
            text = metrics.read_text(encoding="utf-8", errors="replace")
            kept = metrics_file.kept_lines(text.splitlines(), images)
            with replacing(metrics) as beside:
                beside.write_text("".join(f"{line}\n" for line, _ in kept), encoding="utf-8")
            lines = [line for _, line in kept]
            # Evaluations whose weights are still there: going back may have set better ones aside.
            present = best.available(self.checkpoints) if self.evaluation is not None else {}
            for line in lines:
                if metrics_file.is_report(line):
                    self.health.observe(line)
                if metrics_file.is_score(line):
                    self._scored = line["images"]
                    if self.evaluation is not None and line["images"] in present:
                        self._best |= dict.fromkeys(self.evaluation.improved(line), line["images"])
            if reports := [line for line in lines if metrics_file.is_report(line)]:
                self._reported = (reports[-1]["images"], reports[-1]["seconds"])

    def _refuse_divergence(self, means: Mapping[str, float]) -> None:
        bad = next((name for name, mean in means.items() if not math.isfinite(mean)), None)
        if bad is not None:
            raise self._diverged(f"{bad} is {means[bad]}")

    def _diverged(self, what: str) -> DivergedError:
        last = checkpoint.latest_in(self.checkpoints)
        where = f"the last good checkpoint is {last}" if last else "no checkpoint was written before"
        return DivergedError(
            f"training diverged by {self.state.images / 1000:g} kimg: {what}; {where}; "
            "try a lower learning rate or a smaller clip_norm"
        )

    def _flush_metrics(self) -> None:
        """Flush metrics.jsonl to the disk before the checkpoint that relies on it."""
        metrics = self.folder / "metrics.jsonl"
        try:
            if metrics.is_file():
                with metrics.open("r+b") as file:
                    os.fsync(file.fileno())
        except OSError as problem:
            raise MissingError(f"cannot write {metrics}: {problem.strerror or problem}") from problem

    def _append(self, name: str, text: str) -> None:
        self._claim.require()
        try:
            with (self.folder / name).open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
        except OSError as problem:
            raise MissingError(
                f"cannot write {self.folder / name}: {problem.strerror or problem}"
            ) from problem
