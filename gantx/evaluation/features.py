"""Images to features: Inception, a network from a file, or a random one.

All take images of grey levels 0..255 and give float32 features [B, D], computed in full float32. A score is
named after its network: FID and KID exist in the features of Inception only.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gantx.evaluation import inception_weights
from gantx.evaluation.assets import ASSETS, locate
from gantx.evaluation.inception import FEATURES
from gantx.evaluation.onnx_features import OnnxFeatures
from gantx.evaluation.resizing import resize as resized
from gantx.evaluation.targets import require_features
from gantx.io.home import expanded
from gantx.runtime.precision import full_precision
from gantx.runtime.random import Draw, Spec, draw

_ON_CPU, _ON_GPU = 8, 128  # images of one pass through a network the size of Inception; 8 was quickest


class FeatureOutput(NamedTuple):
    """The output of a feature network.

    Attributes:
        features: float32 [B, D] on the device.
        logits: class scores [B, 1008] without bias, or None where the network has no classes.
    """

    features: Tensor
    logits: Tensor | None


class FeatureNetwork(Protocol):
    """A network in whose features scores are computed.

    Attributes:
        name: `inception`, `random`, or the name of the file.
        digest: SHA-256 of the weights.
        verified: the digest is the published one, or there is none to compare with.
        resize: rule by which it resizes images, `none` where it does not.
        dim: number of features.
        has_logits: whether it has class scores.
        batch: images of one pass.
    """

    name: str
    digest: str
    verified: bool
    resize: str
    dim: int
    has_logits: bool
    batch: int

    def __call__(self, images: Tensor) -> FeatureOutput:
        """Images uint8 or float [B, 3, H, W], 0..255, on the device, to features."""


def open_features(
    choice: str, *, resize: str, weights: Path | None, device: torch.device, allow_unverified: bool
) -> FeatureNetwork:
    """Open a feature network.

    Args:
        choice: `inception`, `random`, or an .onnx file.
        resize: rule by which Inception resizes images.
        weights: file of Inception's weights; None looks in the usual places.
        device: where to compute.
        allow_unverified: take weights whose digest is not the published one.

    Raises:
        UsageError: `choice` is none of these, or `weights` is given for another network than Inception.
        MissingError: weights, file or package are not there.
        DataError: the file does not contain such a network.
    """
    if choice == "inception":
        carrier = inception_weights.CARRIERS[resize]
        asset = ASSETS["inception" if carrier == "torchscript" else "inception-pytorch"]
        located = locate(asset, weights, allow_unverified=allow_unverified)
        return _Inception(located.path, located.digest, located.verified, resize, device)
    require_features(choice, weights)
    if choice == "random":
        return _Random(device)
    path = expanded(choice)
    return _FromFile(path, device)


class _Inception:
    """The Inception of FID; see gantx.evaluation.inception."""

    name = "inception"
    dim = FEATURES
    has_logits = True

    def __init__(self, path: Path, digest: str, verified: bool, resize: str, device: torch.device) -> None:
        self.digest, self.verified, self.resize = digest, verified, resize
        self.batch = _ON_GPU if device.type == "cuda" else _ON_CPU
        network = inception_weights.load(path, resize, digest=digest)
        self._network = network.to(device).to(memory_format=torch.channels_last)
        self._device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> FeatureOutput:
        with full_precision():
            return FeatureOutput(*self._network(resized(images, self.resize)))


class _Random:
    """Three convolutions with fixed random weights: no file, seconds on a CPU, for rough comparisons only.

    Images are averaged or repeated to 32×32 first. Features are the means and standard deviations over the
    positions of the last two layers.
    """

    name = "random"
    verified = True
    resize = "none"
    dim = 256
    has_logits = False
    batch = 256

    _WIDTHS = (3, 32, 64, 64)

    def __init__(self, device: torch.device) -> None:
        digest = hashlib.sha256()
        self._filters = []
        for layer, (inward, outward) in enumerate(itertools.pairwise(self._WIDTHS)):
            spec: Spec = {"weight": Draw("uniform", (outward, inward, 3, 3), per="batch")}
            drawn = draw(spec, seed=0, stream="random features", step=layer, device=torch.device("cpu"))
            assert isinstance(drawn["weight"], Tensor)
            # Of variance 2 / fan-in. Uniform, because these are the same bits on every machine.
            weight = (2 * drawn["weight"] - 1) * math.sqrt(6 / (9 * inward))
            digest.update(weight.numpy().tobytes())
            self._filters.append(weight.to(device))
        self.digest = digest.hexdigest()
        self._device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> FeatureOutput:
        with full_precision():
            hidden = F.adaptive_avg_pool2d(images.float(), 32) / 127.5 - 1  # [B, 3, 32, 32]
            found = []
            for stride, weight in zip((1, 2, 2), self._filters, strict=True):
                hidden = F.relu(F.conv2d(hidden, weight, stride=stride, padding=1))
                found += [hidden.mean((2, 3)), hidden.std((2, 3))]
            return FeatureOutput(torch.cat(found[2:], 1), None)


class _FromFile:
    """A network of the user's; see gantx.evaluation.onnx_features."""

    verified = True
    resize = "none"
    has_logits = False

    def __init__(self, path: Path, device: torch.device) -> None:
        self.name = path.stem
        self._network = OnnxFeatures(path, device)
        self.digest, self.dim = self._network.digest, self._network.dim
        self.batch = self._network.batch or _ON_GPU
        self._device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> FeatureOutput:
        with full_precision():
            return FeatureOutput(self._network(images.float()), None)
