"""Interpolation: walks through latent space, generated frame by frame.

Notable in it:
- a path is a sequence of points, each between two seeds; frames are yielded one by one, so memory does not
  depend on their number
- the norm of Gaussian latents z concentrates around sqrt(n), and a straight line would leave that shell, so z
  is interpolated spherically (slerp, White, arXiv 1609.04468); styles w are interpolated linearly
- the noise of the generator is Gaussian too and is interpolated spherically
- a walk of a conditional model may lead through classes too, at its own pace: between two classes their
  embeddings are interpolated and normalised, as those of the classes are
- the frame at a key seed, and class, is bitwise equal to the image of that seed
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from gantx.errors import UsageError
from gantx.generation import sampling
from gantx.generation.latents import require_labels, spec_of_one, whole_number
from gantx.generation.sampling import in_tiles
from gantx.generation.truncation import parse_truncation, require_styles, truncate
from gantx.models import interfaces
from gantx.runtime.precision import full_precision
from gantx.runtime.random import for_seeds

Space = Literal["z", "w"]
Easing = Literal["linear", "smooth"]
Value = TypeVar("Value")


class Sweep(NamedTuple):
    """Truncation along a path, see `truncation.truncate`.

    Attributes:
        first: psi of the first frame.
        last: psi of the last frame; in a loop of the middle frame, after which psi returns to `first`.
        cutoff: number of leading layers that are truncated, or None for all.
    """

    first: float
    last: float
    cutoff: int | None = None


class Leg(NamedTuple):
    """A point between two keys, by their positions.

    Attributes:
        start: the key before it.
        end: the key after it.
        weight: interpolation weight of `end`, from 0 to below 1.
    """

    start: int
    end: int
    weight: float


class Point(NamedTuple):
    """A point on a path.

    Attributes:
        start: the seed before it.
        end: the seed after it.
        weight: interpolation weight of `end`, 0 to 1.
        psi: truncation at this point; 1 for none.
        classes: the labels before and after it, and the weight of the latter; None without classes.
    """

    start: int
    end: int
    weight: float
    psi: float
    classes: Leg | None = None


@dataclass(frozen=True)
class Walk:
    """Several parallel paths, through the same number of seeds in the same number of frames.

    Attributes:
        seeds: the key seeds of each path, [paths][seeds].
        frames: number of frames of the whole walk, first and last included.
        space: interpolate latents spherically (z) or styles linearly (w).
        loop: return to the first seed; the last frame equals the first.
        easing: `linear`, or `smooth` to slow down at every seed.
        truncation: of the styles, or None.
        classes: labels that all paths lead through at the same time, evenly spaced; one to stay within it,
            () for an unconditional generator.

    Raises:
        UsageError: there are no seeds, the paths have different lengths, there are fewer frames than seeds
            or classes, or a number is not an integer.
    """

    seeds: tuple[tuple[int, ...], ...]
    frames: int
    space: Space = "z"
    loop: bool = False
    easing: Easing = "linear"
    truncation: Sweep | None = None
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.seeds or not all(self.seeds):
            raise UsageError("a walk needs at least one seed")
        if len({len(path) for path in self.seeds}) > 1:
            raise UsageError("parallel walks need the same number of seeds each")
        for seed in itertools.chain(*self.seeds):
            whole_number(seed, "seed")
        whole_number(self.frames, "frames", 1)
        for legs, what in ((self.legs, "seeds"), (self._legs(self.classes), "classes")):
            if self.frames < legs + 1:
                raise UsageError(
                    f"{self.frames} frames cannot pass {legs + 1} {what}: give at least {legs + 1}"
                )

    @property
    def legs(self) -> int:
        """Number of segments between consecutive seeds."""
        return self._legs(self.seeds[0])

    def _legs(self, keys: Sequence[int]) -> int:
        return len(keys) if self.loop and len(keys) > 1 else max(0, len(keys) - 1)

    def keys(self) -> list[int]:
        """Frames at which a seed is reached, including the return of a loop."""
        return self._frames_of(self.legs)

    def _frames_of(self, legs: int) -> list[int]:
        return [round(leg * (self.frames - 1) / max(1, legs)) for leg in range(legs + 1)]

    def points(self) -> Iterator[Point]:
        """The points of all paths, frame by frame."""
        classes = self._along(self.classes) if self.classes else itertools.repeat(None)
        for frame, (at, of) in enumerate(zip(self._along(self.seeds[0]), classes, strict=False)):
            psi = self._psi(frame / max(1, self.frames - 1))
            label = of and Leg(self.classes[of.start], self.classes[of.end], of.weight)
            for seeds in self.seeds:
                yield Point(seeds[at.start], seeds[at.end], at.weight, psi, label)

    def _along(self, keys: Sequence[int]) -> Iterator[Leg]:
        """Where each frame is between evenly spaced keys, in order."""
        legs = self._legs(keys)
        frames = self._frames_of(legs)
        leg = 0
        for frame in range(self.frames):
            while leg + 1 < legs and frame >= frames[leg + 1]:
                leg += 1
            weight = 0.0
            if legs:
                weight = eased(self.easing, (frame - frames[leg]) / (frames[leg + 1] - frames[leg]))
            start, end = leg, (leg + 1) % len(keys)
            # The end of a leg is represented as the start of the next one.
            yield Leg(end, end, 0.0) if weight == 1.0 else Leg(start, end, weight)

    def _psi(self, progress: float) -> float:
        if self.truncation is None:
            return 1.0
        share = 1 - abs(2 * progress - 1) if self.loop else progress
        return (1 - share) * self.truncation.first + share * self.truncation.last

    def captions(self, name_of: Callable[[int], str] = str) -> list[list[str]]:
        """What a film strip says of each image, [frames][paths].

        These are key seeds, the classes of a walk through several, and psi where it is swept.

        Args:
            name_of: the name of a class, given its label.
        """
        swept = self.truncation is not None and self.truncation.first != self.truncation.last
        points = self.points()
        keys = set(self.keys())
        classes = set(self._frames_of(self._legs(self.classes))) if len(self.classes) > 1 else set()
        captions = []
        for frame in range(self.frames):
            of_frame = list(itertools.islice(points, len(self.seeds)))
            psi = [f"psi {of_frame[0].psi:.2f}"] if swept else []
            if frame in classes and of_frame[0].classes is not None:
                psi.insert(0, name_of(of_frame[0].classes.start))
            captions.append(
                ["\n".join(([f"seed {point.start}"] if frame in keys else []) + psi) for point in of_frame]
            )
        return captions

    def text(self) -> dict[str, str]:
        """Text chunks that describe this walk in a file."""
        text = {
            "gantx:walk": ";".join(",".join(map(str, seeds)) for seeds in self.seeds),
            "gantx:frames": str(self.frames),
            "gantx:space": self.space,
            "gantx:easing": self.easing,
            "gantx:loop": str(self.loop).lower(),
        }
        if self.classes:
            text["gantx:classes"] = ",".join(map(str, self.classes))
        if self.truncation is not None:
            text["gantx:truncation"] = f"{self.truncation.first!r}:{self.truncation.last!r}"
            if self.truncation.cutoff is not None:
                text["gantx:cutoff"] = str(self.truncation.cutoff)
        return text


def plan(
    generator: interfaces.Generator,
    seeds: Sequence[int],
    frames: int,
    *,
    paths: int = 1,
    space: str | None = None,
    loop: bool = False,
    easing: str = "linear",
    truncation: Sweep | None = None,
    classes: Sequence[int] = (),
) -> Walk:
    """Create a walk and check that the generator supports it.

    Args:
        generator: a network of `gantx.models`.
        seeds: of all paths, concatenated.
        frames: number of frames of the whole walk.
        paths: number of parallel paths; divides the number of seeds.
        space: `z` or `w`; None for w where the network has styles.
        loop: return to the first seed.
        easing: `linear` or `smooth`.
        truncation: of styles.
        classes: labels of a conditional generator, in order; at least one.

    Raises:
        UsageError: an argument is invalid, or needs styles that the network does not have.
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
    if count > whole_number(frames, "frames", 1):  # so many may be too many for the memory
        raise UsageError(f"{frames} frames cannot pass {count} seeds: give at least {count}")
    of_paths = tuple(tuple(seeds[path * count : (path + 1) * count]) for path in range(paths))
    chosen: Space = "z" if space == "z" or not isinstance(generator, interfaces.StyleBased) else "w"
    easing_: Easing = "smooth" if easing == "smooth" else "linear"
    require_labels(generator, classes or None)
    return Walk(of_paths, frames, chosen, loop, easing_, truncation, tuple(classes))


def parse_sweep(text: str | None, cutoff: int | None = None) -> Sweep | None:
    """Read `0.7` or `0:1` as truncation along a path; UsageError for anything else."""
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
    generator: interfaces.Generator, walk: Walk, *, batch: int, device: torch.device, ratio: float = 1.0
) -> Iterator[Tensor]:
    """Generate a walk frame by frame.

    Args:
        generator: a network of `gantx.models`, on `device`.
        walk: returned by `plan`.
        batch: images computed at once, rounded up to whole tiles; frames share batches.
        device: where the generator is.
        ratio: height / width to which images are cropped; see `sampling.crop`.

    Yields:
        uint8 [paths, C, H, W] on the CPU for every frame.
    """
    paths = len(walk.seeds)
    waiting: list[Tensor] = []
    with sampling.memory_explained(batch, device):
        for filled, count in in_tiles(walk.points(), batch):
            images = sampling.crop(_render(generator, walk, filled, device)[:count], ratio)
            waiting += sampling.quantise(images).cpu()
            while len(waiting) >= paths:
                yield torch.stack(waiting[:paths])
                del waiting[:paths]


@full_precision()
def _render(
    generator: interfaces.Generator, walk: Walk, points: Sequence[Point], device: torch.device
) -> Tensor:
    """Float images [B, C, H, W] of B points."""
    seeds = sorted({seed for point in points for seed in (point.start, point.end)})  # usually two
    q: Any = for_seeds(spec_of_one(generator), seeds, device)
    row = {seed: index for index, seed in enumerate(seeds)}
    starts = torch.tensor([row[point.start] for point in points], device=device)
    ends = torch.tensor([row[point.end] for point in points], device=device)
    weights = torch.tensor([point.weight for point in points], dtype=torch.float32, device=device)
    noise = _between(q["noise"], starts, ends, weights)
    labels = _labels(generator, points, device)
    if walk.space == "z" and walk.truncation is None:
        return generator(_between(q["z"], starts, ends, weights), noise, labels)
    styled = require_styles(generator, "a walk through styles")
    if walk.space == "z":
        ws = styled.mapping(_between(q["z"], starts, ends, weights), labels, noise)
    else:
        first, second = (styled.mapping(q["z"][rows], labels, noise) for rows in (starts, ends))
        ws = torch.lerp(first, second, weights.view(-1, *[1] * (first.ndim - 1)).to(first))
    if walk.truncation is not None:
        psi = torch.tensor([point.psi for point in points], dtype=torch.float32, device=device)
        ws = truncate(styled, ws, psi, walk.truncation.cutoff)
    return styled.synthesis(ws, noise)


def _labels(generator: interfaces.Generator, points: Sequence[Point], device: torch.device) -> Tensor | None:
    """Weights of the classes of B points, float32 [B, classes]; None for an unconditional generator."""
    if not generator.classes:
        return None
    rows = torch.zeros(len(points), generator.classes, dtype=torch.float32)
    for row, point in zip(rows, points, strict=True):
        assert point.classes is not None
        start, end, weight = point.classes
        row[start] += 1 - weight
        row[end] += weight
    return rows.to(device)


def _between(draws: Any, starts: Tensor, ends: Tensor, weights: Tensor) -> Any:
    """Slerp of normal draws [seeds, ...], possibly nested, between the rows `starts` and `ends`."""
    if isinstance(draws, dict):
        return {name: _between(part, starts, ends, weights) for name, part in draws.items()}
    return slerp(draws[starts], draws[ends], weights)


def slerp(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Spherical interpolation of Gaussian vectors; norms are interpolated too.

    Args:
        first: [B, ...], flattened to one vector per sample.
        second: [B, ...].
        weights: [B], of `second`, 0 to 1; exactly 0 returns the bits of `first`, exactly 1 those of `second`.
    """
    a, b = first.flatten(1), second.flatten(1)  # [B, n]
    angles = torch.cosine_similarity(a, b).clamp(-1, 1).arccos()
    sines = angles.sin()
    straight = sines < 1e-3  # nearly parallel: the arc is undefined, interpolate linearly
    sines = sines.where(~straight, 1.0)
    weight_a = (((1 - weights) * angles).sin() / sines).where(~straight, 1 - weights)
    weight_b = ((weights * angles).sin() / sines).where(~straight, weights)
    return (weight_a[:, None] * a + weight_b[:, None] * b).view_as(first)


def eased(easing: Easing, time: float) -> float:
    """Interpolation weight at `time`, 0 to 1, between two seeds."""
    return time if easing == "linear" else time * time * (3 - 2 * time)
