"""Classes in training: those of a run, from its data, and the labels of generated images, which are drawn.

A generated image has a class in the proportions of the data, from a random number that its phase declares. A
class is withheld from both networks with probability `conditioning.dropout`, also by such a number: the label
is then the number of classes, which stands for an embedding of its own. (The proportions are those of
StyleGAN2's code; withheld classes are ours, after classifier-free guidance, arXiv 2207.12598.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from gantx.config import presets
from gantx.config.schema import ConditioningConfig, RunConfig
from gantx.data.labels import counts
from gantx.data.prepare import Prepared, without_labels
from gantx.errors import UsageError
from gantx.runtime.random import Draw, Spec

ASSUMED = 10  # classes of `auto` where no data is read: for estimates of time and memory


@dataclass(frozen=True)
class LabelDraws:
    """Draws labels for generated images, and withholds those of real ones.

    Attributes:
        classes: number of classes.
        dropout: probability that a class is withheld.
        bounds: float32 [classes - 1]: the sums of the proportions of the first 1, 2, ... classes.
    """

    classes: int
    dropout: float
    bounds: Tensor

    def spec(self, batch: int) -> Spec:
        """The draws of the labels of generated images."""
        return {"class": Draw("uniform", (batch,)), **self.withheld_spec(batch)}

    def withheld_spec(self, batch: int) -> Spec:
        """The draws that withhold classes; {} if none are."""
        return {"withheld": Draw("uniform", (batch,))} if self.dropout else {}

    def draw(self, q: dict[str, Tensor]) -> Tensor:
        """Labels [B] of generated images, with the draws of `spec`."""
        return self.withhold((q["class"][:, None] >= self.bounds).sum(1), q)

    def withhold(self, labels: Tensor, q: dict[str, Tensor]) -> Tensor:
        """Labels [B], some of them withheld, with the draws of `withheld_spec`."""
        if not self.dropout:
            return labels
        return torch.where(q["withheld"] < self.dropout, self.classes, labels)


def label_draws(conditioning: ConditioningConfig, device: torch.device) -> LabelDraws | None:
    """The labels of a run; None for an unconditional one."""
    if not isinstance(conditioning.classes, int):
        return None
    numbers = conditioning.counts or (1,) * conditioning.classes
    sums = list(accumulate(numbers))
    bounds = torch.tensor([part / sums[-1] for part in sums[:-1]], dtype=torch.float32, device=device)
    return LabelDraws(conditioning.classes, conditioning.dropout, bounds)


def with_classes(settings: RunConfig, prepared: Prepared, log: Callable[[str], None]) -> RunConfig:
    """The configuration of a new run with the classes of its data.

    Args:
        settings: the configuration.
        prepared: the data, with labels if the run is conditional.
        log: is told if labels are not used.

    Raises:
        DataError: a conditional run has data without labels.
        UsageError: it has another number of classes.
    """
    wanted, source = settings.conditioning.classes, settings.data.source
    if wanted is None:
        if prepared.labels is not None or prepared.unread_labels:
            what = prepared.unread_labels or f"{len(prepared.class_names):,} classes"
            log(f"data: its labels ({what}) are not used; conditioning.classes=auto trains with them")
        return settings
    if prepared.labels is None:
        raise without_labels(settings.data)
    names = prepared.class_names
    if wanted not in ("auto", len(names)):
        raise UsageError(
            f"conditioning.classes: {wanted}, but {source} has {len(names)} classes; set it to auto"
        )
    of_data = {"classes": len(names), "names": list(names), "counts": counts(prepared.labels, len(names))}
    return presets.load(base=settings, settings={"conditioning": of_data})


def with_assumed_classes(settings: RunConfig) -> RunConfig:
    """The configuration with a number of classes in place of `auto`, for a run without its data."""
    if settings.conditioning.classes != "auto":
        return settings
    return presets.load(base=settings, settings={"conditioning.classes": ASSUMED})
