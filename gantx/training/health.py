"""The health of a run: whether it explodes or collapses, its discriminator has won, or its average is dead.

Each line of metrics is assessed with the lines before it, and nothing else: a resumed run, which reads its
lines back, comes to the same conclusions. Limits are wide, because a warning about a healthy run is worse
than a late one.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gantx.config.schema import RunConfig
from gantx.errors import DivergedError

Kind = Literal["explosion", "collapse", "discriminator_won", "dead_average"]

IMAGES = 16  # of seeds 0 to 15, of which the diversity is measured
HISTORY = 20  # reports whose median is the usual size of a gradient
LEAST_HISTORY = 4  # reports before a gradient can be called unusual
EXPLODED = 1000.0  # times the usual gradient
RISEN, COLLAPSED = (
    0.2,
    0.03,
)  # of the diversity of real images: it was above the first, and is below the second
WON = 0.02  # a loss of D, of those that end at zero, of which nothing is left to learn
DEAD = 0.05  # of the diversity of the generator, which its average should have too
PATIENCE = 3  # consecutive reports of the same, except for an explosion
FATAL: tuple[Kind, ...] = ("explosion", "collapse")  # from which training does not recover by itself

_ENDS_AT_ZERO = (
    "hinge",
    "lsgan",
    "non-saturating",
    "relativistic",
)  # the losses of D that have a minimum of 0


@dataclass(frozen=True)
class Finding:
    """What is wrong.

    Attributes:
        kind: of trouble.
        sentence: what is seen, and what helps.
    """

    kind: Kind
    sentence: str


class Unhealthy(DivergedError):
    """The run shall go back, because it will not recover.

    Attributes:
        images: checkpoints of fewer images are healthy.
    """

    def __init__(self, finding: Finding, images: int) -> None:
        super().__init__(finding.sentence)
        self.images = images


def diversity(images: Tensor) -> tuple[float, float]:
    """How much images differ: mean standard deviation of their pixels, and of their features, over the batch.

    Features are the colours and the strength of edges at 4×4 positions: they differ little between images
    that show the same at shifted places, or noise.

    Args:
        images: uint8 [n, 3, H, W].
    """
    values = images.float() / 127.5 - 1
    edges = (values[..., 1:, :] - values[..., :-1, :]).abs().mean(1, keepdim=True)
    features = torch.cat([F.adaptive_avg_pool2d(part, 4) for part in (values, edges)], 1)
    both = torch.stack([part.std(0, correction=0).mean() for part in (values, features)])
    pixel, feature = both.tolist()
    return pixel, feature


def figures(real: tuple[float, float], generator: Tensor, average: Tensor) -> dict[str, float]:
    """The figures of a report, relative to real images, under names for metrics.jsonl.

    Args:
        real: `diversity` of real images.
        generator: images of fixed seeds by the generator, uint8 [n, 3, H, W].
        average: images of the same seeds by its average.
    """
    found = {}
    for name, images in (("generator", generator), ("average", average)):
        for measure, value, of_real in zip(("pixel", "feature"), diversity(images), real, strict=True):
            found[f"health/{name}_{measure}_diversity"] = float(f"{value / max(of_real, 1e-6):.4g}")
    return found


class Health:
    """Assesses reports one after the other.

    Args:
        config: of the run.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._norms: dict[str, deque[float]] = {}
        self._risen = False
        self._seen: dict[Kind, int] = {}  # consecutive reports with this trouble
        self._bad_since: dict[Kind, int] = {}  # images at the first of them

    def observe(self, line: Mapping[str, Any]) -> list[Finding]:
        """Assess a line of metrics; a trouble is found once, when it has lasted, until it has passed.

        Args:
            line: of metrics.jsonl; figures that are absent, as in lines of earlier versions, are left out.
        """
        troubles: dict[Kind, str | None] = {
            "explosion": self._explosion(line),
            "collapse": self._collapse(line),
            "discriminator_won": self._won(line),
            "dead_average": self._dead(line),
        }
        found = []
        for kind, sentence in troubles.items():
            if sentence is None:
                self._seen.pop(kind, None)
                self._bad_since.pop(kind, None)
                continue
            self._seen[kind] = self._seen.get(kind, 0) + 1
            self._bad_since.setdefault(kind, int(line["images"]))
            if self._seen[kind] == (1 if kind == "explosion" else PATIENCE):
                found.append(Finding(kind, sentence))
        return found

    def healthy_until(self, kind: Kind) -> int:
        """Images at the first report that showed this trouble: checkpoints before it are healthy."""
        return self._bad_since.get(kind, 0)

    def _explosion(self, line: Mapping[str, Any]) -> str | None:
        worst: tuple[float, str] | None = None
        for network in ("generator", "discriminator"):
            if (norm := _number(line, f"{network}/gradient_norm")) is None:
                continue
            before = self._norms.setdefault(network, deque(maxlen=HISTORY))
            if len(before) >= LEAST_HISTORY and norm > EXPLODED * (usual := statistics.median(before)) > 0:
                worst = max(worst or (0.0, ""), (norm / usual, network))
            else:  # so that an explosion does not become the usual
                before.append(norm)
        if worst is None:
            return None
        factor, network = worst
        return (
            f"the gradient of the {network} is {factor:,.0f} times its usual size: lower "
            f"optimizer.{network}.lr, or set optimizer.{network}.clip_norm"
        )

    def _collapse(self, line: Mapping[str, Any]) -> str | None:
        shares = [_number(line, f"health/generator_{measure}_diversity") for measure in ("pixel", "feature")]
        pixel, feature = shares
        if pixel is None or feature is None:
            return None
        self._risen |= min(pixel, feature) > RISEN
        if not self._risen or min(pixel, feature) > COLLAPSED:
            return None
        what = "pixels" if pixel <= feature else "features"
        return (
            f"the generator has collapsed: its images differ by {100 * min(pixel, feature):.2g} % of what "
            f"real images do in their {what}; go on from an earlier checkpoint with a lower learning rate "
            "or a stronger penalty"
        )

    def _won(self, line: Mapping[str, Any]) -> str | None:
        loss = _number(line, "discriminator/loss")
        if self._config.objective.loss not in _ENDS_AT_ZERO or loss is None or abs(loss) > WON:
            return None
        return (
            f"the discriminator has won: its loss is {loss:.2g}, so the generator learns little from it; "
            "lower optimizer.discriminator.lr, augment more, or raise the weight of its penalty"
        )

    def _dead(self, line: Mapping[str, Any]) -> str | None:
        of_average = _number(line, "health/average_pixel_diversity")
        of_generator = _number(line, "health/generator_pixel_diversity")
        if of_average is None or of_generator is None:
            return None
        if of_generator <= RISEN or of_average > DEAD * of_generator:
            return None
        if line["images"] < 5 * self._memory_of_average():
            return None
        return (
            "the average of the generator is dead: its images hardly differ, while those of the generator "
            "do; lower ema.beta or ema.half_life_kimg, with which it follows sooner"
        )

    def _memory_of_average(self) -> float:
        """Images after which the average has mostly forgotten what it was; at most half a run."""
        ema, training = self._config.ema, self._config.training
        if ema.kind == "half-life":
            images = ema.half_life_kimg * 1000
        else:
            images = training.batch / max(1 - ema.beta, 1e-9)
        most = training.kimg * 1000 / 10
        return ema.start_kimg * 1000 / 5 + min(most, images * self._config.objective.n_critic)


def _number(line: Mapping[str, Any], name: str) -> float | None:
    value = line.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
