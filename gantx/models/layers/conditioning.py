"""Class-conditional inputs and logits.

Labels are int64 [B]. They enter as products with one-hot rows: these need no synchronisation, are
deterministic on every device, and can be differentiated twice, captured and exported.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gantx.models.layers.equalized import EqualLinear
from gantx.models.layers.normalization import rms_norm


def one_hot(labels: Tensor | None, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Labels [B] as rows [B, classes] with a single 1; ValueError when there are none.

    Rows [B, classes] are returned unchanged: their weights give points between classes, for interpolation.
    """
    if labels is None:
        raise ValueError(
            f"this network has {classes} classes: it needs labels (or take Model.of_class(label).network)"
        )
    if labels.is_floating_point():
        return labels.to(dtype)
    return (labels[:, None] == torch.arange(classes, device=labels.device)).to(dtype)


def for_labels(logits: Tensor, classes: int, labels: Tensor | None) -> Tensor:
    """Select the logit of each sample's class; without classes, drop the last axis.

    Args:
        logits: [B, max(classes, 1)].
        classes: number of classes, 0 for none.
        labels: int64 [B]; not used without classes.

    Returns:
        Logits [B].

    Raises:
        ValueError: there are classes but no labels.
    """
    if not classes:
        return logits.squeeze(1)
    return (logits * one_hot(labels, classes, logits.dtype)).sum(1)


class LabelEmbedding(nn.Module):
    """A learned vector for each class, divided by its root mean square, as latents are.

    Args:
        classes: number of classes.
        dim: size D of the vectors.
        scale: root mean square of a vector.
    """

    def __init__(self, classes: int, dim: int, scale: float = 1) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.randn(classes, dim))

    def forward(self, labels: Tensor | None) -> Tensor:
        """Labels [B] to vectors [B, D], float32."""
        return self.scale * rms_norm(one_hot(labels, len(self.weight), self.weight.dtype) @ self.weight)


class Projection(nn.Module):
    """Inner product of features and a learned vector for each class (Miyato and Koyama 2018, eq. 3), over √D.

    It is added to the unconditional logit of the same features. Dividing by √D, as StyleGAN2-ADA does, is a
    learning rate √D times smaller: without it the vectors of small networks follow the last generated images
    of a class instead of the class, and the discriminator wins (measured).

    Args:
        classes: number of classes.
        dim: size D of the features.
    """

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, dim))

    def forward(self, features: Tensor, labels: Tensor | None) -> Tensor:
        """Float32 features [B, D] of images with labels [B] to [B]."""
        vectors = one_hot(labels, len(self.weight), features.dtype) @ self.weight
        return (features * vectors).sum(1) / math.sqrt(features.shape[1])


class MappedLabels(nn.Module):
    """The conditional logit of StyleGAN2-ADA: a feature vector times the mapped label, over √D.

    A mapping network of its own turns the label's embedding into a vector. It multiplies in float32, as
    everything in a logit does.

    Args:
        classes: number of classes.
        dim: size D of the feature vector.
        layers: of the mapping network.
    """

    def __init__(self, classes: int, dim: int, layers: int = 8) -> None:
        super().__init__()
        self.embedding = LabelEmbedding(classes, dim)
        self.layers = nn.Sequential(
            *(EqualLinear(dim, dim, lr_multiplier=0.01, leaky=True, exact=True) for _ in range(layers))
        )

    def forward(self, features: Tensor, labels: Tensor | None) -> Tensor:
        """Float32 features [B, D] of images with labels [B] to logits [B]."""
        mapped: Tensor = self.layers(self.embedding(labels))
        return (features * mapped).sum(1) / math.sqrt(features.shape[1])
