"""Scores of each class by itself: its generated images against the real images of the class.

The images are those of the one pass over all images, so that only the real images of each class are measured
in addition; their statistics are kept in the cache like those of all images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from gantx.data.prepare import Prepared
from gantx.errors import DataError, UsageError
from gantx.evaluation.feature_scores import DC_K, FeatureScores
from gantx.evaluation.reference import Reference
from gantx.evaluation.results import ClassResult, hash_of
from gantx.evaluation.scores import SCORES_OF, Score, name_of
from gantx.runtime.activity import unnoticed

PER_CLASS = ("fid", "kid", "pr", "dc", "modes")  # metrics that say something of a single class
FEW_IN_CLASS = 100  # images; with fewer, any score of a class is mostly noise
_LEAST = {"fid": 2, "kid": 2, "pr": DC_K + 1, "dc": DC_K + 1}  # images on either side
_NAMED = 3  # classes that a warning names


@dataclass(frozen=True)
class RealClass:
    """The real images of one class of a generator.

    Attributes:
        name: of the class.
        number: its label in the set of real images; None if the set has no such class.
        count: real images.
        reference: loads their statistics, which take megabytes for each class; None if no metric needs them
            or there are too few images.
    """

    name: str
    number: int | None
    count: int
    reference: Callable[[], Reference] | None = None


@dataclass(frozen=True)
class Measured:
    """What one pass over the generated images found, for each image, on the CPU.

    Attributes:
        labels: int64 [N].
        features: float32 [N, D]; None without a feature network.
        modes: the classified mode, int64 [N], -1 for none; None without the metric `modes`.
    """

    labels: Tensor
    features: Tensor | None
    modes: Tensor | None


def numbers_in(prepared: Prepared, names: Sequence[str], where: str) -> list[int | None]:
    """The labels in a set of real images of the classes of a generator: those of the same names.

    Classes that are only numbered have the same numbers in a set of as many classes.

    Args:
        prepared: the real images.
        names: of the classes of the generator, in the order of its labels.
        where: the set, for messages.

    Returns:
        One for each name; None for a class that the set does not have.

    Raises:
        DataError: the set has no labels.
        UsageError: it has none of these classes.
    """
    if prepared.labels is None:
        raise DataError(
            f"{where} has no labels, so its images cannot be told by class: put the images of each class "
            "into a folder of their own, or add dataset.json or labels.csv"
        )
    known = {name: number for number, name in enumerate(prepared.class_names)}
    found = [known.get(name) for name in names]
    if any(number is not None for number in found):
        return found
    if len(names) == len(known) and all(name == str(label) for label, name in enumerate(names)):
        return list(range(len(names)))
    raise UsageError(
        f"{where} has images of {_some(prepared.class_names)}, but not of {_some(names)}: name real images "
        "of these classes with --data"
    )


def real_classes(
    prepared: Prepared,
    names: Sequence[str],
    where: str,
    measure: Callable[[int, int], Callable[[], Reference]] | None,
) -> tuple[RealClass, ...]:
    """The real images of each class, with their statistics.

    Args:
        prepared: the real images.
        names: of the classes of the generator, in the order of its labels.
        where: the set, for messages.
        measure: makes the statistics of the images of a label, given it and the number of images measured
            before, and returns what loads them; None if no metric needs them.

    Raises:
        DataError, UsageError: as `numbers_in`.
    """
    found, before = [], 0
    for name, number in zip(names, numbers_in(prepared, names, where), strict=True):
        assert prepared.labels is not None
        count = 0 if number is None else int(np.count_nonzero(prepared.labels == number))
        known = None
        if number is not None and measure is not None and count >= min(_LEAST.values()):
            known = measure(number, before)
        before += count
        found.append(RealClass(name, number, count, known))
    return tuple(found)


def score_classes(
    real: Sequence[RealClass],
    measured: Measured,
    metrics: Sequence[str],
    computed: FeatureScores | None,
    protocol: Mapping[str, Any],
) -> tuple[tuple[ClassResult, ...], list[str]]:
    """The scores of each class, without intervals, and the warnings about them.

    Args:
        real: the real images of each class, by the labels of the generator.
        measured: the generated images.
        metrics: names out of `PER_CLASS`.
        computed: computes the scores of features; None where no metric needs it.
        protocol: of the scores of all images.
    """
    results = []
    for label, known in enumerate(real):
        rows = measured.labels == label
        count = int(rows.sum())
        scores: list[Score] = []
        reference = known.reference() if known.reference is not None else None
        if computed is not None and measured.features is not None:
            scores += _of_features(computed, metrics, measured.features[rows], reference, known.count)
        if "modes" in metrics and measured.modes is not None:
            scores += _of_modes(measured.modes[rows], known.number)
        stamp = {
            **protocol,
            "class": known.name,
            "n_gen": count,
            "n_ref": known.count,
            "reference": reference.stamp if reference is not None else None,
        }
        results.append(ClassResult(known.name, count, known.count, tuple(scores), hash_of(stamp)))
    return tuple(results), _warnings(results, metrics, computed)


def _of_features(
    computed: FeatureScores,
    metrics: Sequence[str],
    features: Tensor,
    reference: Reference | None,
    count: int,
) -> list[Score]:
    """The scores of a class by its features against `count` real images; None with too few on a side."""
    fewest = min(len(features), count)
    wanted = [metric for metric in metrics if metric in _LEAST]
    if "fid" in wanted and "kid" not in wanted:
        wanted.insert(wanted.index("fid") + 1, "kid")  # as beside the overall distance
    enough = tuple(metric for metric in wanted if fewest >= _LEAST[metric])
    alone = dataclasses.replace(computed, metrics=enough, with_intervals=False, working=unnoticed)
    found = {score.name: score for score in alone.of(features, reference)} if enough else {}
    scores = []
    for metric in wanted:
        for name in (name_of(score, computed.network.name) for score in SCORES_OF[metric]):
            missing = Score(name, None, note=f"{fewest} images, but at least {_LEAST[metric]} are needed")
            scores.append(found.get(name, missing))
    return scores


def _of_modes(modes: Tensor, number: int | None) -> list[Score]:
    """Of the images of a class: how many can be classified, and how many of these show the class."""
    confident = modes >= 0
    total, certain = len(modes), int(confident.sum())
    right = None if number is None or not certain else float((modes == number).sum()) / certain
    return [
        Score("confident", float(confident.double().mean()) if total else None),
        Score("as_asked", right, note="share of these that show the class that was asked for"),
    ]


def _warnings(
    results: Sequence[ClassResult], metrics: Sequence[str], computed: FeatureScores | None
) -> list[str]:
    found = []
    missing = [of_class.name for of_class in results if not of_class.n_ref]
    if missing:
        found.append(f"there are no real images of the class{'es' * (len(missing) > 1)} {_some(missing)}")
    if computed is None:
        return found
    scored = [of_class for of_class in results if of_class.n_ref]
    for count, kind, advice in (
        ("n_ref", "real", "their scores are mostly noise"),
        ("n_gen", "generated", "take more with --num"),
    ):
        few = [of_class.name for of_class in scored if getattr(of_class, count) < FEW_IN_CLASS]
        if few:
            has = "has" if len(few) == 1 else "have"
            found.append(
                f"{_which(few, len(results))} {has} fewer than {FEW_IN_CLASS} {kind} images: {advice}"
            )
    dim = computed.network.dim
    flat = [of_class.name for of_class in scored if min(of_class.n_ref, of_class.n_gen) <= dim]
    if flat and "fid" in metrics:
        found.append(
            f"the images of {_which(flat, len(results))} do not span the {dim:,} features: compare such a "
            "Fréchet distance only with one of as many images, and go by KID"
        )
    return found


def _which(names: Sequence[str], total: int) -> str:
    return f"all {total} classes" if len(names) == total > _NAMED else _some(names)


def _some(names: Sequence[str]) -> str:
    """The first few names: "cat, dog, horse and 7 more"."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
