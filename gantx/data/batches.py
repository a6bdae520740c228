"""The order of images, and batches of them on the device.

Image number i of a stream is a function of (seed, stream, i) only: epoch e = i // N contains every image
once, in an order and with flips that are drawn from a generator seeded with (seed, stream, e). So a
resumed run gets the images of an uninterrupted one, any split of a batch among ranks gives the same images,
and a batch that reaches past the end of an epoch continues in the next.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gantx.data.prepare import Prepared
from gantx.runtime import devices

_ORDERS_KEPT = 2  # epochs per stream; a batch may span two
_FETCHES_KEPT = 8  # upper bound of prefetched batches that have not been requested


class _Order(NamedTuple):
    """One epoch or a part of one: which images, and which of them are mirrored."""

    rows: Tensor  # int64 [n]
    flips: Tensor | None  # bool [n]; None without mirroring


class _Fetched(NamedTuple):
    """A batch that is being copied to the device."""

    pixels: Tensor  # uint8 [B, C, R, R] on the device
    flips: Tensor | None  # bool [B] on the device
    arrived: torch.cuda.Event | None  # recorded after the copies


class Batches:
    """Endless streams of real images.

    Resident: the whole set is on the device as uint8 (on the CPU it stays mapped from the cache, without a
    copy). Streaming: each batch is gathered on the host and copied; `prefetch` does that in the background.
    Both give bit-identical images.

    Args:
        prepared: the images.
        seed: seed of the order.
        mirror: flip each image left-right with probability one half, drawn anew in each epoch.
        device: device of the batches.
        resident: "device", "stream", or "auto": resident unless the set takes more than a third of the free
            memory of a CUDA device.

    Attributes:
        resident: whether the set is resident.
        labelled: whether the images have labels.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        seed: int,
        mirror: bool,
        device: torch.device,
        resident: Literal["auto", "device", "stream"],
    ) -> None:
        self.resident = resident == "device" or (resident == "auto" and _fits(prepared, device))
        self._seed = seed
        self._mirror = mirror
        self._device = devices.with_index(torch.device(device))
        with warnings.catch_warnings():
            # The mapped file is read-only, which torch cannot express; nothing here writes to it.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            images = torch.from_numpy(prepared.images)
        self._prepared = prepared
        self._on_device = self.resident and self._device.type != "cpu"
        if self._on_device:
            prepared.verify()
        self._images = images.to(self._device) if self.resident else images
        self.labelled = prepared.labels is not None
        self._labels = torch.empty(0, dtype=torch.int64)
        if prepared.labels is not None:
            self._labels = torch.from_numpy(prepared.labels).to(self._images.device)
        self._orders: dict[str, dict[int, _Order]] = {}
        self._lock = threading.Lock()
        self._fetches: dict[tuple[str, int, int], Future[_Fetched]] = {}
        self._fetcher: ThreadPoolExecutor | None = None
        on_cuda = self._device.type == "cuda" and not self.resident
        self._copies = torch.cuda.Stream(self._device) if on_cuda else None

    def __len__(self) -> int:
        """Number of images in one epoch."""
        return len(self._images)

    def at(self, stream: str, start: int, count: int) -> Tensor:
        """Images start..start+count-1 of a stream.

        Args:
            stream: name of the stream; each has its own order.
            start: number of the first image, from 0, counted over all epochs.
            count: how many images; may exceed the size of the set.

        Returns:
            float32 [count, C, R, R] in [-1, 1] on the device: pixel / 127.5 - 1.
        """
        images = torch.empty((count, *self._images.shape[1:]), device=self._device)
        self.fill(images, stream, start)
        return images

    def fill(self, images: Tensor, stream: str, start: int) -> None:
        """Write images start, start + 1, ... of a stream, as `at` gives them, into `images` [B, C, R, R]."""
        count = len(images)
        if self.resident:
            order = self._order(stream, start, count)
            if not self._on_device:
                self._prepared.verify(order.rows.numpy())
            pixels, flips = self._images.index_select(0, order.rows), order.flips
        else:
            pixels, flips, _ = self._arrived(stream, start, count)
        _to_float(pixels, flips, images)

    def fill_labels(self, labels: Tensor, stream: str, start: int) -> None:
        """Write the labels of the images that `fill` writes into `labels` [B], int64."""
        chosen = self._labels.index_select(0, self._order(stream, start, len(labels)).rows)
        if self._copies is not None:  # so that the copy does not wait for the device
            chosen = chosen.pin_memory()
        labels.copy_(chosen, non_blocking=True)

    def labels_at(self, stream: str, start: int, count: int) -> Tensor:
        """The labels of the images that `at` returns, int64 [count] on the device."""
        labels = torch.empty(count, dtype=torch.int64, device=self._device)
        self.fill_labels(labels, stream, start)
        return labels

    def prefetch(self, stream: str, start: int, count: int) -> None:
        """Start to fetch what `at` with the same arguments will return; does nothing if resident."""
        key = (stream, start, count)
        if self.resident or key in self._fetches:
            return
        if self._fetcher is None:
            self._fetcher = ThreadPoolExecutor(1, "fetch")
        while len(self._fetches) >= _FETCHES_KEPT:
            self._fetches.pop(next(iter(self._fetches))).cancel()
        self._fetches[key] = self._fetcher.submit(self._fetch, stream, start, count)

    def _arrived(self, stream: str, start: int, count: int) -> _Fetched:
        """A batch, prefetched or fetched now; the current stream waits until it is on the device."""
        waiting = self._fetches.pop((stream, start, count), None)
        fetched = self._fetch(stream, start, count) if waiting is None else waiting.result()
        if fetched.arrived is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(fetched.arrived)
            # The memory belongs to the copying stream; it must not be reused before this stream has read it.
            for tensor in (fetched.pixels, fetched.flips):
                if tensor is not None:
                    tensor.record_stream(current)
        return fetched

    def _fetch(self, stream: str, start: int, count: int) -> _Fetched:
        rows, flips = self._order(stream, start, count)
        self._prepared.verify(rows.numpy())
        if self._copies is None:
            pixels = self._images.index_select(0, rows).to(self._device)
            return _Fetched(pixels, None if flips is None else flips.to(self._device), None)
        pinned = torch.empty((count, *self._images.shape[1:]), dtype=torch.uint8, pin_memory=True)
        torch.index_select(self._images, 0, rows, out=pinned)
        with torch.cuda.stream(self._copies):
            pixels = pinned.to(self._device, non_blocking=True)
            if flips is not None:
                flips = flips.pin_memory().to(self._device, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(self._copies)
        return _Fetched(pixels, flips, arrived)

    def _order(self, stream: str, start: int, count: int) -> _Order:
        """Rows and flips of images start..start+count-1, which may span epochs."""
        size = len(self._images)
        rows, flips = [], []
        while count > 0:
            epoch, first = divmod(start, size)
            whole = self._epoch(stream, epoch)
            last = min(first + count, size)
            rows.append(whole.rows[first:last])
            if whole.flips is not None:
                flips.append(whole.flips[first:last])
            start, count = start + last - first, count - (last - first)
        if len(rows) == 1:  # the common case, without a copy
            return _Order(rows[0], flips[0] if flips else None)
        return _Order(torch.cat(rows), torch.cat(flips) if flips else None)

    def _epoch(self, stream: str, epoch: int) -> _Order:
        with self._lock:  # the prefetching thread calls this too
            orders = self._orders.setdefault(stream, {})
            if epoch not in orders:
                while len(orders) >= _ORDERS_KEPT:
                    del orders[next(iter(orders))]
                orders[epoch] = self._draw(stream, epoch)
            return orders[epoch]

    def _draw(self, stream: str, epoch: int) -> _Order:
        # Always drawn on the CPU, so that the order does not depend on the device.
        path = f"{self._seed}/images/{stream}/{epoch}".encode()
        generator = torch.Generator("cpu")
        generator.manual_seed(int.from_bytes(hashlib.blake2b(path, digest_size=8).digest(), "little") >> 1)
        size = len(self._images)
        rows = torch.randperm(size, generator=generator)
        flips = torch.rand(size, generator=generator) < 0.5 if self._mirror else None
        return _Order(self._placed(rows), None if flips is None else self._placed(flips))

    def _placed(self, tensor: Tensor) -> Tensor:
        """Move an order to the images, without waiting for a GPU."""
        on_gpu = self._images.device.type == "cuda"
        return (tensor.pin_memory() if on_gpu else tensor).to(self._images.device, non_blocking=on_gpu)


def _to_float(pixels: Tensor, flips: Tensor | None, out: Tensor) -> None:
    """Write uint8 [B, C, R, R], mirrored where `flips` [B] is true, to float32 `out` in [-1, 1]."""
    if flips is not None:
        pixels = torch.where(flips[:, None, None, None], pixels.flip(-1), pixels)
    torch.div(pixels, 127.5, out=out).sub_(1.0)


def _fits(prepared: Prepared, device: torch.device) -> bool:
    """Whether the set takes less than a third of a CUDA device's free memory; True on other devices."""
    if torch.device(device).type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return prepared.images.nbytes < free / 3
