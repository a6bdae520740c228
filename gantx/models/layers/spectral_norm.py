"""Spectral normalisation of weight matrices (Miyato et al. 2018; improved: Lee et al. 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def top_singular(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular value σ of a matrix [M, N] and its vectors: u [M], σ (0-d), v [N]."""
    left, values, right = torch.linalg.svd(matrix.detach(), full_matrices=False)
    return left[:, 0].clone(), values[0].clone(), right[0].clone()


class SpectralNorm(nn.Module):
    """The factor that gives a weight matrix W a fixed spectral norm: target / σ(W).

    σ is uᵀWv with the singular vectors kept as buffers. They are exact at initialisation and updated by one
    power step in `advance_spectral_norms`. Autograd treats them as constants, so the gradient of σ is uvᵀ.

    Args:
        weight: the initial matrix, [M, N].
        target: the spectral norm to keep; None for that of the initial `weight`, as in improved
            spectral normalisation (ISN of the paper).
    """

    target: Tensor
    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, target: float | None = None) -> None:
        super().__init__()
        u, sigma, v = top_singular(weight)
        self.register_buffer("target", sigma if target is None else torch.full_like(sigma, target))
        self.register_buffer("u", u)
        self.register_buffer("v", v)

    def forward(self, weight: Tensor) -> Tensor:
        """The 0-d factor for `weight` [M, N]."""
        # A dot product of the flattened matrices: one sum over the weight, in float32 like the weight.
        return self.target / torch.dot(weight.flatten(), torch.outer(self.u, self.v).flatten())


class ReleasedSpectralNorm(nn.Module):
    """The same factor as in the released code: σ is estimated by one power step from a constant vector u.

    At initialisation this underestimates σ by about a quarter, so effective weights are too large by as much.
    The gradient passes through the power step; the released code also trains u, which ours does not.

    Args:
        weight: the initial matrix, [M, N].
    """

    target: Tensor
    u: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("target", top_singular(weight)[1])
        self.register_buffer("u", F.normalize(torch.randn_like(weight[:, 0]), dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        """The 0-d factor for `weight` [M, N]."""
        # In float32 like the weight, whatever the compute type of its layer.
        v = (weight * self.u[:, None]).sum(0)  # [N]
        v = v / (v.norm() + 1e-4)
        mapped = (weight * v).sum(1)  # [M]
        u = mapped / (mapped.norm() + 1e-4)
        factor: Tensor = self.target / (u * mapped).sum()
        return factor


def build_spectral_norm(kind: str, weight: Tensor, scale: float) -> nn.Module | None:
    """Build the normalisation of a matrix that is multiplied by `scale` afterwards; None for `none`.

    Args:
        kind: `none`, `plain` (spectral norm 1, scale included), `improved` or `released`.
        weight: the initial matrix, [M, N].
        scale: the constant of the equalised layer.
    """
    match kind:
        case "none":
            return None
        case "plain":
            return SpectralNorm(weight, target=1 / scale)
        case "improved":
            return SpectralNorm(weight)
        case "released":
            return ReleasedSpectralNorm(weight)
    raise ValueError(f"unknown spectral norm {kind}")
