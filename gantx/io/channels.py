"""Channels of pictures: grey (1), RGB (3), RGB and straight alpha (4); conversions between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # outputs are checked before torch is imported
    from torch import Tensor


def to_rgb(images: Tensor) -> Tensor:
    """Images as RGB: grey is repeated, what is transparent is composited over white; differentiable.

    Args:
        images: [..., C, H, W] with 1, 3 or 4 channels, values 0..255.

    Returns:
        [..., 3, H, W] of the same type, rounded if that is uint8; RGB images are returned as they are.
    """
    channels = images.shape[-3]
    if channels == 3:
        return images
    if channels == 1:
        return images.expand(*images.shape[:-3], 3, *images.shape[-2:])
    colours, alpha = images[..., :3, :, :], images[..., 3:, :, :]
    if images.is_floating_point():
        return 255 - (255 - colours) * (alpha / 255)
    # In integers, halves upwards: a pixel is the same on every device.
    covered = (255 - colours.int()) * alpha.int()
    return (255 - (covered + 127) // 255).to(images.dtype)


def extended(image: Tensor, channels: int) -> Tensor:
    """An image with as many channels or more: grey is repeated, alpha is opaque.

    Args:
        image: uint8 [C, H, W].
        channels: 1, 3 or 4, at least C.

    Returns:
        uint8 [channels, H, W].
    """
    if channels > 1 and image.shape[0] == 1:
        image = image.expand(3, -1, -1)
    if image.shape[0] == channels:
        return image
    import torch

    return torch.cat([image, image.new_full((1, *image.shape[1:]), 255)])
