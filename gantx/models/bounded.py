"""Checks that a network is not larger than the file that describes it, before it is built.

A configuration in a file can ask for any depth. The network is therefore built on the meta device first,
which takes no memory for weights, and this stops as soon as it has more weights than the file.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from gantx import models
from gantx.config.section import Section

MOST_COMPUTED = 2**28  # numbers in buffers, of which a network may compute some, such as tables of positions
_SPARE = 2  # a network may make a weight twice, when it replaces one by another


class TooLargeError(ValueError):
    """A network has more weights than its file."""


def check_within(section: Section, numbers: int, channels: int = 3) -> None:
    """Check the size of the network that a section from a file describes.

    Args:
        section: the section.
        numbers: weights and saved buffers that the file contains.
        channels: of the images, `data.channels`.

    Raises:
        TooLargeError: the network has more weights, or buffers of more than `MOST_COMPUTED` numbers beside.
    """
    here = threading.get_ident()
    weights = computed = 0

    def count_weight(module: nn.Module, name: str, weight: Any) -> None:
        nonlocal weights
        if weight is not None and threading.get_ident() == here:
            weights += weight.numel()
            require(weights, _SPARE * numbers)

    def count_buffer(module: nn.Module, name: str, buffer: Any) -> None:
        nonlocal computed
        if buffer is not None and threading.get_ident() == here:
            computed += buffer.numel()
            require(computed, _SPARE * numbers + MOST_COMPUTED)

    def require(count: int, allowed: int) -> None:
        if count > allowed:
            raise TooLargeError(f"it describes a network of more than the {numbers:,} weights that it has")

    hooks = [
        nn.modules.module.register_module_parameter_registration_hook(count_weight),
        nn.modules.module.register_module_buffer_registration_hook(count_buffer),
    ]
    try:
        with torch.device("meta"):
            models.build(section, channels)
    finally:
        for hook in hooks:
            hook.remove()
