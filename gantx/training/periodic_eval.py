"""Scores during training: the same evaluation as `gantx eval`, of the averaged generator."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from gantx.config.schema import RunConfig
from gantx.errors import MissingError, UsageError
from gantx.evaluation.evaluator import Evaluator, Settings, network_for
from gantx.evaluation.image_sets import AS_RGB, GeneratedImages
from gantx.evaluation.request import Request, settings_of_run
from gantx.evaluation.scores import lower_is_better
from gantx.generation.labels import drawn_labels
from gantx.models.interfaces import Generator

Show = Callable[[str, int, int], None]  # receives (what, done, total)


def _unseen(what: str, done: int, total: int) -> None:
    """Show nothing."""


class PeriodicEvaluation:
    """Scores a generator by the run's own protocol, and remembers the best value of each score.

    Its constructor loads weights and reference statistics, so that missing files are reported at the start.

    Args:
        config: of the run; see its `evaluation` section.
        device: where to compute.
        log: receives one line of text at a time.
        progress: receives (done, total) while real images are measured.

    Raises:
        UsageError, MissingError, DataError: the configured evaluation is not possible.
    """

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        log: Callable[[str], None],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        settings = _settings(config, device)
        self._quantise = settings.protocol.quantise
        self._ratio = config.data.ratio
        self._conditioning = config.conditioning
        self._num = config.evaluation.num_during_training
        self._interrupted: Callable[[], bool] = bool
        self._show: Show = _unseen
        if progress is not None:
            self._show = lambda what, done, total: progress(done, total)
        with _advised():
            self._evaluator = Evaluator(settings, log=log, progress=self._on_progress)
        for line in AS_RGB.get(config.data.channels, ()):
            log(f"evaluation: {line}")
        self._best: dict[str, tuple[str, float]] = {}  # protocol and value by the name of the score

    def score(
        self,
        generator: Generator,
        interrupted: Callable[[], bool],
        show: Show = _unseen,
    ) -> dict[str, Any] | None:
        """Score a generator.

        Args:
            generator: on the device of this evaluation.
            interrupted: called after each batch; the evaluation is cancelled once it returns true.
            show: receives (what, done, total).

        Returns:
            `scores`, by name, and `protocol_hash`, for metrics.jsonl; None if cancelled.
        """
        self._interrupted, self._show = interrupted, show
        subject = GeneratedImages(
            generator,
            {},
            num=self._num,
            seed=0,
            quantise=self._quantise,
            ratio=self._ratio,
            labels=drawn_labels(self._conditioning, range(self._num)),
        )
        try:
            result = self._evaluator.evaluate(subject)
        except _Cancelled:
            return None
        finally:
            self._interrupted, self._show = bool, _unseen  # they refer to the run, whose attempt may end
        scores = {
            score.name: float(f"{score.value:.6g}") for score in result.scores if score.value is not None
        }
        return {"scores": scores, "protocol_hash": result.protocol_hash}

    def improved(self, line: Mapping[str, Any]) -> list[str]:
        """Record a line of scores; names of those of the run's metrics that are better than in all before.

        Scores of different protocols are not compared: a changed protocol starts over.
        """
        better, protocol = [], line["protocol_hash"]
        for name in self._evaluator.names:
            value, before = line["scores"].get(name), self._best.get(name)
            if value is None:
                continue
            if before is None or before[0] != protocol or _is_better(name, value, before[1]):
                self._best[name] = protocol, value
                better.append(name)
        return better

    def _on_progress(self, what: str, done: int, total: int) -> None:
        if self._interrupted():
            raise _Cancelled
        self._show(what, done, total)


def require_evaluation(config: RunConfig, device: torch.device) -> None:
    """Check that a run can be scored as it is configured, without measuring real images.

    Raises:
        UsageError, MissingError: it cannot.
    """
    if config.training.evaluate_every is not None:
        with _advised():
            network_for(_settings(config, device))


def _settings(config: RunConfig, device: torch.device) -> Settings:
    return settings_of_run(config, Request(device=device, intervals=False))


@contextlib.contextmanager
def _advised() -> Iterator[None]:
    """Add to an error how to train all the same."""
    try:
        yield
    except (MissingError, UsageError) as problem:
        instead = "to train without scores, add training.evaluate_every=null"
        raise type(problem)(f"{problem}; {instead}") from problem


def _is_better(name: str, value: float, than: float) -> bool:
    return value < than if lower_is_better(name) else value > than


class _Cancelled(Exception):
    """The run was asked to stop during an evaluation."""
