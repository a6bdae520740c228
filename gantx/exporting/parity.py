"""Numerical comparison of another runtime with PyTorch, run after every export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gantx.errors import CheckFailed

BATCHES = (1, 3, 8)
TOLERANCE = 1e-4  # of the largest value, or of 255 grey levels

Run = Callable[..., Tensor]


class Difference(NamedTuple):
    """Result of the comparison of one batch.

    Attributes:
        batch: number of images.
        largest: maximum absolute difference of a value; for grey levels in excess of their rounding.
        scale: maximum absolute value in PyTorch; 255 for grey levels.
    """

    batch: int
    largest: float
    scale: float

    @property
    def relative(self) -> float:
        """The difference divided by the scale."""
        return self.largest / self.scale

    def to_document(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {**self._asdict(), "relative": self.relative}


@torch.no_grad()
def compare(reference: nn.Module, run: Run, inputs: Sequence[Tensor]) -> list[Difference]:
    """Compare a runtime with PyTorch at the batch sizes `BATCHES`.

    Args:
        reference: the network, unrounded where the runtime returns uint8.
        run: the exported network in the other runtime.
        inputs: of the network, each with `max(BATCHES)` rows.
    """
    found = []
    for batch in BATCHES:
        rows = [tensor[:batch] for tensor in inputs]
        expected, got = reference(*rows), run(*rows)
        if got.shape != expected.shape:
            raise CheckFailed(
                f"{batch} images have the shape {list(got.shape)} instead of {list(expected.shape)}: "
                "nothing was written"
            )
        levels = got.dtype == torch.uint8
        beyond = (got.double() - expected.double()).abs() - (0.5 if levels else 0)
        scale = 255.0 if levels else float(expected.abs().max())
        found.append(Difference(batch, float(beyond.clamp(min=0).max()), scale))
    return found


def require_close(differences: Sequence[Difference], runtime: str) -> None:
    """CheckFailed if a difference exceeds the tolerance or is NaN."""
    for difference in differences:
        if not difference.largest <= TOLERANCE * difference.scale:
            raise CheckFailed(
                f"{runtime} differs from PyTorch by {difference.largest:.3g} where values reach "
                f"{difference.scale:.3g} (batch {difference.batch}, allowed {TOLERANCE:g} of that): "
                "nothing was written"
            )
