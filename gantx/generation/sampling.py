"""From seeds to images.

The image of a seed depends on the seed and the weights alone: its latent is drawn from the seed, and images
are computed in whole tiles, because matrix products of very few rows round differently from larger ones.
Another device or another number of threads may still round the last bit of a pixel the other way, and on a
GPU another size of the batches too. A compiled generator rounds differently from one that is not.

A GPU never waits for the host: threads draw the latents of coming batches, batches of one size are painted
by one replayed graph, and images are copied while the next ones are computed.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import math
import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gantx import checkpoint, models
from gantx.checkpoint import Header
from gantx.data.crop import rectangle
from gantx.errors import DataError, MissingError, UsageError
from gantx.io.prefetch import ahead
from gantx.models import interfaces
from gantx.runtime import devices
from gantx.runtime.compile import compile_whole
from gantx.runtime.random import Draw, Draws, Spec, for_seeds, place
from gantx.runtime.replay import Capture, CudaGraphs, Log, Replay

BATCH = 64  # images painted at once unless the user, or the memory of a GPU, says otherwise
_MOST, _MOST_PIXELS = 1024, 1 << 22  # images and pixels painted at once on a GPU, whatever its memory
_DRAWERS = 2  # threads that draw latents, each of them a batch ahead
REPLAYED_FROM = 6  # batches; with fewer, capturing takes longer than replaying saves

Weights = Literal["ema", "raw"]
Item = TypeVar("Item")
to_log: Log = logging.getLogger("gantx").warning


class Truncation(NamedTuple):
    """How far styles are drawn towards their average (StyleGAN, section B): less variety, fewer failures.

    Attributes:
        psi: 1 leaves styles alone, 0 makes all of them the average; beyond, and below, they are extrapolated.
        cutoff: only the first so many layers, or None for all.
    """

    psi: float
    cutoff: int | None = None


def open_generator(
    target: Path, device: torch.device, weights: Weights = "ema"
) -> tuple[interfaces.Generator, Header]:
    """Load the generator of a run, a checkpoint folder or a .safetensors file.

    Args:
        target: any of these.
        device: where to.
        weights: the running average, or the weights that are trained themselves.

    Raises:
        MissingError: there is no such checkpoint.
        CheckpointError: the file is corrupt, foreign or of an unknown version, or lacks these weights.
    """
    header = checkpoint.read_header(checkpoint.find(target))
    network = models.build(header.config.generator).to(device)
    part = "generator_ema" if weights == "ema" else "generator"
    checkpoint.load_into(network, checkpoint.read_part(header, part, device), header.path)
    return network.eval().requires_grad_(False), header


def compiled(generator: Any) -> Any:
    """A generator with the same weights that paints by compiled code.

    What is compiled is `synthesis` where there are styles, so that every truncation shares one graph, else
    the whole of it. One graph more serves latents and styles that are given, whose noise is a stored one.
    The first batch of a size takes up to minutes. The images are those of `generator` up to rounding.

    Args:
        generator: a network of `gantx.models`; stays as it is.

    Raises:
        MissingError: when it first paints and something that compiling needs is not installed.
    """
    painting = "synthesis" if isinstance(generator, interfaces.StyleBased) else "forward"
    whole = compile_whole(getattr(generator, painting), name="the generator", instead="leave --compile away")

    def generate(given: Tensor, noise: Draws | None = None) -> Tensor:
        # A mapping repeats one style for all layers without copying it, truncation copies: to one layout.
        images: Tensor = whole(given.contiguous(), noise or None)
        return images

    fast = copy.copy(generator)
    setattr(fast, painting, generate)
    return fast


def parse_seeds(text: str) -> list[int]:
    """Read `7`, `1,5,9` or `0-63` (ends included), and mixtures of them; UsageError otherwise."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"seeds '{text}': write numbers and ranges, for example 0-63 or 1,5,9")
        if dash and int(last) < int(first):
            raise UsageError(f"seeds '{part}': the range ends before it begins")
        seeds.extend(range(int(first), int(last) + 1) if dash else [int(first)])
    return seeds


def whole_number(value: Any, what: str, least: int = 0) -> int:
    """A value of any integer type as int; UsageError about `what` when it is no integer or below `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise UsageError(f"{what} {value}: give a whole number, {least} or more")
    return number


def parse_truncation(psi: float | None, cutoff: int | None = None) -> Truncation | None:
    """Truncation as a user asks for it; None for none. UsageError when it makes no sense."""
    if psi is None:
        if cutoff is not None:
            raise UsageError("a cutoff says which layers are truncated: give the truncation too")
        return None
    if not math.isfinite(psi):
        raise UsageError(f"truncation {psi}: give a number, 1 for none, 0.7 for fewer failures")
    return Truncation(psi, cutoff)


def require_styles(generator: Any, what: str) -> None:
    """UsageError unless the network maps latents to styles; `what` is the subject of the sentence."""
    if not isinstance(generator, interfaces.StyleBased):
        raise UsageError(
            f"{what} needs a network with styles (vitgan, ganformer, stylegan2): this one paints from its "
            "latents directly"
        )


def style_shape(generator: Any) -> tuple[int, ...]:
    """Shape of the styles ws of one image: (L, D), or (K, L, D) where K latents meet in an image."""
    latent = torch.zeros(1, *generator.latent_shape, device=next(generator.parameters()).device)
    with torch.no_grad():
        return tuple(generator.mapping(latent).shape[1:])


def truncate(network: Any, ws: Tensor, psi: float | Tensor, cutoff: int | None = None) -> Tensor:
    """Draw styles towards their average: w_avg + psi·(ws − w_avg).

    Args:
        network: where `w_avg` [D] is.
        ws: styles [B, L, D] or [B, K, L, D].
        psi: one number, or one per image [B]. Exactly 1 returns the same bits, exactly 0 the average.
        cutoff: only layers 0..cutoff-1; None for all L.

    Returns:
        Styles of the shape of `ws`.

    Raises:
        UsageError: the network has no such layers.
    """
    layers = ws.shape[-2]
    if cutoff is not None and not 1 <= cutoff <= layers:
        raise UsageError(f"a truncation of {cutoff} layers: give 1 to {layers}, what this network has")
    weight = psi.to(ws).view(-1, *[1] * (ws.ndim - 1)) if isinstance(psi, Tensor) else psi
    drawn = torch.lerp(network.w_avg.expand_as(ws), ws, weight)
    if cutoff is None or cutoff == layers:
        return drawn
    return torch.cat([drawn[..., :cutoff, :], ws[..., cutoff:, :]], dim=-2)


def sample(
    generator: Any,
    seeds: Sequence[int],
    *,
    batch: int,
    device: torch.device,
    truncation: Truncation | None = None,
    ratio: float = 1.0,
    constant: bool = False,
    log: Log = to_log,
) -> Iterator[Tensor]:
    """Paint one image per seed.

    Args:
        generator: a network of `gantx.models`, on `device`.
        seeds: one per image.
        batch: images computed at once, rounded up to whole tiles.
        device: where the generator is.
        truncation: draw styles towards their average.
        ratio: height / width to which images are cropped; see `crop`.
        constant: whether the last batch is filled up to the size of the others, as a compiled generator
            needs it. It is too where a graph is replayed.
        log: receives a sentence where painting goes on without a replayed graph.

    Yields:
        uint8 [n, 3, H, W] on the CPU, in the order of the seeds.

    Raises:
        UsageError: truncation of a network without styles.
    """
    painted = generate(
        generator,
        seeds,
        batch=batch,
        device=device,
        truncation=truncation,
        ratio=ratio,
        constant=constant,
        log=log,
    )
    return fetch(quantise(images) for images in painted)


def fetch(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Bring batches to the CPU; from CUDA each is copied while the next is computed.

    Args:
        batches: tensors on any device, computed as they are asked for.

    Yields:
        The same on the CPU.
    """
    coming: deque[tuple[Tensor, torch.cuda.Event]] = deque()
    for batch in batches:
        if batch.device.type != "cuda":
            yield batch.cpu()
            continue
        copy = torch.empty(batch.shape, dtype=batch.dtype, pin_memory=True)
        copy.copy_(batch, non_blocking=True)
        arrived = torch.cuda.Event(blocking=True)
        arrived.record(torch.cuda.current_stream(batch.device))
        coming.append((copy, arrived))
        if len(coming) > 1:
            yield _arrived(*coming.popleft())
    while coming:
        yield _arrived(*coming.popleft())


def _arrived(copy: Tensor, event: torch.cuda.Event) -> Tensor:
    event.synchronize()
    return copy


def batch_for(generator: Any, device: torch.device, count: int) -> int:
    """How many images to paint at once where the user does not say.

    Args:
        generator: a network of `gantx.models`, on `device`.
        device: where it is.
        count: images that are wanted in all.

    Returns:
        64; on CUDA, where more are wanted, what half of the free memory holds by the measure of two small
        batches, up to 1024 images or 4 million pixels, so that this rarely depends on who else uses the GPU.
    """
    if device.type != "cuda" or count <= BATCH:
        return BATCH
    _, height, width = generator.image_shape
    most = min(_MOST, max(BATCH, _MOST_PIXELS // (height * width)))
    few, more = 8, 16
    try:
        _peak(generator, few, device)  # the first time, libraries take memory of their own, once
        used_by_few, used_by_more = _peak(generator, few, device), _peak(generator, more, device)
    except torch.OutOfMemoryError:
        return few
    free = devices.free_memory(device)
    assert free is not None  # CUDA always tells
    return fitting(free // 2, {few: used_by_few, more: used_by_more}, most)


def fitting(memory: int, used: Mapping[int, int], most: int) -> int:
    """The largest power of two up to `most`, but at least 8, of images that take no more than `memory`.

    Args:
        memory: bytes.
        used: bytes that two different numbers of images take; others take as much on a line through both.
        most: images.
    """
    (few, used_by_few), (more, used_by_more) = sorted(used.items())
    each = max(1, (used_by_more - used_by_few) // (more - few))
    images = min(most, few + (memory - used_by_few) // each)
    return max(8, 1 << (max(1, images).bit_length() - 1))


@torch.no_grad()
def _peak(generator: Any, count: int, device: torch.device) -> int:
    """Bytes of memory of a CUDA device that painting so many images takes at most."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    q: Any = for_seeds(spec_of_one(generator), range(count), device)
    render(generator, q["z"], q["noise"], None)
    return torch.cuda.max_memory_allocated(device) - before


@torch.no_grad()
def generate(
    generator: Any,
    seeds: Sequence[int],
    *,
    batch: int,
    device: torch.device,
    truncation: Truncation | None = None,
    ratio: float = 1.0,
    constant: bool = False,
    log: Log = to_log,
) -> Iterator[Tensor]:
    """As `paint`, but yields what the generator gives: float [n, 3, H, W], nominally [-1, 1], on `device`."""
    spec, pinned = spec_of_one(generator), device.type == "cuda"

    def drawn(part: tuple[list[int], int]) -> tuple[Draws, int]:
        filled, count = part
        return for_seeds(spec, filled, torch.device("cpu"), pinned=pinned), count

    def work(q: Any) -> Tensor:
        return crop(render(generator, q["z"], q["noise"], truncation), ratio)

    runner = BatchRunner(work, device, batches=-(-len(seeds) // whole_tiles(batch)), log=log)
    parts = in_tiles(seeds, batch, constant or runner.replays)
    for draws, count in ahead(drawn, parts, threads=_DRAWERS, waiting=_DRAWERS):
        with _memory_explained(batch, device):
            images = runner(draws)[:count]
        yield images


@torch.no_grad()
def from_latents(
    generator: Any,
    latents: Tensor,
    *,
    batch: int,
    device: torch.device,
    truncation: Truncation | None = None,
    ratio: float = 1.0,
    constant: bool = False,
    log: Log = to_log,
) -> Iterator[Tensor]:
    """Images of given latents: float [n, 3, H, W], nominally [-1, 1], on `device`; noise at its stored value.

    Args:
        generator: a network of `gantx.models`, on `device`.
        latents: [N, *latent_shape], or styles [N, *style_shape], taken as they are.
        batch: images computed at once, rounded up to whole tiles.
        device: where the generator is.
        truncation: draw styles towards their average.
        ratio: height / width to which images are cropped; see `crop`.
        constant: as in `paint`.
        log: as in `paint`.
    """
    styles = tuple(latents.shape[1:]) != tuple(generator.latent_shape)

    def work(q: Any) -> Tensor:
        if not styles:
            return crop(render(generator, q["z"], None, truncation), ratio)
        ws = q["ws"] if truncation is None else truncate(generator, q["ws"], *truncation)
        return crop(generator.synthesis(ws), ratio)

    runner = BatchRunner(work, device, batches=-(-len(latents) // whole_tiles(batch)), log=log)
    for filled, count in in_tiles(range(len(latents)), batch, constant or runner.replays):
        with _memory_explained(batch, device):
            images = runner({"ws" if styles else "z": latents[filled]})[:count]
        yield images


class BatchRunner:
    """Paints one batch after another; on CUDA, where many are to come, by replaying a captured graph.

    Then all batches have the size of the first, which is painted as it is and tells what images look like.
    From the second on, inputs are copied into those of the first, and images out of one tensor.

    Args:
        work: from draws on `device` to images; whatever else it reads stays where it is.
        device: where it computes.
        batches: how many are to come.
        log: receives a sentence where painting goes on without a replayed graph.

    Attributes:
        replays: whether a graph is to be replayed.
    """

    _inputs: Draws
    _images: Tensor

    def __init__(
        self, work: Callable[[Draws], Tensor], device: torch.device, *, batches: int, log: Log = to_log
    ) -> None:
        self._work = work
        self._device = device
        self._capture = capture_on(device) if batches >= REPLAYED_FROM else None
        self._log = log
        self._replay: Replay | None = None
        self.replays = self._capture is not None

    def __call__(self, draws: Draws) -> Tensor:
        """Images of `draws`, which may lie on the host. Nothing writes over them later."""
        if self._capture is None:
            return self._work(place(draws, self._device))
        if self._replay is None:
            self._inputs = place(draws, self._device)
            images = self._work(self._inputs)
            self._images = torch.empty(images.shape, dtype=images.dtype, device=images.device)
            self._replay = Replay(
                self._paint,
                {"images": self._images},
                capture=self._capture,
                name="painting",
                log=self._log,
            )
            return images
        _refill(self._inputs, draws)
        self._replay()
        return self._images.clone()

    def _paint(self) -> None:
        self._images.copy_(self._work(self._inputs))


def _refill(inputs: Draws, draws: Draws) -> None:
    """Copy draws into tensors that last; from page-locked memory that is queued, not waited for."""
    for name, kept in inputs.items():
        given = draws[name]
        if isinstance(kept, Tensor):
            assert isinstance(given, Tensor)
            kept.copy_(given, non_blocking=True)
        else:
            assert isinstance(given, dict)
            _refill(kept, given)


def capture_on(device: torch.device) -> Capture | None:
    """How work is captured on a device; None where launching it costs next to nothing."""
    return CudaGraphs(device) if device.type == "cuda" else None


@contextlib.contextmanager
def _memory_explained(batch: int, device: torch.device) -> Iterator[None]:
    """Turn an exhausted GPU into a sentence."""
    try:
        yield
    except torch.OutOfMemoryError as problem:
        advice = f"paint fewer, with --batch {batch // 2}" if batch > 8 else "use another device"
        raise MissingError(f"{device} has no memory for {batch} images at once: {advice}") from problem


def crop(images: Tensor, ratio: float) -> Tensor:
    """The part of painted squares that holds the image, where that is not square itself; copies nothing.

    Args:
        images: [..., H, W].
        ratio: height / width of the image, `data.ratio` of the run.

    Returns:
        A view of the largest rectangle of this ratio in the middle; see `gantx.data.crop`.
    """
    rows, columns = rectangle(images.shape[-2], images.shape[-1], ratio)
    return images[..., rows, columns]


def cropped_shape(generator: Any, ratio: float) -> tuple[int, int, int]:
    """(3, H, W) of a generator's images once they are cropped."""
    channels, height, width = generator.image_shape
    rows, columns = rectangle(height, width, ratio)
    return channels, rows.stop - rows.start, columns.stop - columns.start


def render(generator: Any, z: Tensor, noise: Any, truncation: Truncation | None) -> Tensor:
    """Latents [B, *latent_shape] to float images [B, 3, H, W], by way of truncated styles if asked for."""
    if truncation is None:
        images: Tensor = generator(z, noise)
        return images
    require_styles(generator, "truncation")
    ws = truncate(generator, generator.mapping(z, noise=noise), *truncation)
    images = generator.synthesis(ws, noise)
    return images


def spec_of_one(generator: Any) -> Spec:
    """Everything that is random in one image: its latent `z`, and the generator's `noise`."""
    return {"z": Draw("normal", (1, *generator.latent_shape)), "noise": generator.noise_spec(1)}


def in_tiles(items: Iterable[Item], batch: int, constant: bool = False) -> Iterator[tuple[list[Item], int]]:
    """Cut a sequence of any length into batches of whole tiles, the last one filled up with its last item.

    Args:
        items: one per image.
        batch: images computed at once, rounded up to whole tiles.
        constant: whether the last batch is filled up to the size of the others, not just to whole tiles.

    Yields:
        The items of a batch, and how many of them are no filling.
    """
    remaining = iter(items)
    size = whole_tiles(batch)
    while chunk := list(itertools.islice(remaining, size)):
        filled = size if constant else whole_tiles(len(chunk))
        yield chunk + chunk[-1:] * (filled - len(chunk)), len(chunk)


def whole_tiles(count: int) -> int:
    """A number of images rounded up to whole tiles, of which every thread gets at least four rows."""
    tile = max(8, 4 * torch.get_num_threads())
    return -(-count // tile) * tile


def latent_shapes(generator: Any) -> list[tuple[int, ...]]:
    """What `from_latents` takes: the shape of a latent, and of the styles of an image where there are any."""
    shapes = [tuple(generator.latent_shape)]
    if isinstance(generator, interfaces.StyleBased):
        shapes.append(style_shape(generator))
    return shapes


def latents_for(generator: Any, path: Path) -> Tensor:
    """Read latents, or styles where the generator has them: what `from_latents` takes; see `read_latents`."""
    return read_latents(path, *latent_shapes(generator))


def read_latents(path: Path, *shapes: tuple[int, ...]) -> Tensor:
    """Read latents from a .npy array or the one tensor of a .safetensors file.

    Args:
        path: the file.
        shapes: of one latent; any of these.

    Returns:
        float32 [N, *shape], finite.

    Raises:
        MissingError: there is no such file.
        DataError: it cannot be read, or holds something else.
    """
    if not path.is_file():
        raise MissingError(f"there are no latents at {path}")
    try:
        if path.suffix == ".safetensors":
            (latents,) = load_file(path).values()
        else:
            latents = torch.from_numpy(np.load(path, allow_pickle=False))
    except (SafetensorError, OSError, ValueError, TypeError, EOFError) as problem:
        raise DataError(
            f"cannot read latents from {path} ({problem}): give a .npy array, or a .safetensors file of one "
            "tensor"
        ) from problem
    return as_latents(latents, shapes, str(path))


def as_latents(latents: Tensor, shapes: Sequence[tuple[int, ...]], name: str) -> Tensor:
    """Latents as a network takes them: float32 [N, *shape] with one of these shapes of one latent.

    Raises:
        DataError: `name` holds something else.
    """
    if not latents.ndim or tuple(latents.shape[1:]) not in shapes or not len(latents):
        known = " or styles ".join(f"[N, {', '.join(map(str, shape))}]" for shape in shapes)
        raise DataError(f"{name} holds {list(latents.shape)}, but this generator takes latents {known}")
    if not latents.is_floating_point() or not bool(latents.isfinite().all()):
        raise DataError(f"{name} holds values that are no finite floating-point numbers")
    return latents.float()


Rounding = Literal["round", "truncate", "none"]


def quantise(images: Tensor, rule: Rounding = "round") -> Tensor:
    """Images in [-1, 1] as grey levels 0..255.

    Args:
        images: float [B, 3, H, W].
        rule: `round` to the nearest level, halves upwards, as StyleGAN and most others do; `truncate`
            towards zero, as TransGAN's test script does, which darkens by half a level; `none` leaves
            float values between the levels.

    Returns:
        uint8 [B, 3, H, W], or float32 for `none`.
    """
    images = images.float()
    if rule == "none":
        return ((images + 1) * 127.5).clamp(0, 255)
    offset = 128 if rule == "round" else 127.5
    return (images * 127.5 + offset).clamp(0, 255).to(torch.uint8)
