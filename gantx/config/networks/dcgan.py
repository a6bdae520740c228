"""The section of DCGAN's discriminator."""

from __future__ import annotations

from typing import Literal

from gantx.config.networks.stylegan2 import PowerOfTwo
from gantx.config.section import Classes, Positive, Section


class DCGANDiscriminatorConfig(Section):
    """Strided convolutions, as in DCGAN (arXiv 1511.06434); see gantx.models.dcgan.

    Attributes:
        resolution: height and width of the images it receives, a power of two from 8.
        channels: of the first convolution; every later one has twice as many, ...
        channel_max: ... but no more than this.
        group_size: samples in a group of the minibatch standard deviation.
        classes: number of classes, 0 for none; a run sets it from `conditioning`.
    """

    family: Literal["dcgan"] = "dcgan"
    resolution: PowerOfTwo = 32
    channels: Positive = 32
    channel_max: Positive = 512
    group_size: Positive = 4
    classes: Classes = 0
