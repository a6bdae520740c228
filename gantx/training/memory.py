"""How much memory a phase takes at its peak, worked out without memory: for `gantx train --dry-run`."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gantx.runtime.random import Draw, Draws, Spec, take
from gantx.training.phase import Phase, differentiate


class PeakMeter(TorchDispatchMode):
    """Counts the bytes of all tensors made within that are alive at the same time.

    Works on the meta device, where tensors have shapes and lifetimes but no memory.

    Attributes:
        peak: the most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: set[int] = set()
        self._before: dict[
            int, torch.UntypedStorage
        ] = {}  # parameters and the like, which were there already

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count what it makes."""
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and id(storage := value.untyped_storage()) not in self._known:
                self._before[id(storage)] = storage
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known or key in self._before:
            return
        self._known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def peaks(phase: Phase, side: int) -> list[int]:
    """Bytes that each pass of a phase takes on top of networks and optimisers, in float32.

    Args:
        phase: of networks on the meta device.
        side: of the images in pixels.
    """
    for other in phase.frozen:
        other.train_parameters(False)
    phase.trained.train_parameters(True)
    found = []
    for loss, samples, _ in phase.passes:
        with PeakMeter() as meter:
            draws = take(_shaped(phase.spec), phase.spec, slice(0, samples))
            reals = {name: torch.empty(samples, 3, side, side, device="meta") for name in phase.reals}
            differentiate(loss, phase.trained.parameters, reals, draws, 1.0)
        found.append(meter.peak)
    return found


def _shaped(spec: Spec) -> Draws:
    """Draws without numbers."""
    return {
        name: torch.empty(
            wanted.shape, device="meta", dtype=torch.int64 if wanted.kind == "integers" else torch.float32
        )
        if isinstance(wanted, Draw)
        else _shaped(wanted)
        for name, wanted in spec.items()
    }
