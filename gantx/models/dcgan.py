"""The discriminator of DCGAN (Radford et al., arXiv 1511.06434) without batch normalisation: quick on a CPU.

Notable in it:
- 4x4 convolutions of stride 2 with leaky ReLU, down to 4x4 positions
- no normalisation: gradient penalties of the objective keep it smooth
- the minibatch standard deviation (arXiv 1710.10196) and one 3x3 convolution before the logit are ours
- initialisation by He et al. in place of N(0, 0.02)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.config.networks.dcgan import DCGANDiscriminatorConfig
from gantx.models import interfaces
from gantx.models.layers.conditioning import Projection
from gantx.models.layers.convolution import Convolution
from gantx.models.layers.minibatch_std import minibatch_standard_deviation
from gantx.runtime.random import Draws, Spec

SLOPE = 0.2  # of the leaky ReLU for negative input


class Discriminator(interfaces.Discriminator):
    """Strided convolutions down to 4x4, then one logit.

    Args:
        config: the section `discriminator:`; gantx.config.networks.dcgan documents its fields.
        image_channels: of the images: 1 (grey), 3 or 4 (RGBA).

    Attributes:
        group_size: samples in a group of the minibatch standard deviation; see `MinibatchDependent`.
    """

    def __init__(self, config: DCGANDiscriminatorConfig, image_channels: int = 3) -> None:
        super().__init__()
        self.group_size = config.group_size
        halvings = config.resolution.bit_length() - 3  # down to 4x4
        widths = [min(config.channels * 2**level, config.channel_max) for level in range(halvings)]
        self.convolutions = nn.ModuleList(
            Convolution(inward, outward, 4, stride=2, padding=1)
            for inward, outward in zip((image_channels, *widths), widths, strict=False)
        )
        last = widths[-1]
        self.epilogue = Convolution(last + 1, last, 3, padding=1)
        features = last * 4**2
        self.out = nn.Linear(features, 1)  # logits are float32
        for convolution in (*self.convolutions, self.epilogue):
            nn.init.kaiming_normal_(convolution.get_parameter("weight"), SLOPE)
            nn.init.zeros_(convolution.get_parameter("bias"))
        self.classes = config.classes
        # Ours: projection (Miyato and Koyama 2018).
        self.projection = Projection(config.classes, features) if config.classes else None

    def noise_spec(self, batch: int) -> Spec:
        """{}: the discriminator is deterministic."""
        return {}

    def forward(
        self, images: Tensor, noise: Draws | None = None, labels: Tensor | None = None, parts: int = 1
    ) -> Tensor:
        """Compute logits.

        Args:
            images: [B, C, R, R].
            noise: not used.
            labels: int64 [B] with classes, otherwise not used.
            parts: the batch consists of this many equal batches, one after the other, that must not be
                compared with each other, such as real and generated images.

        Returns:
            Logits [B].
        """
        x = images
        for convolution in self.convolutions:
            x = F.leaky_relu(convolution(x), SLOPE)
        deviation = minibatch_standard_deviation(x, self.group_size, 1, parts)  # [B, 1]
        x = torch.cat([x, deviation[:, :, None, None].expand(-1, -1, *x.shape[2:])], dim=1)
        x = F.leaky_relu(self.epilogue(x), SLOPE)
        features = x.flatten(1)
        logits: Tensor = self.out(features).squeeze(1)
        if self.projection is not None:
            logits = logits + self.projection(features, labels)
        return logits
