"""Features are computed in full float32, whatever the training around them allows itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch off autocast and shortened float32 for the length of a `with`; the settings come back after it.

    NVIDIA GPUs since Ampere round the factors of convolutions and matrix products to 10 bits where TF32 is
    allowed, and PyTorch allows it for convolutions by default: a score would depend on the GPU.

    Args:
        device: where the computation runs.
    """
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution
