"""Batches of images: their sizes, their computation by a replayed graph, their copies to the host."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from gantx.runtime.random import Draws, place
from gantx.runtime.replay import Capture, CudaGraphs, Log, Replay

REPLAYED_FROM = 6  # batches; with fewer, capturing takes longer than replaying saves

Item = TypeVar("Item")
to_log: Log = logging.getLogger("gantx").warning


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

    def __call__(self, draws: Draws) -> Tensor:
        """Images of `draws`, which may be on the host. Later calls do not overwrite them."""
        if self._capture is None:
            return self._work(place(draws, self._device))
        if self._replay is None:
            self._inputs = place(draws, self._device)
            images = self._work(self._inputs)
            self._images = torch.empty(images.shape, dtype=images.dtype, device=images.device)
            self._replay = Replay(
                self._compute,
                {"images": self._images},
                capture=self._capture,
                name="sampling",
                log=self._log,
            )
            return images
        _refill(self._inputs, draws)
        self._replay()
        return self._images.clone()

    def _compute(self) -> None:
        self._images.copy_(self._work(self._inputs))


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
