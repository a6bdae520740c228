"""Networks at another resolution: which sizes of each family follow it. Imports no torch.

- TransGAN 1: the sides of the first grid of G, its stages (a new one repeats the last, with at least 16
  channels), and the side of its pixel patches beyond grids of 64; the patches of D beyond 16 x 16.
- TransGAN 2: the same without pixel patches, and windows of attention on grids that are too large for all of
  it; the patches of D.
- ViTGAN: patches, so that the token grids stay as they are until a patch has 8 pixels a side; overlaps.
- StyleGAN2, GANformer and DCGAN: the number of blocks, by the resolution alone.
- The implicit generator: nothing, it is a function of coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from gantx.config.networks import (
    DCGANDiscriminatorConfig,
    GANformerDiscriminatorConfig,
    GANformerGeneratorConfig,
    ImplicitGeneratorConfig,
    StyleGAN2DiscriminatorConfig,
    StyleGAN2GeneratorConfig,
    TransGAN2DiscriminatorConfig,
    TransGAN2GeneratorConfig,
    TransGANDiscriminatorConfig,
    TransGANGeneratorConfig,
    ViTGANDiscriminatorConfig,
    ViTGANGeneratorConfig,
)
from gantx.config.section import Section

Values = dict[str, Any]

SMALLEST, LARGEST = 4, 2048  # of data.resolution
_CHANNELS = 16  # least number in a stage that is added
_WHOLE_GRID = 64  # largest of TransGAN 1 that is reached without larger pixel patches
_WHOLE_ATTENTION = 48  # largest grid of TransGAN 2 without windows
_WINDOW = 16  # tokens a side
_LEAST_GRID = 4  # tokens a side, in a network whose grid was larger
_PATCHES = 16  # a side, in TransGAN 1's discriminator
_PATCH = 8  # pixels a side, in ViTGAN
_VITGAN_GRID = 32  # largest


class Unbuildable(ValueError):
    """A pair of networks cannot have a resolution.

    Attributes:
        nearest: the nearest lower and higher resolutions that it can have.
    """

    def __init__(self, resolution: int, reason: str, nearest: list[int]) -> None:
        others = " or ".join(map(str, nearest)) or "none"
        super().__init__(f"{reason}; the nearest resolutions that can be built: {others}")
        self.resolution = resolution
        self.nearest = nearest


def at_resolution(generator: Section, discriminator: Section, resolution: int) -> Values:
    """The settings that make two networks generate and receive images of a resolution.

    Args:
        generator: section of a valid configuration.
        discriminator: another.
        resolution: height and width of the images, in pixels.

    Returns:
        Dotted keys and values, of what differs from the sections alone.

    Raises:
        Unbuildable: one of them cannot have this resolution.
    """
    found: Values = {}
    for name, section in (("generator", generator), ("discriminator", discriminator)):
        values = _first_valid(section, resolution)
        if isinstance(values, str):
            what = f"a {name} of the family {getattr(section, 'family', '')} cannot have {resolution} pixels"
            raise Unbuildable(resolution, f"{what}: {values}", _nearest(generator, discriminator, resolution))
        found |= {f"{name}.{key}": value for key, value in values.items()}
    return found


def advice(generator: Any, discriminator: Any, resolution: int) -> str:
    """What to write if the networks and `data.resolution` are of different sizes, as the end of a sentence.

    Args:
        generator: its section.
        discriminator: its section.
        resolution: `data.resolution`.
    """
    same = f"data.resolution={generator.resolution}"
    if discriminator.resolution != generator.resolution:
        try:
            same += f" {as_overrides(at_resolution(generator, discriminator, generator.resolution))}"
        except Unbuildable as problem:
            return str(problem)
    try:
        return f"set {as_overrides(at_resolution(generator, discriminator, resolution))}, or {same}"
    except Unbuildable as problem:
        return f"set {same} ({problem})"


def as_overrides(values: Values) -> str:
    """Settings as one types them: `generator.base_size=16 generator.depths=[5,2,2]`."""
    return " ".join(f"{key}={_typed(value)}" for key, value in values.items())


def _typed(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(_typed(each) for each in value)}]"
    return "null" if value is None else str(value)


def _nearest(generator: Section, discriminator: Section, resolution: int) -> list[int]:
    """The next lower and the next higher resolution that both networks can have, as far as there are any."""

    def fits(side: int) -> bool:
        return all(not isinstance(_first_valid(each, side), str) for each in (generator, discriminator))

    below = next((side for side in range(resolution - 1, SMALLEST - 1, -1) if fits(side)), None)
    reach = LARGEST if below is None else min(LARGEST, 2 * resolution)
    above = next((side for side in range(resolution + 1, reach + 1) if fits(side)), None)
    return [side for side in (below, above) if side is not None]


def _first_valid(section: Section, resolution: int) -> Values | str:
    """The values of the best candidate that is valid; if there is none, what is wrong with the first."""
    if getattr(section, "resolution", None) == resolution:
        return {}
    reason = "there are no sizes that lead to it"
    for values in _CANDIDATES[type(section)](section, resolution):
        try:
            made = type(section).model_validate({**section.model_dump(), **values})
        except ValidationError as problem:
            if reason.startswith("there are no"):
                error = problem.errors(include_url=False)[0]
                reason = error["msg"].removeprefix("Value error, ")
            continue
        own = section.model_dump(mode="json")
        return {key: value for key, value in made.model_dump(mode="json").items() if value != own[key]}
    return reason


# --- TransGAN, version 1 ----------------------------------------------------------------------------------


def _transgan_generator(section: TransGANGeneratorConfig, resolution: int) -> Iterator[Values]:
    largest = max(_WHOLE_GRID, section.resolution // section.rgb_patch)
    for doublings in range(8):
        patch = section.rgb_patch << doublings
        if resolution % patch or resolution // patch > largest:
            continue
        for base, stages in _grids(resolution // patch, section.base_size, len(section.depths)):
            if stages > len(section.depths) and section.base_dim // 4 ** (stages - 1) < _CHANNELS:
                continue
            heads = section.heads if isinstance(section.heads, int) else _lengthened(section.heads, stages)
            depths = _lengthened(section.depths, stages)
            yield {"base_size": base, "depths": depths, "heads": heads, "rgb_patch": patch}


def _transgan_discriminator(section: TransGANDiscriminatorConfig, resolution: int) -> Iterator[Values]:
    most = max(_PATCHES, section.resolution // section.patch_size)
    for patch in _divisors(resolution):
        least = min(_LEAST_GRID, section.resolution // section.patch_size)
        if patch >= min(section.patch_size, resolution // 4) and least <= resolution // patch <= most:
            yield {"resolution": resolution, "patch_size": patch}


# --- TransGAN, version 2 ----------------------------------------------------------------------------------


def _transgan2_generator(section: TransGAN2GeneratorConfig, resolution: int) -> Iterator[Values]:
    old = len(section.depths)
    windows = section.windows or (None,) * old
    known = {section.base_size << stage: window for stage, window in enumerate(windows)}
    whole = max([_WHOLE_ATTENTION, *(side for side, window in known.items() if window is None)])
    for base, stages in _grids(resolution, section.base_size, old):
        steps = _lengthened(section.upsampling, stages - 1) if section.upsampling else ()
        if len(steps) < stages - 1:
            continue
        if stages > old and _last_channels(section.dim, steps) < _CHANNELS:
            continue
        sides = [base << stage for stage in range(stages)]
        wanted = [known.get(side, None if side <= whole else _WINDOW) for side in sides]
        tiled = [_tiling(window, side) for window, side in zip(wanted, sides, strict=True)]
        yield {
            "base_size": base,
            "depths": _lengthened(section.depths, stages),
            "upsampling": steps,
            "windows": tiled if any(tiled) else None,
        }


def _last_channels(dim: int, steps: Iterable[str]) -> int:
    for step in steps:
        dim = dim if step == "bicubic" else dim // 4
    return dim


def _transgan2_discriminator(section: TransGAN2DiscriminatorConfig, resolution: int) -> Iterator[Values]:
    grid, stages = section.resolution // section.patch_size, len(section.depths)

    def distance(patch: int) -> tuple[bool, float]:
        own = resolution // patch
        kept = patch == section.patch_size and grid <= own <= 1.5 * grid
        return not kept, abs(math.log2(own / grid))

    possible = [size for size in _divisors(resolution) if resolution // size >= min(_LEAST_GRID, grid)]
    for patch in sorted(possible, key=distance):
        sides = [resolution // patch >> stage for stage in range(stages)]
        windows = None
        if section.windows is not None and all(sides):
            windows = [_tiling(window, side) for window, side in zip(section.windows, sides, strict=True)]
        yield {"resolution": resolution, "patch_size": patch, "windows": windows}


# --- ViTGAN -----------------------------------------------------------------------------------------------


def _vitgan_generator(section: ViTGANGeneratorConfig, resolution: int) -> Iterator[Values]:
    for patch in _vitgan_patches(section.resolution, section.patch_size, resolution):
        yield {"resolution": resolution, "patch_size": patch}


def _vitgan_discriminator(section: ViTGANDiscriminatorConfig, resolution: int) -> Iterator[Values]:
    for patch in _vitgan_patches(section.resolution, section.patch_size, resolution):
        overlap = round(section.overlap * patch / section.patch_size)
        yield {"resolution": resolution, "patch_size": patch, "overlap": overlap}


def _vitgan_patches(before: int, patch: int, resolution: int) -> list[int]:
    """Patch sizes, those first that keep the token grid nearest to what it was."""
    grid = before // patch
    largest = max(_PATCH, patch, resolution // _VITGAN_GRID)
    sizes = [size for size in _divisors(resolution) if size <= largest]
    least, most = min(_LEAST_GRID, grid), max(_VITGAN_GRID, grid)
    candidates = [size for size in sizes if least <= resolution // size <= most]
    return sorted(candidates, key=lambda size: (abs(math.log2(resolution / size / grid)), size))


# --- StyleGAN2 and GANformer ------------------------------------------------------------------------------


def _blocks(section: Section, resolution: int) -> Iterator[Values]:
    yield {"resolution": resolution}


# --- what they share --------------------------------------------------------------------------------------


def _grids(side: int, base: int, stages: int) -> list[tuple[int, int]]:
    """Pairs (side of the first grid, number of stages) that end at `side`, those nearest to the old first.

    Another number of stages counts as much as a first grid that differs by a fifth.
    """
    found = [
        (side >> (count - 1), count)
        for count in range(min(2, stages), 10)
        if side % (1 << (count - 1)) == 0 and side >> (count - 1) >= min(4, base)
    ]
    return sorted(found, key=lambda pair: abs(math.log2(pair[0] / base)) + 0.25 * abs(pair[1] - stages))


def _lengthened(values: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """The first `count` values; the last is repeated where there are fewer."""
    return values[:count] + values[-1:] * (count - len(values))


def _tiling(window: int | None, side: int) -> int | None:
    """The largest window up to `window` that tiles a grid; None for the whole grid."""
    if window is None or window >= side:
        return None
    return next(size for size in range(window, 0, -1) if side % size == 0)


def _divisors(value: int) -> list[int]:
    return [divisor for divisor in range(1, value + 1) if value % divisor == 0]


_CANDIDATES: dict[type[Section], Callable[[Any, int], Iterator[Values]]] = {
    TransGANGeneratorConfig: _transgan_generator,
    TransGANDiscriminatorConfig: _transgan_discriminator,
    TransGAN2GeneratorConfig: _transgan2_generator,
    TransGAN2DiscriminatorConfig: _transgan2_discriminator,
    ViTGANGeneratorConfig: _vitgan_generator,
    ViTGANDiscriminatorConfig: _vitgan_discriminator,
    StyleGAN2GeneratorConfig: _blocks,
    StyleGAN2DiscriminatorConfig: _blocks,
    GANformerGeneratorConfig: _blocks,
    GANformerDiscriminatorConfig: _blocks,
    DCGANDiscriminatorConfig: _blocks,
    ImplicitGeneratorConfig: _blocks,
}
