"""Checks of feature sets before a metric uses them, and the size of the blocks they are processed in."""

from __future__ import annotations

import torch
from torch import Tensor

from gantx.errors import DataError

_BLOCK = 2**23  # elements of a block of distances, kernel values or probabilities


def comparable(real: Tensor, fake: Tensor, least: int, what: str) -> tuple[Tensor, Tensor]:
    """Both sets on the CPU, checked.

    Args:
        real: features [N, D] of real images.
        fake: features [M, D] of generated images.
        least: images that each side must have.
        what: is computed, for the message.

    Raises:
        DataError: fewer images, features that are not finite or of different networks.
    """
    real, fake = checked(real), checked(fake)
    if real.shape[1] != fake.shape[1]:
        raise DataError(
            f"features of {real.shape[1]} and {fake.shape[1]} values cannot be compared: "
            "measure both sides with the same feature network"
        )
    require_images(min(len(real), len(fake)), least, what)
    return real, fake


def checked(features: Tensor) -> Tensor:
    """The rows [N, D] on the CPU, at least in float32; DataError when they are not finite."""
    rows = features.detach().cpu()
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if not bool(rows.isfinite().all()):
        raise DataError(
            "the feature network gave values that are not finite, which no metric can use: look at the images"
        )
    return rows


def require_images(count: int, least: int, what: str) -> None:
    """Raise DataError where there are fewer than `least` images for `what`."""
    if count < least:
        raise DataError(f"{count} images are too few for {what}: take {least} or more of each side")


def rows_per_block(columns: int) -> int:
    """How many rows of so many columns are processed at once."""
    return max(1, _BLOCK // max(columns, 1))
