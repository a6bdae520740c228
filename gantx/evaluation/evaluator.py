"""One evaluation, from locating its files to the result.

Weights, data and statistics are located before the first image is generated. Then all images pass through
the feature network once, and every metric is computed from its output.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gantx import checkpoint
from gantx.config.schema import DataConfig
from gantx.data.prepare import Prepared, UnusableImage, prepare
from gantx.data.sources import known_names
from gantx.errors import DataError, MissingError, UsageError
from gantx.evaluation import intervals, reference
from gantx.evaluation.cleanfid_engine import open_cleanfid
from gantx.evaluation.feature_scores import DC_K, KID_SIZE, KID_SUBSETS, PR_K, SEED, FeatureScores
from gantx.evaluation.features import FeatureNetwork, open_features
from gantx.evaluation.image_sets import ImageSet, lossy_images
from gantx.evaluation.per_class import (
    PER_CLASS,
    Measured,
    RealClass,
    numbers_in,
    real_classes,
    score_classes,
)
from gantx.evaluation.protocols import Protocol
from gantx.evaluation.reference import Reference
from gantx.evaluation.results import ClassResult, Result
from gantx.evaluation.scores import SCORES_OF, Score, name_of
from gantx.evaluation.shapes_classifier import ModeCount
from gantx.runtime import devices, memory
from gantx.runtime.activity import Working, unnoticed

VERSION = 1  # of the definitions of this package; raised when a score would differ
NEEDS_REFERENCE = frozenset({"fid", "kid", "pr", "dc"})
FEW_IMAGES = 10_000  # with fewer, the bias of FID exceeds the differences that papers report

Log = Callable[[str], None]
Progress = Callable[[str, int, int], None]  # activity, images so far, images in all


@dataclass(frozen=True)
class Settings:
    """How to evaluate.

    Attributes:
        metrics: names out of `METRICS`.
        protocol: fixes everything that affects a score.
        features: `inception`, `random`, or an .onnx file.
        weights: file of the Inception weights; None looks in the usual places.
        allow_unverified: take weights whose digest is not the published one; marks the result.
        reference: file of statistics instead of `data`.
        data: the real images; None only where `reference` is given or no metric asks for real images.
        mirrored: whether the generator was trained with mirrored images.
        objects: shapes in one image of the built-in data, for `modes`; None for other data.
        device: where to compute.
        intervals: compute 95 % intervals too.
        use_cache: take reference statistics from the cache when they are there.
        engine: `gantx`, or `cleanfid` for clean-fid's own feature path, which is slower.
        only: name of the class that the real images are of; None for all of them.
        per_class: names of the classes of the generator, by label, to score one by one too; () for none.
    """

    metrics: tuple[str, ...]
    protocol: Protocol
    features: str = "inception"
    weights: Path | None = None
    allow_unverified: bool = False
    reference: Path | None = None
    data: DataConfig | None = None
    mirrored: bool = False
    objects: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    intervals: bool = True
    use_cache: bool = True
    engine: str = "gantx"
    only: str | None = None
    per_class: tuple[str, ...] = ()


class Evaluator:
    """Scores sets of images by one protocol, against one reference.

    The constructor locates and opens all files, so that missing ones are reported early.

    Args:
        settings: how.
        log: receives lines of log.
        progress: receives (what, done, total).
        working: shows which score is being computed.

    Raises:
        UsageError: metrics and features, or metrics and data, do not fit together.
        MissingError: weights, data or statistics are not there.
        DataError: data or statistics cannot be used.
    """

    def __init__(
        self, settings: Settings, *, log: Log, progress: Progress, working: Working = unnoticed
    ) -> None:
        started = time.perf_counter()
        self.settings = settings
        self._progress, self._working = progress, working
        self._reference: Reference | None = None
        self._classifier_digest: str | None = None
        self._computed: FeatureScores | None = None
        self._classes: tuple[RealClass, ...] = ()
        self._lossy = 0
        if settings.per_class and not set(PER_CLASS) & set(settings.metrics):
            raise UsageError(
                f"none of the metrics {', '.join(settings.metrics)} scores a single class: add one of "
                f"{', '.join(PER_CLASS)} with --metric, or omit --per-class"
            )
        self._network = network_for(settings)
        if settings.objects == 1:  # for any metrics, so that adding one does not change the protocol
            self._classifier_digest = ModeCount(settings.device).digest
        if self._network is not None:
            self._computed = FeatureScores(
                settings.metrics, settings.protocol, self._network, settings.intervals, working
            )
        labelled = _with_classes(settings, log, progress) if settings.per_class else None
        if self._network is not None and NEEDS_REFERENCE & set(settings.metrics):
            self._reference = _resolve_reference(settings, self._network, log, progress)
            if settings.reference is None and settings.data is not None:
                self._lossy = lossy_images(settings.data)
        if labelled is not None:
            self._classes = _resolve_classes(settings, self._network, labelled, log, progress)
        self.seconds_to_resolve = time.perf_counter() - started

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the scores that were asked for, those of the first metric first."""
        network = self._network.name if self._network is not None else "inception"
        return tuple(
            name if metric == "modes" else name_of(name, network)
            for metric in self.settings.metrics
            for name in SCORES_OF[metric]
        )

    def evaluate(self, images: ImageSet) -> Result:
        """Score all images of a set in one pass.

        Raises:
            DataError: the images or their features are not finite.
            MissingError: there is too little memory for so many images.
        """
        started = time.perf_counter()
        outputs = self._measure(images)
        measured = time.perf_counter()
        scores = self._scores(outputs)
        classes, of_classes = self._scores_of_classes(outputs, images)
        timing = {
            "resolve_seconds": self.seconds_to_resolve,
            "measure_seconds": measured - started,
            "metrics_seconds": time.perf_counter() - measured,
            "images_per_second": len(images) / (measured - started),
        }
        return Result(
            scores=tuple(scores),
            protocol=self.stamp(images),
            checkpoint=images.origin(),
            warnings=(*images.warnings, *self._warnings(len(images)), *of_classes),
            timing={name: float(f"{value:.4g}") for name, value in timing.items()},
            versions={**versions(), "device": devices.device_name(self.settings.device)},
            classes=classes,
        )

    def _measure(self, images: ImageSet) -> _Outputs:
        settings, network, total = self.settings, self._network, len(images)
        device = settings.device
        # Kept on the device until the end, so that no batch waits for a copy.
        features = _allocate(total, network.dim, device) if network else None
        logits = _allocate(total, 1008, device) if network and "is" in settings.metrics else None
        modes = ModeCount(device, settings.objects or 1) if "modes" in settings.metrics else None
        done = 0
        for batch in images.batches(device):
            for part in batch.split(network.batch if network else len(batch)):
                rows = slice(done, done + len(part))
                if network is not None and features is not None:
                    measured = network(part)
                    features[rows] = measured.features
                    if logits is not None and measured.logits is not None:
                        logits[rows] = measured.logits
                if modes is not None:
                    modes.add(part)
                done += len(part)
                self._progress("measuring images", done, total)
        assert done == total
        features = features.cpu() if features is not None else None
        if features is not None and not bool(features.isfinite().all()):
            raise DataError("the feature network gives values that are not finite for these images")
        return _Outputs(features, logits.cpu() if logits is not None else None, modes)

    def _scores(self, outputs: _Outputs) -> list[Score]:
        scores = list[Score]()
        if self._computed is not None and outputs.features is not None:
            scores += self._computed.of(outputs.features, self._reference, outputs.logits)
        if outputs.modes is not None:
            scores += _mode_scores(outputs.modes, self.settings.intervals)
        return scores

    def _scores_of_classes(
        self, outputs: _Outputs, images: ImageSet
    ) -> tuple[tuple[ClassResult, ...], list[str]]:
        if not self._classes:
            return (), []
        assert images.labels is not None
        measured = Measured(
            torch.tensor(list(images.labels)),
            outputs.features,
            outputs.modes.modes() if outputs.modes is not None else None,
        )
        metrics = [metric for metric in self.settings.metrics if metric in PER_CLASS]
        computed = self._computed if NEEDS_REFERENCE & set(metrics) else None
        with self._working("scoring each class"):
            return score_classes(self._classes, measured, metrics, computed, self.stamp(images))

    def stamp(self, images: ImageSet) -> dict[str, Any]:
        """The protocol of a result: everything that affects a score and is not the generator."""
        settings, network = self.settings, self._network
        return {
            "name": settings.protocol.name,
            "version": VERSION,
            "engine": settings.engine,
            "extractor": network.name if network else None,
            "weights_sha256": network.digest if network else None,
            "weights_verified": network.verified if network else None,
            "resize": network.resize if network else None,
            "feature_dim": network.dim if network else None,
            **images.stamp,
            "n_ref": self._reference.count if self._reference else None,
            "reference": self._reference.stamp if self._reference else None,
            "covariance_ddof": settings.protocol.ddof,
            "kid": {"subsets": KID_SUBSETS, "subset_size": KID_SIZE, "seed": SEED},
            "is_splits": settings.protocol.is_splits,
            "recogniser_sha256": self._classifier_digest,
            "neighbours": {"images": settings.protocol.neighbours, "pr_k": PR_K, "dc_k": DC_K},
        }

    def _warnings(self, count: int) -> list[str]:
        found = []
        network, known = self._network, self._reference
        if network is not None and not network.verified:
            found.append("the weights are not the published ones: no score here is comparable with any other")
        if known is not None and network is not None and "fid" in self.settings.metrics:
            fewest = min(count, known.count or count)
            if fewest <= network.dim:
                found.append(
                    f"{fewest:,} images do not span the {network.dim:,} features: the Fréchet distance is "
                    "mostly bias, so go by KID, or take more images (--num)"
                )
            elif fewest < FEW_IMAGES:
                found.append(
                    f"{fewest:,} images inflate the Fréchet distance: compare it only with scores of as many "
                    "images, and look at KID, which has no such bias"
                )
            if known.features is None:
                found.append(
                    "the reference consists of moments alone, so there is no KID beside the Fréchet distance"
                )
        if known is not None and "file_sha256" in known.stamp:
            found.append(
                f"{self.settings.reference} does not record how it was made: check yourself that it fits "
                "this protocol"
            )
        if self._lossy:
            found.append(
                f"{self._lossy:,} of the real images are JPEG or WebP: compression moves scores by whole "
                "points unless the generator learned from the same files"
            )
        data = self.settings.data
        if "modes" in self.settings.metrics and data is not None and data.ratio != 1:
            found.append(
                f"shapes are cut to the ratio {data.ratio:g}, and the classifier was trained on whole ones: "
                "it errs even on real images, so compare modes with runs of this ratio only"
            )
        if "is" in self.settings.metrics and count < FEW_IMAGES:
            found.append(f"{count:,} images are too few for an Inception Score that others report at 50,000")
        return found


def versions() -> dict[str, str]:
    """Versions of what computes scores; recorded beside the protocol, not part of its hash."""
    packages = {name: metadata.version(name) for name in ("numpy", "pillow", "safetensors", "clean-fid")}
    return {**checkpoint.versions(), **packages, "system": platform.platform()}


@dataclass(frozen=True)
class _Outputs:
    """The outputs of one pass over the images, on the CPU."""

    features: Tensor | None  # [N, D]
    logits: Tensor | None  # [N, 1008]
    modes: ModeCount | None


def open_network(settings: Settings) -> FeatureNetwork:
    """The feature network `settings` asks for; MissingError where its weights are not there."""
    open_ = open_cleanfid if settings.engine == "cleanfid" else open_features
    return open_(
        settings.features,
        resize=settings.protocol.resize,
        weights=settings.weights,
        device=settings.device,
        allow_unverified=settings.allow_unverified,
    )


def _resolve_reference(
    settings: Settings, network: FeatureNetwork, log: Log, progress: Progress
) -> Reference:
    if settings.reference is not None:
        if settings.only is not None:
            raise UsageError(
                f"{settings.reference} has the statistics of all classes together: name the real images with "
                "--data to compare with those of one class"
            )
        known = reference.read(settings.reference)
        if not known.sealed:
            log(f"{settings.reference} has no digest (written before gantx kept one), so it is not verified")
        mirror = settings.protocol.mirror and settings.mirrored
        wanted: dict[str, Any] = {"mirror": mirror}
        if settings.data is not None:
            data = settings.data
            wanted |= {"resolution": data.resolution, "split": data.split, "ratio": data.ratio}
            wanted["channels"] = data.channels
        reference.check(known, network, wanted, settings.reference)
        if known.features is None and (lacking := {"kid", "pr", "dc"} & set(settings.metrics)):
            raise UsageError(
                f"{settings.reference} contains moments alone, which do not give "
                f"{', '.join(sorted(lacking))}: make it with gantx stats and without --moments"
            )
        return known
    if settings.data is None or settings.data.source is None:
        raise MissingError(
            "nothing to compare with: name the real images with --data, or their statistics with --reference"
        )
    only = settings.only
    prepared = _prepare(settings.data, log, progress, labels=only is not None)
    label = None
    if only is not None:
        label = numbers_in(prepared, [only], str(settings.data.source))[0]
    known, cached = _statistics(
        settings,
        network,
        prepared,
        label,
        lambda done, total: progress("measuring real images", done, total),
        log,
    )
    whose = prepared.name + (f", class {only}" if only is not None else "")
    log(f"reference: {known.count:,} images of {whose}{' (from cache)' if cached else ''}")
    return known


def _with_classes(settings: Settings, log: Log, progress: Progress) -> Prepared:
    """The real images with their classes, checked before all of them are measured."""
    data = settings.data
    if settings.reference is not None or data is None or data.source is None:
        raise UsageError(
            "--per-class needs the real images themselves, with their classes: name them with --data"
        )
    prepared = _prepare(data, log, progress, labels=True)
    numbers_in(prepared, settings.per_class, data.source)
    return prepared


def _resolve_classes(
    settings: Settings, network: FeatureNetwork | None, prepared: Prepared, log: Log, progress: Progress
) -> tuple[RealClass, ...]:
    """The real images of each class, and their statistics if some metric needs them."""
    total, measured = len(prepared.images), 0

    def measure(label: int, before: int) -> Callable[[], Reference]:
        nonlocal measured
        assert network is not None
        take = partial(_statistics, settings, network, prepared, label)
        _, cached = take(
            lambda done, _: progress("measuring real images by class", before + done, total), log
        )
        measured += not cached
        again = partial(take, lambda done, total: None, log, use_cache=True)
        return lambda: again()[0]

    needed = network is not None and NEEDS_REFERENCE & set(settings.metrics)
    where = str(settings.data.source if settings.data else None)
    found = real_classes(prepared, settings.per_class, where, measure if needed else None)
    log(f"reference: {len(found):,} classes of {prepared.name}{' (from cache)' * (not measured)}")
    return found


def _statistics(
    settings: Settings,
    network: FeatureNetwork,
    prepared: Prepared,
    label: int | None,
    progress: Callable[[int, int], None],
    log: Log,
    *,
    use_cache: bool | None = None,
) -> tuple[Reference, bool]:
    """The statistics of the prepared images, or of those of a label, and whether they were cached."""
    assert settings.data is not None
    stamp = reference.describe(
        prepared,
        network,
        settings.protocol,
        split=settings.data.split,
        mirrored=settings.mirrored,
        ratio=settings.data.ratio,
        label=label,
    )
    if stamp["n_ref"] < 2:
        raise DataError(
            f"{settings.data.source} has {stamp['n_ref']} image of the class {settings.only}, and a score "
            "needs at least two: score a class of more images"
        )
    return reference.reference_for(
        prepared,
        network,
        stamp,
        device=settings.device,
        progress=progress,
        use_cache=settings.use_cache if use_cache is None else use_cache,
        log=log,
    )


def _prepare(data: DataConfig, log: Log, progress: Progress, *, labels: bool = False) -> Prepared:
    """The real images, with labels on request; errors name the options of `gantx eval`."""
    try:
        return prepare(
            data,
            log=log,
            progress=lambda done, total: progress("preparing real images", done, total),
            labels=labels,
        )
    except UnusableImage as problem:
        advice = (
            ": the scored images have that resolution, so name real images of at least this size with "
            "--data, or score smaller images"
            if problem.small
            else "; repair or remove it"
        )
        raise DataError(problem.fact + advice) from problem
    except MissingError as problem:
        if data.source in known_names() or data.source is None or Path(data.source).exists():
            raise
        raise MissingError(
            f"{problem}; name the real images with --data, or their statistics with --reference"
        ) from problem


def network_for(settings: Settings) -> FeatureNetwork | None:
    """The feature network of some metrics; None where they need none.

    Raises:
        UsageError: the metrics do not fit it, or the data.
        MissingError: its weights are not there.
    """
    if "modes" in settings.metrics and settings.objects != 1:
        raise UsageError(
            "the metric modes counts the 18 kinds of single shapes: it needs --data shapes with "
            "data.shapes.objects=1, and their colours (data.channels 3 or 4)"
        )
    if not set(settings.metrics) - {"modes"}:
        return None
    network = open_network(settings)
    if "is" in settings.metrics and not network.has_logits:
        raise UsageError(
            f"the metric 'is' needs the class scores of Inception, which {network.name} does not give here: "
            "name other metrics (--metric fid), or use --features inception"
        )
    return network


def _allocate(rows: int, columns: int, device: torch.device) -> Tensor:
    """An empty [rows, columns] on `device`; MissingError when there is no memory for it."""
    much = f"{columns:,} features of {rows:,} images"
    with memory.explained(f"{device} has too little memory for {much}: score fewer (--num)"):
        return torch.empty(rows, columns, dtype=torch.float32, device=device)


def _mode_scores(modes: ModeCount, with_intervals: bool) -> list[Score]:
    found = modes.result()

    def ends(share: float) -> tuple[float | None, float | None]:
        if not with_intervals:
            return None, None
        return intervals.share(torch.arange(modes.images) < round(share * modes.images))

    return [
        Score("modes", float(found.modes), note="of 18 kinds and colours"),
        Score(
            "confident",
            found.confident,
            *ends(found.confident),
            note="share of images whose kind and colour can be classified",
        ),
        Score(
            "whole",
            found.whole,
            *ends(found.whole),
            note=f"share that could pass for a real shape; of real ones {found.accuracy_on_real:.1%} do",
        ),
    ]
