"""From seeds to images.

The image of a seed depends only on the seed and the weights: its latent is drawn from the seed, and images
are computed in whole tiles, because matrix products with very few rows round differently from larger ones.
Another device or number of threads can still change the last bit of a pixel, and so can another batch size
on a GPU. A compiled generator rounds differently from an eager one.

A GPU does not wait for the host: threads draw latents in advance, batches of one size are computed by one
replayed graph, and images are copied while the next ones are computed.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from gantx import checkpoint, models
from gantx.checkpoint import Header
from gantx.data.crop import rectangle
from gantx.errors import CheckpointError
from gantx.generation.latents import require_labels, spec_of_one
from gantx.generation.truncation import Truncation, require_styles, truncate
from gantx.io.prefetch import ahead
from gantx.models import bounded
from gantx.models.interfaces import Generator, StyleBased
from gantx.runtime import devices, memory
from gantx.runtime.compile import compile_whole
from gantx.runtime.precision import full_precision
from gantx.runtime.random import Draws, for_seeds, place
from gantx.runtime.replay import Capture, CudaGraphs, Log, Replay

BATCH = 64  # images computed at once by default; on CUDA see `batch_for`
REPLAYED_FROM = 6  # batches; with fewer, capturing takes longer than replaying saves

Item = TypeVar("Item")
to_log: Log = logging.getLogger("gantx").warning
_MOST, _MOST_PIXELS = 1024, 1 << 22  # upper limits of images and pixels computed at once on CUDA
_DRAWERS = 2  # threads that draw latents, each one batch ahead

Weights = Literal["ema", "raw"]
Rounding = Literal["round", "truncate", "none"]


def open_generator(target: Path, device: torch.device, weights: Weights = "ema") -> tuple[Generator, Header]:
    """Load the generator of a run, a checkpoint folder or a .safetensors file.

    Args:
        target: path of any of these.
        device: where the network is placed.
        weights: the running average (`ema`) or the trained weights themselves (`raw`).

    Raises:
        MissingError: there is no checkpoint.
        CheckpointError: the file is corrupt, foreign or of an unknown version, or lacks these weights.
    """
    header = checkpoint.read_header(checkpoint.find(target))
    part = "generator_ema" if weights == "ema" else "generator"
    if part in header.digests:  # else reading the part says that it is absent
        check_size(header, part)
    network = models.build_to_load(header.config.generator, header.config.data.channels).to(device)
    checkpoint.load_into(network, checkpoint.read_part(header, part, device), header.path)
    return network.eval().requires_grad_(False), header


def check_size(header: Header, part: str) -> None:
    """CheckpointError when a checkpoint describes a network of more weights than it has in `part`."""
    section = header.config.discriminator if part == "discriminator" else header.config.generator
    try:
        bounded.check_within(section, checkpoint.numbers_in(header, part), header.config.data.channels)
    except bounded.TooLargeError as problem:
        raise CheckpointError(f"{header.path} has a damaged header: {problem}") from problem


def compiled(generator: Generator) -> Generator:
    """A generator with the same weights that runs compiled code.

    For a network with styles only `synthesis` is compiled, so that all truncations share one graph; for
    others the whole network is. A second graph serves given latents and styles, which use the stored noise.
    The first batch of a size can take minutes. Images equal those of `generator` up to rounding.

    Args:
        generator: a network of `gantx.models`; it is not changed.

    Raises:
        MissingError: at the first call, when something that compilation needs is not installed.
    """
    method = "synthesis" if isinstance(generator, StyleBased) else "forward"
    whole = compile_whole(getattr(generator, method), name="the generator", instead="omit --compile")

    def generate(given: Tensor, noise: Draws | None = None, labels: Tensor | None = None) -> Tensor:
        # A mapping expands one style to all layers, truncation copies it: both get the same layout.
        of_classes = () if labels is None else (labels,)
        images: Tensor = whole(given.contiguous(), noise or None, *of_classes)
        return images

    fast = copy.copy(generator)
    setattr(fast, method, generate)
    return fast


def sample(
    generator: Generator,
    seeds: Sequence[int],
    *,
    batch: int,
    device: torch.device,
    truncation: Truncation | None = None,
    ratio: float = 1.0,
    constant: bool = False,
    log: Log = to_log,
    labels: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Generate one image per seed.

    Args:
        generator: a network of `gantx.models`, on `device`.
        seeds: one per image.
        batch: images computed at once, rounded up to whole tiles.
        device: where the generator is.
        truncation: of the styles.
        ratio: height / width to which images are cropped; see `crop`.
        constant: pad the last batch to the size of the others, as a compiled generator needs. A replayed
            graph always does.
        log: receives a message if the graph cannot be replayed.
        labels: one per image, for a conditional generator.

    Yields:
        uint8 [n, C, H, W] on the CPU, in the order of the seeds.

    Raises:
        UsageError: truncation of a network without styles, or no labels for a conditional one.
    """
    batches = generate(
        generator,
        seeds,
        batch=batch,
        device=device,
        truncation=truncation,
        ratio=ratio,
        constant=constant,
        log=log,
        labels=labels,
    )
    return fetch(quantise(images) for images in batches)


def batch_for(generator: Generator, device: torch.device, count: int) -> int:
    """Default number of images to compute at once.

    Args:
        generator: a network of `gantx.models`, on `device`.
        device: where the generator is.
        count: total number of images.

    Returns:
        64; on CUDA, for larger counts, the number that fits into half of the free memory, extrapolated from
        the peak memory of two small batches, up to 1024 images or 4 million pixels. The limits make it
        mostly independent of other processes on the GPU.
    """
    if device.type != "cuda" or count <= BATCH:
        return BATCH
    _, height, width = generator.image_shape
    most = min(_MOST, max(BATCH, _MOST_PIXELS // (height * width)))
    few, more = 8, 16
    try:
        _peak(generator, few, device)  # libraries allocate memory of their own at the first call
        used_by_few, used_by_more = _peak(generator, few, device), _peak(generator, more, device)
    except torch.OutOfMemoryError:
        return few
    free = devices.free_memory(device)
    assert free is not None  # known for every CUDA device
    return fitting(free // 2, {few: used_by_few, more: used_by_more}, most)


def fitting(memory: int, used: Mapping[int, int], most: int) -> int:
    """The largest power of two of images that fit into `memory`, at least 8 and at most `most`.

    Args:
        memory: in bytes.
        used: bytes taken by two different numbers of images; other numbers are extrapolated linearly.
        most: upper limit of images.
    """
    (few, used_by_few), (more, used_by_more) = sorted(used.items())
    each = max(1, (used_by_more - used_by_few) // (more - few))
    images = min(most, few + (memory - used_by_few) // each)
    return max(8, 1 << (max(1, images).bit_length() - 1))


@torch.no_grad()
def _peak(generator: Generator, count: int, device: torch.device) -> int:
    """Peak memory in bytes of a CUDA device while `count` images are computed."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    q: Any = for_seeds(spec_of_one(generator), range(count), device)
    render(generator, q["z"], q["noise"], None, torch.zeros(count, dtype=torch.int64, device=device))
    return torch.cuda.max_memory_allocated(device) - before


@torch.no_grad()
def generate(
    generator: Generator,
    seeds: Sequence[int],
    *,
    batch: int,
    device: torch.device,
    truncation: Truncation | None = None,
    ratio: float = 1.0,
    constant: bool = False,
    log: Log = to_log,
    labels: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """As `sample`, but yields the generator's output: float [n, C, H, W], nominally [-1, 1], on `device`."""
    spec, pinned = spec_of_one(generator), device.type == "cuda"
    require_labels(generator, labels)

    def drawn(part: tuple[list[int], int]) -> tuple[Draws, int]:
        rows, count = part
        draws = for_seeds(spec, [seeds[row] for row in rows], torch.device("cpu"), pinned=pinned)
        if labels is not None:
            chosen = torch.tensor([labels[row] for row in rows])
            draws["label"] = chosen.pin_memory() if pinned else chosen
        return draws, count

    def work(q: Any) -> Tensor:
        return crop(render(generator, q["z"], q["noise"], truncation, q.get("label")), ratio)

    runner = BatchRunner(work, device, batches=-(-len(seeds) // whole_tiles(batch)), log=log)
    parts = in_tiles(range(len(seeds)), batch, constant or runner.replays)
    with memory_explained(batch, device):
        for draws, count in ahead(drawn, parts, threads=_DRAWERS, waiting=_DRAWERS):
            yield runner(draws)[:count]


@torch.no_grad()
def from_latents(
    generator: Generator,
    latents: Tensor,
    *,
    batch: int,
    device: torch.device,
    truncation: Truncation | None = None,
    ratio: float = 1.0,
    constant: bool = False,
    log: Log = to_log,
    labels: Tensor | None = None,
) -> Iterator[Tensor]:
    """Images of given latents, with noise at its stored value.

    Args:
        generator: a network of `gantx.models`, on `device`.
        latents: [N, *latent_shape], or styles [N, *style_shape], which do not pass the mapping.
        batch: images computed at once, rounded up to whole tiles.
        device: where the generator is.
        truncation: of the styles.
        ratio: height / width to which images are cropped; see `crop`.
        constant: as in `sample`.
        log: as in `sample`.
        labels: int64 [N], for latents of a conditional generator; styles need none.

    Yields:
        float [n, C, H, W], nominally in [-1, 1], on `device`.
    """
    styles = tuple(latents.shape[1:]) != tuple(generator.latent_shape)
    if not styles:
        require_labels(generator, labels)

    def work(q: Any) -> Tensor:
        if not styles:
            return crop(render(generator, q["z"], None, truncation, q.get("label")), ratio)
        styled = require_styles(generator, "a style")
        ws = q["ws"] if truncation is None else truncate(styled, q["ws"], *truncation)
        return crop(styled.synthesis(ws), ratio)

    runner = BatchRunner(work, device, batches=-(-len(latents) // whole_tiles(batch)), log=log)
    with memory_explained(batch, device):
        for filled, count in in_tiles(range(len(latents)), batch, constant or runner.replays):
            q: Draws = {"ws" if styles else "z": latents[filled]}
            if labels is not None and not styles:
                q["label"] = labels[filled]
            yield runner(q)[:count]


def memory_explained(batch: int, device: torch.device) -> AbstractContextManager[None]:
    """Raise MissingError with advice when the memory of the GPU or the host runs out."""
    smaller = f"choose a smaller --batch, such as {min(batch // 2, BATCH)}"
    advice = smaller if batch > 8 else "use another device"
    return memory.explained(f"{device} has too little memory for {batch} images at once: {advice}")


def crop(images: Tensor, ratio: float) -> Tensor:
    """The part of square images that remains at another ratio, as a view.

    Args:
        images: [..., H, W].
        ratio: height / width of the image, `data.ratio` of the run.

    Returns:
        The largest centred rectangle of this ratio; see `gantx.data.crop`.
    """
    rows, columns = rectangle(images.shape[-2], images.shape[-1], ratio)
    return images[..., rows, columns]


def cropped_shape(generator: Generator, ratio: float) -> tuple[int, int, int]:
    """(C, H, W) of a generator's images after cropping."""
    channels, height, width = generator.image_shape
    rows, columns = rectangle(height, width, ratio)
    return channels, rows.stop - rows.start, columns.stop - columns.start


def render(
    generator: Generator,
    z: Tensor,
    noise: Draws | None,
    truncation: Truncation | None,
    labels: Tensor | None = None,
) -> Tensor:
    """Latents [B, *latent_shape] to float images [B, C, H, W], optionally with truncated styles."""
    given = {"labels": labels} if generator.classes and labels is not None else {}
    if truncation is None:
        return generator(z, noise, **given)
    styled = require_styles(generator, "truncation")
    ws = truncate(styled, styled.mapping(z, noise=noise, **given), *truncation)
    return styled.synthesis(ws, noise)


def quantise(images: Tensor, rule: Rounding = "round") -> Tensor:
    """Convert images in [-1, 1] to grey levels 0..255.

    Args:
        images: float [B, C, H, W].
        rule: `round` to the nearest level, halves upwards, as StyleGAN and most others do; `truncate`
            towards zero, as TransGAN's test script does, which darkens by half a level on average; `none`
            does not round.

    Returns:
        uint8 [B, C, H, W], or float32 for `none`.
    """
    images = images.float()
    if rule == "none":
        return ((images + 1) * 127.5).clamp(0, 255)
    offset = 128 if rule == "round" else 127.5
    return (images * 127.5 + offset).clamp(0, 255).to(torch.uint8)


def in_tiles(items: Iterable[Item], batch: int, constant: bool = False) -> Iterator[tuple[list[Item], int]]:
    """Split a sequence into batches of whole tiles; the last batch is padded with copies of its last item.

    Args:
        items: one per image.
        batch: images computed at once, rounded up to whole tiles.
        constant: pad the last batch to the size of the others, not only to whole tiles.

    Yields:
        The items of a batch, and how many of them are not padding.
    """
    remaining = iter(items)
    size = whole_tiles(batch)
    while chunk := list(itertools.islice(remaining, size)):
        filled = size if constant else whole_tiles(len(chunk))
        yield chunk + chunk[-1:] * (filled - len(chunk)), len(chunk)


def whole_tiles(count: int) -> int:
    """A number of images rounded up to whole tiles; in a tile every thread gets at least four rows."""
    tile = max(8, 4 * torch.get_num_threads())
    return -(-count // tile) * tile


class BatchRunner:
    """Computes one batch after another; for many batches on CUDA by replaying a captured graph.

    For a replay all batches must have the size of the first. The first batch is computed eagerly, which gives
    the shape of the images. From the second on, inputs are copied into those of the first, and images are
    copied from one output tensor.

    Args:
        work: maps draws on `device` to images; other tensors that it reads must stay at their address.
        device: where `work` computes.
        batches: number of batches that will be computed.
        log: receives a message if the graph cannot be replayed.

    Attributes:
        replays: whether a graph will be replayed.
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

    @full_precision()
    def __call__(self, draws: Draws) -> Tensor:
        """Images of `draws`, which may be on the host. Later calls do not overwrite them."""
        if self._capture is None:
            return self._work(place(draws, self._device))
        if self._replay is None:
            self._inputs = inputs = place(draws, self._device)
            work, images = self._work, self._work(inputs)
            self._images = kept = torch.empty(images.shape, dtype=images.dtype, device=images.device)
            # Without `self`, of which a cycle would keep the graph and its memory after the last batch.
            self._replay = Replay(
                partial(_write, kept, work, inputs),
                {"images": kept},
                capture=self._capture,
                name="sampling",
                log=self._log,
            )
            return images
        _refill(self._inputs, draws)
        self._replay()
        return self._images.clone()


def _write(images: Tensor, work: Callable[[Draws], Tensor], inputs: Draws) -> None:
    images.copy_(work(inputs))


def _refill(inputs: Draws, draws: Draws) -> None:
    """Copy draws into persistent tensors; copies from page-locked memory are asynchronous."""
    for name, kept in inputs.items():
        given = draws[name]
        if isinstance(kept, Tensor):
            assert isinstance(given, Tensor)
            kept.copy_(given, non_blocking=True)
        else:
            assert isinstance(given, dict)
            _refill(kept, given)


def capture_on(device: torch.device) -> Capture | None:
    """How work is captured on a device; None for the CPU, where launching kernels costs almost nothing."""
    return CudaGraphs(device) if device.type == "cuda" else None


def fetch(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Copy batches to the CPU; a batch on CUDA is copied while the next one is computed.

    Args:
        batches: tensors on any device, computed lazily.

    Yields:
        The same tensors on the CPU.
    """
    pending: deque[tuple[Tensor, torch.cuda.Event]] = deque()
    for batch in batches:
        if batch.device.type != "cuda":
            yield batch.cpu()
            continue
        copy = torch.empty(batch.shape, dtype=batch.dtype, pin_memory=True)
        copy.copy_(batch, non_blocking=True)
        arrived = torch.cuda.Event(blocking=True)
        arrived.record(torch.cuda.current_stream(batch.device))
        pending.append((copy, arrived))
        if len(pending) > 1:
            yield _arrived(*pending.popleft())
    while pending:
        yield _arrived(*pending.popleft())


def _arrived(copy: Tensor, event: torch.cuda.Event) -> Tensor:
    event.synchronize()
    return copy
