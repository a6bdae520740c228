"""Full float32 arithmetic for features, independent of the precision of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Disable reduced-precision float32 arithmetic within a `with` block and restore the settings after it.

    NVIDIA GPUs since Ampere round the factors of convolutions and matrix products to 10 bits where TF32 is
    allowed, and PyTorch allows it for convolutions by default: a score would depend on the GPU. A caller's
    autocast region would lower the types themselves.

    Args:
        device: where the computation runs.
    """
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    autocast = torch.is_autocast_enabled(device.type)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.set_autocast_enabled(device.type, False)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution
        torch.set_autocast_enabled(device.type, autocast)
