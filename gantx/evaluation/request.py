"""A request of the user, resolved to settings and evaluated: which images, by which protocol, against what.

What the request leaves open comes from the checkpoint, which names its data and the protocol of its paper.
The evaluation itself is in gantx.evaluation.evaluator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gantx import checkpoint
from gantx.config.schema import (
    LARGEST_SIDE,
    SMALLEST_SIDE,
    ConditioningConfig,
    DataConfig,
    EvaluationConfig,
    RunConfig,
)
from gantx.data.prepare import UnusableImage, prepare
from gantx.errors import DataError, UsageError
from gantx.evaluation import reference
from gantx.evaluation.evaluator import Evaluator, Log, Progress, Settings, open_network
from gantx.evaluation.image_sets import (
    AS_TRAINED,
    GeneratedImages,
    ImageSet,
    StoredImages,
    open_images,
    origin_of,
)
from gantx.evaluation.protocols import Protocol, named
from gantx.evaluation.reference import Reference
from gantx.evaluation.results import Result, compare
from gantx.evaluation.scores import require_metric
from gantx.evaluation.targets import is_checkpoint
from gantx.generation import sampling
from gantx.generation.labels import drawn_labels, name_of, parse_class
from gantx.runtime.activity import Working, unnoticed

CPU_IMAGES = 5000  # of Inception on a CPU unless the user asks for more: 50,000 take an hour


@dataclass(frozen=True)
class Request:
    """What the user asked for; None takes the checkpoint's value, else the protocol's.

    Attributes:
        metrics: names out of `METRICS`; empty for the preset's.
        data: the real images: a path or a known name.
        reference: file of statistics instead.
        protocol: name of a protocol.
        num: images to score.
        neighbours: images of each side in precision, recall, density and coverage, at most.
        split: part of the data that is the reference.
        features: `inception`, `random`, or an .onnx file.
        weights: file of the Inception weights.
        allow_unverified: take them even if their digest is not the published one.
        seed: of the first generated image, or of the choice among stored images.
        batch: images generated or read at once.
        device: where to compute.
        intervals: compute 95 % intervals too.
        use_cache: take reference statistics from the cache.
        engine: `gantx` or `cleanfid`.
        baseline: an earlier result; another protocol is refused before any image is generated.
        label: labels of the images of a conditional model: None or `data` for the proportions of its training
            data, `uniform` for as many of each class, or one class by name or number, which is then compared
            with the real images of this class.
        per_class: score each class of a conditional model by itself too.
    """

    metrics: tuple[str, ...] = ()
    data: str | None = None
    reference: Path | None = None
    protocol: str | None = None
    num: int | None = None
    neighbours: int | None = None
    split: str | None = None
    features: str | None = None
    weights: Path | None = None
    allow_unverified: bool = False
    seed: int = 0
    batch: int = sampling.BATCH
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    intervals: bool = True
    use_cache: bool = True
    engine: str = "gantx"
    baseline: Result | None = None
    label: str | int | None = None
    per_class: bool = False


def evaluate(
    target: Path | None, request: Request, *, log: Log, progress: Progress, working: Working = unnoticed
) -> Result:
    """Score a run, a checkpoint, or stored images.

    Args:
        target: a run, a folder of checkpoints, a .safetensors file, a folder or zip of images, or a .npy of
            them; None for the newest run in ./runs.
        request: how.
        log: receives lines of log.
        progress: receives (what, done, total).
        working: shows which score is being computed.

    Raises:
        UsageError, MissingError, DataError, CheckpointError: before any image is generated, if possible.
    """
    target = target or checkpoint.newest_run(Path("runs"))
    if is_checkpoint(target):
        return _evaluate_checkpoint(target, request, log, progress, working)
    return _evaluate_images(target, request, log, progress, working)


def statistics(
    data: DataConfig, request: Request, *, mirrored: bool, log: Log, progress: Progress
) -> Reference:
    """Measure the reference statistics of a set of real images, or take them from the cache.

    Args:
        data: the images and their resolution.
        request: protocol, features and where to compute.
        mirrored: for generators trained with mirrored images.
        log: receives lines of log.
        progress: receives (what, done, total).
    """
    settings = _settings(request, EvaluationConfig(), data, mirrored=mirrored)
    network = open_network(settings)
    assert settings.data is not None
    try:
        prepared = prepare(
            settings.data, log=log, progress=lambda done, total: progress("preparing images", done, total)
        )
    except UnusableImage as problem:  # its own advice names settings of training
        advice = ": give a lower --resolution" if problem.small else "; repair or remove it"
        raise DataError(problem.fact + advice) from problem
    stamp = reference.describe(
        prepared,
        network,
        settings.protocol,
        split=settings.data.split,
        mirrored=mirrored,
        ratio=settings.data.ratio,
    )
    found, _ = reference.reference_for(
        prepared,
        network,
        stamp,
        device=request.device,
        progress=lambda done, total: progress("measuring images", done, total),
        use_cache=request.use_cache,
        log=log,
    )
    return found


def settings_of_run(config: RunConfig, request: Request) -> Settings:
    """The settings of a run: those of the request, else those of the run's configuration."""
    data = config.data.model_copy(update={"source": request.data or config.data.source})
    settings = _settings(request, config.evaluation, data, mirrored=config.data.mirror)
    return dataclasses.replace(settings, objects=_objects(data))


def images_to_generate(config: EvaluationConfig, settings: Settings, num: int | None, log: Log) -> int:
    """The number of images to score: the request's, else the preset's, else the protocol's."""
    if num is not None:
        return num
    usual = settings.protocol.num
    if config.num is not None and settings.protocol.name == config.protocol:
        usual = config.num  # the preset's way of measuring; another protocol has its own number
    slow = settings.device.type == "cpu" and settings.features == "inception"
    if not slow or set(settings.metrics) == {"modes"} or usual <= CPU_IMAGES:
        return usual
    log(f"{CPU_IMAGES:,} images instead of {usual:,}, which would take long without a GPU (--num {usual})")
    return CPU_IMAGES


def _evaluate_checkpoint(
    target: Path, request: Request, log: Log, progress: Progress, working: Working
) -> Result:
    path = checkpoint.find(target)
    config = checkpoint.read_header(path).config
    labelling = _labelling(config.conditioning, request)
    settings = dataclasses.replace(
        settings_of_run(config, request), only=labelling.only, per_class=labelling.per_class
    )
    evaluator = Evaluator(settings, log=log, progress=progress, working=working)
    num = images_to_generate(config.evaluation, settings, request.num, log)
    generator, header = sampling.open_generator(path, settings.device)
    images = GeneratedImages(
        generator,
        origin_of(header),
        num=num,
        seed=request.seed,
        quantise=settings.protocol.quantise,
        ratio=config.data.ratio,
        batch=request.batch,
        labels=labelling.labels(range(request.seed, request.seed + num)),
        labelling=labelling.stamp,
    )
    log(f"scoring {num:,} images of {path}")
    return _score(evaluator, images, request.baseline)


def _evaluate_images(
    target: Path, request: Request, log: Log, progress: Progress, working: Working
) -> Result:
    if request.label is not None or request.per_class:
        raise UsageError(
            f"{target} is a set of images, which has no classes to choose from: score the folder of each "
            "class against that of its real images (--data), or a conditional model"
        )
    files = open_images(target)
    ratio = files.height / files.width
    side = max(files.width, files.height)
    if not SMALLEST_SIDE <= side <= LARGEST_SIDE:
        raise DataError(
            f"the images in {target} are {files.width}×{files.height}, but gantx scores images whose longer "
            f"side has {SMALLEST_SIDE} to {LARGEST_SIDE:,} pixels: resize them"
        )
    data = DataConfig(source=request.data, resolution=side, ratio=ratio)
    settings = dataclasses.replace(
        _settings(request, EvaluationConfig(), data, mirrored=False), objects=_objects(data)
    )
    images = StoredImages(files, num=request.num, seed=request.seed, batch=request.batch)
    evaluator = Evaluator(settings, log=log, progress=progress, working=working)
    log(f"scoring {len(images):,} of {len(files):,} images in {target}")
    return _score(evaluator, images, request.baseline)


@dataclass(frozen=True)
class _Labelling:
    """The labels of the images of a model.

    Attributes:
        stamp: how they are chosen, for the protocol.
        labels: given the seeds, one label for each; None for an unconditional model.
        only: name of the class whose real images are the reference; None for all.
        per_class: names of the classes that are scored one by one.
    """

    stamp: str
    labels: Callable[[Sequence[int]], list[int] | None]
    only: str | None = None
    per_class: tuple[str, ...] = ()


def _labelling(conditioning: ConditioningConfig, request: Request) -> _Labelling:
    """The labels that a request asks of a model; UsageError if the model does not have them."""
    classes, wanted = conditioning.classes, request.label
    names = conditioning.names
    if not isinstance(classes, int):
        if request.per_class:
            raise UsageError("this model was trained without classes: omit --per-class")
        if wanted is not None:
            parse_class(conditioning, wanted)  # says that there is none
        return _Labelling(AS_TRAINED, lambda seeds: None)
    each = tuple(name_of(conditioning, label) for label in range(classes)) if request.per_class else ()
    if wanted is None or (wanted == "data" and wanted not in names):
        return _Labelling(AS_TRAINED, lambda seeds: drawn_labels(conditioning, seeds), per_class=each)
    if wanted == "uniform" and wanted not in names:
        equal = conditioning.model_copy(update={"counts": ()})
        return _Labelling("uniform", lambda seeds: drawn_labels(equal, seeds), per_class=each)
    label = parse_class(conditioning, wanted)
    if request.per_class:
        raise UsageError(
            f"--per-class scores every class, but --class asks for {wanted} alone: omit one of them"
        )
    name = name_of(conditioning, label)
    only = name if label < classes else None  # a withheld class stands for all
    return _Labelling(f"class {name}", lambda seeds: [label] * len(seeds), only)


def _score(evaluator: Evaluator, images: ImageSet, baseline: Result | None) -> Result:
    if baseline is not None:
        compare(baseline.protocol, evaluator.stamp(images))
    return evaluator.evaluate(images)


def _settings(request: Request, config: EvaluationConfig, data: DataConfig, *, mirrored: bool) -> Settings:
    metrics = request.metrics or _applicable(config.metrics, data, request)
    for metric in metrics:
        require_metric(metric)
    protocol: Protocol = named(request.protocol or config.protocol)
    if request.neighbours is not None:
        protocol = dataclasses.replace(protocol, neighbours=request.neighbours)
    split = request.split or protocol.split
    return Settings(
        metrics=metrics,
        protocol=protocol,
        features=request.features or config.features,
        weights=request.weights,
        allow_unverified=request.allow_unverified,
        reference=request.reference,
        data=data.model_copy(update={"split": split}),
        mirrored=mirrored,
        device=request.device,
        intervals=request.intervals,
        use_cache=request.use_cache,
        engine=request.engine,
    )


def _applicable(metrics: tuple[str, ...], data: DataConfig, request: Request) -> tuple[str, ...]:
    """A preset's metrics, without `modes` for other data than shapes, or where features are asked for."""
    features = request.features or request.reference or request.weights
    if _objects(data) == 1 and not features:
        return metrics
    return tuple(metric for metric in metrics if metric != "modes") or ("fid",)


def _objects(data: DataConfig) -> int | None:
    return data.shapes.objects if data.source == "shapes" and data.channels != 1 else None
