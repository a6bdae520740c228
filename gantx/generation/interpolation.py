"""Paths through latent space, painted frame by frame.

Notable in it:
- a path is a sequence of points, each between two seeds; nothing of a frame is kept when the next is made,
  so that memory does not depend on the length
- latents z are Gaussian: a straight line runs through a middle where no Gaussian is, so the path is an arc
  (slerp, White, arXiv 1609.04468); styles w have no such shell, there it is a straight line
- the generator's noise is Gaussian too and follows an arc of its own, so that nothing jumps
- the frame of a key seed is the image of that seed, to the last bit
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from gantx.errors import UsageError
from gantx.generation import sampling
from gantx.generation.batches import in_tiles
from gantx.generation.latents import spec_of_one, whole_number
from gantx.generation.truncation import parse_truncation, require_styles, truncate
from gantx.models import interfaces
from gantx.runtime.random import for_seeds

Space = Literal["z", "w"]
Easing = Literal["linear", "smooth"]
Value = TypeVar("Value")


class Sweep(NamedTuple):
    """Truncation along a path, see `sampling.truncate`.

    Attributes:
        first: psi of the first frame.
        last: psi of the last frame; in a loop that of the middle, whence it returns.
        cutoff: only the first so many layers, or None for all.
    """

    first: float
    last: float
    cutoff: int | None = None


class Point(NamedTuple):
    """A place on a path.

    Attributes:
        start: seed before it.
        end: seed after it.
        place: how far on the way from the one to the other, 0 to 1.
        psi: truncation there; 1 for none.
    """

    start: int
    end: int
    place: float
    psi: float


@dataclass(frozen=True)
class Walk:
    """Several paths side by side, through the same number of seeds in the same number of frames.

    Attributes:
        seeds: what each path passes, [paths][seeds].
        frames: of the whole walk, first and last included.
        space: arcs between latents (z) or lines between styles (w).
        loop: return to the first seed; the last frame equals the first.
        easing: `linear`, or `smooth` to slow down at every seed.
        truncation: of styles, or None.

    Raises:
        UsageError: there are no seeds, paths of different lengths, fewer frames than seeds to pass, or
            numbers that are not whole.
    """

    seeds: tuple[tuple[int, ...], ...]
    frames: int
    space: Space = "z"
    loop: bool = False
    easing: Easing = "linear"
    truncation: Sweep | None = None

    def __post_init__(self) -> None:
        if not self.seeds or not all(self.seeds):
            raise UsageError("a walk needs at least one seed")
        if len({len(path) for path in self.seeds}) > 1:
            raise UsageError("walks side by side pass the same number of seeds: give each as many")
        for seed in itertools.chain(*self.seeds):
            whole_number(seed, "seed")
        whole_number(self.frames, "frames", 1)
        if self.frames < self.legs + 1:
            raise UsageError(
                f"{self.frames} frames cannot pass {self.legs + 1} seeds: give at least {self.legs + 1}"
            )

    @property
    def legs(self) -> int:
        """Stretches from one seed to the next."""
        count = len(self.seeds[0])
        return count if self.loop and count > 1 else count - 1

    def keys(self) -> list[int]:
        """Frames in which a seed is reached, the return of a loop included."""
        return [round(leg * (self.frames - 1) / max(1, self.legs)) for leg in range(self.legs + 1)]

    def points(self) -> Iterator[Point]:
        """The points of all paths, frame by frame."""
        keys = self.keys()
        leg = 0
        for frame in range(self.frames):
            while leg + 1 < self.legs and frame >= keys[leg + 1]:
                leg += 1
            place = 0.0
            if self.legs:
                place = eased(self.easing, (frame - keys[leg]) / (keys[leg + 1] - keys[leg]))
            psi = self._psi(frame / max(1, self.frames - 1))
            for seeds in self.seeds:
                if place == 1.0:  # a seed as the end of one leg is the same as the start of another
                    seed = seeds[(leg + 1) % len(seeds)]
                    yield Point(seed, seed, 0.0, psi)
                else:
                    yield Point(seeds[leg], seeds[(leg + 1) % len(seeds)], place, psi)

    def _psi(self, progress: float) -> float:
        if self.truncation is None:
            return 1.0
        share = 1 - abs(2 * progress - 1) if self.loop else progress
        return (1 - share) * self.truncation.first + share * self.truncation.last

    def text(self) -> dict[str, str]:
        """What a file of this walk says about it."""
        text = {
            "gantx:walk": ";".join(",".join(map(str, seeds)) for seeds in self.seeds),
            "gantx:frames": str(self.frames),
            "gantx:space": self.space,
            "gantx:easing": self.easing,
            "gantx:loop": str(self.loop).lower(),
        }
        if self.truncation is not None:
            text["gantx:truncation"] = f"{self.truncation.first!r}:{self.truncation.last!r}"
            if self.truncation.cutoff is not None:
                text["gantx:cutoff"] = str(self.truncation.cutoff)
        return text


def plan(
    generator: Any,
    seeds: Sequence[int],
    frames: int,
    *,
    paths: int = 1,
    space: str | None = None,
    loop: bool = False,
    easing: str = "linear",
    truncation: Sweep | None = None,
) -> Walk:
    """A walk that this generator can go.

    Args:
        generator: a network of `gantx.models`.
        seeds: of all paths: the first path's, then the second's, ….
        frames: of the whole walk.
        paths: how many run side by side; divides the number of seeds.
        space: `z` or `w`; None for w where the network has styles.
        loop: return to the first seed.
        easing: `linear` or `smooth`.
        truncation: of styles.

    Raises:
        UsageError: one of these makes no sense, or the network has no styles.
    """
    if easing not in ("linear", "smooth"):
        raise UsageError(f"no easing '{easing}': use linear or smooth")
    if space not in (None, "z", "w"):
        raise UsageError(f"no space '{space}': use z or w")
    if space == "w":
        require_styles(generator, "a walk in w")
    if truncation is not None:
        require_styles(generator, "truncation")
    whole_number(paths, "paths", 1)
    if len(seeds) % paths:
        raise UsageError(f"{len(seeds)} seeds cannot be shared by {paths} walks: give a multiple of {paths}")
    count = len(seeds) // paths
    of_paths = tuple(tuple(seeds[path * count : (path + 1) * count]) for path in range(paths))
    chosen: Space = "z" if space == "z" or not isinstance(generator, interfaces.StyleBased) else "w"
    return Walk(of_paths, frames, chosen, loop, "smooth" if easing == "smooth" else "linear", truncation)


def parse_sweep(text: str | None, cutoff: int | None = None) -> Sweep | None:
    """Read `0.7` or `0:1` as truncation along a path; UsageError when it is neither."""
    if text is None:
        parse_truncation(None, cutoff)
        return None
    first, colon, last = text.partition(":")
    try:
        psi = float(first), float(last if colon else first)
    except ValueError:
        raise UsageError(f"truncation '{text}': write a number, or two for a sweep such as 0:1") from None
    for number in psi:
        parse_truncation(number)
    return Sweep(*psi, cutoff)


@torch.no_grad()
def generate(
    generator: Any, walk: Walk, *, batch: int, device: torch.device, ratio: float = 1.0
) -> Iterator[Tensor]:
    """Paint a walk, frame by frame.

    Args:
        generator: a network of `gantx.models`, on `device`.
        walk: of `plan`.
        batch: images computed at once, rounded up to whole tiles; frames share batches.
        device: where the generator is.
        ratio: height / width to which images are cropped; see `sampling.crop`.

    Yields:
        uint8 [paths, 3, H, W] on the CPU for every frame.
    """
    paths = len(walk.seeds)
    waiting: list[Tensor] = []
    for filled, count in in_tiles(walk.points(), batch):
        images = sampling.crop(_render(generator, walk, filled, device)[:count], ratio)
        waiting += sampling.quantise(images).cpu()
        while len(waiting) >= paths:
            yield torch.stack(waiting[:paths])
            del waiting[:paths]


def _render(generator: Any, walk: Walk, points: Sequence[Point], device: torch.device) -> Tensor:
    """Float images [B, 3, H, W] of B points."""
    seeds = sorted({seed for point in points for seed in (point.start, point.end)})  # mostly two
    q: Any = for_seeds(spec_of_one(generator), seeds, device)
    row = {seed: index for index, seed in enumerate(seeds)}
    starts = torch.tensor([row[point.start] for point in points], device=device)
    ends = torch.tensor([row[point.end] for point in points], device=device)
    places = torch.tensor([point.place for point in points], device=device)
    noise = _between(q["noise"], starts, ends, places)
    if walk.space == "z" and walk.truncation is None:
        images: Tensor = generator(_between(q["z"], starts, ends, places), noise)
        return images
    if walk.space == "z":
        ws = generator.mapping(_between(q["z"], starts, ends, places), noise=noise)
    else:
        first, second = (generator.mapping(q["z"][rows], noise=noise) for rows in (starts, ends))
        ws = torch.lerp(first, second, places.view(-1, *[1] * (first.ndim - 1)).to(first))
    if walk.truncation is not None:
        psi = torch.tensor([point.psi for point in points], device=device)
        ws = truncate(generator, ws, psi, walk.truncation.cutoff)
    images = generator.synthesis(ws, noise)
    return images


def _between(draws: Any, starts: Tensor, ends: Tensor, places: Tensor) -> Any:
    """Normal draws [seeds, ...], nested or not, on the arcs between rows `starts` and `ends`."""
    if isinstance(draws, dict):
        return {name: _between(part, starts, ends, places) for name, part in draws.items()}
    return slerp(draws[starts], draws[ends], places)


def slerp(first: Tensor, second: Tensor, places: Tensor) -> Tensor:
    """Points on the arcs between Gaussian vectors, lengths in between included.

    Args:
        first: [B, ...]; everything but B is one vector.
        second: [B, ...].
        places: [B] from 0 to 1; exactly 0 returns the bits of `first`, exactly 1 those of `second`.
    """
    a, b = first.flatten(1), second.flatten(1)  # [B, n]
    angles = torch.cosine_similarity(a, b).clamp(-1, 1).arccos()
    sines = angles.sin()
    straight = sines < 1e-3  # as good as the same direction: no arc is defined by it
    sines = sines.where(~straight, 1.0)
    weight_a = (((1 - places) * angles).sin() / sines).where(~straight, 1 - places)
    weight_b = ((places * angles).sin() / sines).where(~straight, places)
    return (weight_a[:, None] * a + weight_b[:, None] * b).view_as(first)


def eased(easing: Easing, place: float) -> float:
    """Where one is after a share `place` of the time between two seeds."""
    return place if easing == "linear" else place * place * (3 - 2 * place)
