"""Which class of a conditional generator an image belongs to: the one whose images come closest to it.

Of many classes, those whose random images come closest are tried. Each is projected into z for a few steps:
styles could leave the class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gantx.generation import sampling
from gantx.generation.labels import with_label
from gantx.generation.projection import Features, Progress, pixel_distance, project
from gantx.models.interfaces import Generator
from gantx.runtime.precision import full_precision
from gantx.runtime.random import Draw, for_seeds

TRIED = 6  # classes that are projected into
_RANDOM, _EACH = 4096, 64  # random images for choosing them: in all, and of a class at most
_SHARE, _LEAST = 8, 10  # a trial has this share of the steps of the projection, and so many at least


@dataclass(frozen=True)
class ClassSearch:
    """The outcome of a search.

    Attributes:
        distances: by label, the mean absolute difference of a pixel in grey levels after a trial; the closest
            class first.
        searched: number of classes that were compared by random images, or tried.
        steps: of each trial.
    """

    distances: dict[int, float]
    searched: int
    steps: int

    @property
    def label(self) -> int:
        """The class that was found."""
        return next(iter(self.distances))


def search_class(
    generator: Generator,
    target: Tensor,
    labels: Sequence[int],
    *,
    device: torch.device,
    steps: int,
    seed: int = 0,
    rate: float = 0.05,
    features: Features | None = None,
    ratio: float = 1.0,
    progress: Progress | None = None,
) -> ClassSearch:
    """Find the class whose images come closest to the target.

    Args:
        generator: a conditional network of `gantx.models`, on `device`, whose parameters require no
            gradients.
        target: as in `project`.
        labels: of the classes to choose from; at least one.
        device: where the generator is.
        steps: of the projection that follows; a trial takes an eighth of them.
        seed: of the first random image.
        rate: as in `project`.
        features: as in `project`.
        ratio: as in `project`.
        progress: receives (done, steps of all trials).

    Raises:
        UsageError: as `project`.
    """
    distinct = list(dict.fromkeys(labels))
    chosen = distinct
    if len(distinct) > TRIED:
        closest = _closest_random(generator, target.to(device), distinct, seed, ratio)
        chosen = [distinct[index] for index in closest.argsort()[:TRIED].tolist()]
    each = max(_LEAST, steps // _SHARE)
    found = {}
    for number, label in enumerate(chosen):

        def shown(done: int, _: int, before: int = number * each) -> None:
            if progress is not None:
                progress(before + done, each * len(chosen))

        found[label] = project(
            with_label(generator, label),
            target,
            device=device,
            space="z",
            steps=each,
            starts=2,
            seed=seed,
            rate=rate,
            features=features,
            ratio=ratio,
            progress=shown,
        ).distance
    by_distance = dict(sorted(found.items(), key=lambda item: item[1]))
    return ClassSearch(by_distance, len(distinct), each)


@torch.no_grad()
@full_precision()
def _closest_random(
    generator: Generator, target: Tensor, labels: Sequence[int], seed: int, ratio: float
) -> Tensor:
    """For each label the least distance of a few random images, which share their latents: [labels]."""
    each = max(2, min(_EACH, _RANDOM // len(labels)))
    wanted = target[None] / 127.5 - 1
    q: Any = for_seeds(
        {"z": Draw("normal", (1, *generator.latent_shape))}, range(seed, seed + each), target.device
    )
    rows = torch.arange(each, device=target.device).repeat(len(labels))
    of_rows = torch.tensor(labels, device=target.device).repeat_interleave(each)
    distances = [
        pixel_distance(sampling.crop(generator(q["z"][part], None, of_part), ratio), wanted)
        for part, of_part in zip(rows.split(sampling.BATCH), of_rows.split(sampling.BATCH), strict=True)
    ]
    return torch.cat(distances).view(len(labels), each).amin(1)
