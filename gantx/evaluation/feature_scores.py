"""Scores of the features of a set of images against the statistics of real images."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gantx.evaluation import intervals
from gantx.evaluation.features import FeatureNetwork
from gantx.evaluation.frechet import Gaussian
from gantx.evaluation.inception_score import inception_score
from gantx.evaluation.kernel_distance import kernel_distances
from gantx.evaluation.neighbours import neighbours
from gantx.evaluation.protocols import Protocol
from gantx.evaluation.reference import Reference
from gantx.evaluation.scores import Score, name_of
from gantx.runtime.activity import Working, unnoticed

KID_SUBSETS, KID_SIZE = 100, 1000
PR_K, DC_K = 3, 5
SEED = 0  # of the subsets of KID and of the images that enter the neighbour metrics


@dataclass(frozen=True)
class FeatureScores:
    """Computes scores of features.

    Attributes:
        metrics: names out of `METRICS`; `modes` is left out.
        protocol: fixes everything that affects a score.
        network: that computed the features.
        with_intervals: compute 95 % intervals too.
        working: shows which score is being computed.
    """

    metrics: tuple[str, ...]
    protocol: Protocol
    network: FeatureNetwork
    with_intervals: bool = True
    working: Working = unnoticed

    def of(
        self, features: Tensor, reference: Reference | None = None, logits: Tensor | None = None
    ) -> list[Score]:
        """The scores of a set of images.

        Args:
            features: float32 [N, D] of the images, on the CPU.
            reference: of the real images; None only if no metric needs it.
            logits: class scores [N, C], for the Inception Score.

        Raises:
            DataError: there are too few images for a metric.
        """
        wanted, scores = self.metrics, list[Score]()
        real = None if reference is None else reference.features
        if "fid" in wanted:
            assert reference is not None
            with self._computing("the Fréchet distance"):
                scores.append(self._frechet(features, reference))
        if "kid" in wanted or ("fid" in wanted and real is not None):
            assert real is not None
            with self._computing("the kernel distance"):
                scores.append(self._kernel(features, real))
        if "is" in wanted:
            assert logits is not None
            with self._computing("the Inception Score"):
                scores.append(self._inception_score(logits))
        if "pr" in wanted or "dc" in wanted:
            assert real is not None
            named = {"pr": "precision and recall", "dc": "density and coverage"}
            with self._computing(", ".join(text for metric, text in named.items() if metric in wanted)):
                scores += self._neighbours(features, real)
        return scores

    def _computing(self, what: str) -> AbstractContextManager[None]:
        return self.working(f"computing {what}{' with 95 % intervals' * self.with_intervals}")

    def _frechet(self, fake: Tensor, known: Reference) -> Score:
        ddof = self.protocol.ddof
        kept = known.features
        if kept is not None and len(kept) == known.count and len(kept) <= fake.shape[1]:
            real = Gaussian.of_features(kept, ddof)  # exact without the covariance, and faster
        else:
            real = Gaussian.of_moments(known.mean, known.covariance_by(ddof))
        value = real.distance(Gaussian.of_features(fake, ddof))
        if not self.with_intervals:
            return self._score("fid", value)
        found = intervals.frechet(known.mean, known.covariance_by(ddof), fake, ddof=ddof)
        if found is None:
            return self._score("fid", value)
        details: dict[str, float | int | str] = {}
        if found.limit is not None and found.at_limit is not None:
            details = {
                "limit": found.limit,
                "limit_low": found.at_limit.low,
                "limit_high": found.at_limit.high,
            }
        return self._score("fid", value, found.at_count, details)

    def _kernel(self, fake: Tensor, real: Tensor) -> Score:
        values = kernel_distances(real, fake, subsets=KID_SUBSETS, size=KID_SIZE, seed=SEED)
        interval = intervals.kernel(real, fake, values, seed=SEED) if self.with_intervals else None
        details = {
            "subsets": KID_SUBSETS,
            "subset_size": min(KID_SIZE, len(real), len(fake)),
            "n_ref": len(real),
        }
        return self._score("kid", float(values.mean()), interval, details)

    def _inception_score(self, logits: Tensor) -> Score:
        splits = self.protocol.is_splits
        value, deviation = inception_score(logits, splits)
        interval = None
        if self.with_intervals:
            interval = intervals.inception_score(logits, splits=splits, seed=SEED)
        return self._score("is", value, interval, {"splits": splits, "std": deviation})

    def _neighbours(self, fake: Tensor, real: Tensor) -> list[Score]:
        limit = self.protocol.neighbours
        real, fake = _subset(real, limit), _subset(fake, limit)
        found = neighbours(real=real, fake=fake, pr_k=PR_K, dc_k=DC_K)
        counts = {"n_gen": len(fake), "n_ref": len(real)}
        scores = []
        for metric, name, values, k in (
            ("pr", "precision", found.precise, PR_K),
            ("pr", "recall", found.recalled, PR_K),
            ("dc", "density", found.density, DC_K),
            ("dc", "coverage", found.covered, DC_K),
        ):
            if metric in self.metrics:
                interval = None
                if self.with_intervals:
                    shares = values.dtype == torch.bool
                    interval = intervals.share(values) if shares else intervals.mean(values, seed=SEED)
                scores.append(self._score(name, float(values.double().mean()), interval, {"k": k, **counts}))
        return scores

    def _score(
        self,
        name: str,
        value: float,
        interval: intervals.Interval | None = None,
        details: Mapping[str, float | int | str] | None = None,
    ) -> Score:
        low, high = interval or (None, None)
        note = "" if self.network.verified else "unverified weights"
        described = {**(details or {}), **({"interval": intervals.METHODS[name]} if interval else {})}
        return Score(name_of(name, self.network.name), value, low, high, note, described)


def _subset(features: Tensor, limit: int) -> Tensor:
    """At most `limit` rows, chosen at random because a set may be ordered by class."""
    if len(features) <= limit:
        return features
    chosen = np.sort(np.random.default_rng(SEED).permutation(len(features))[:limit])
    return features[torch.from_numpy(chosen)]
