"""How many of the 18 modes of `shapes` a generator generates, and how many of its images are single shapes.

A small convolutional network, trained beforehand and shipped with gantx, classifies kind and colour of
images of one shape. It was also trained on images that are not in the set (noise, empty backgrounds; blurred,
cut, torn, rotated, mixed and wrongly coloured shapes; several shapes) as a class of their own.

- An image is *confident* when one of the 18 modes has a probability above `THRESHOLD` among the 18: kind and
  colour can be classified, however ragged the shape. Noise is confident in about one image of ten.
- A mode is *found* when at least one in `SHARE` of all images is confidently it.
- An image is *whole* when the probability of one mode is above `THRESHOLD` with the class of everything else
  included: it could pass for an image of the set. This is far stricter.

Its input is 32x32 pixels: other sizes are resized to that first. `benchmarks/train_shapes_classifier.py`
writes the file of weights and reports its error rates.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gantx.data.shapes import CLASS_NAMES
from gantx.errors import CheckpointError, DataError, MissingError, UsageError
from gantx.io.byte_names import utf8_path
from gantx.runtime.precision import full_precision
from gantx.runtime.random import global_state_kept

MODES = len(CLASS_NAMES)  # kind * 6 + colour, named by gantx.data.shapes.CLASS_NAMES
RESOLUTION = 32
THRESHOLD = 0.7  # above one half, so that no image is two modes
SHARE = 100  # a mode needs one image in so many; its fair share is one in 18
WEIGHTS = Path(__file__).with_name("shapes_classifier.safetensors")


class ClassifiedShapes(NamedTuple):
    """How a set of images was classified.

    Attributes:
        confident: share of the images whose kind and colour can be classified, in [0, 1].
        whole: share of the images that could pass for one of the set, in [0, 1].
        modes: how many of the 18 modes were found.
        counts: int64 [18] on the CPU, confident images of each mode.
        accuracy_on_real: share of real shapes that are whole and correctly classified: the value of `whole`
            for a perfect generator.
    """

    confident: float
    whole: float
    modes: int
    counts: Tensor
    accuracy_on_real: float


class ShapesClassifierNetwork(nn.Module):
    """Four convolutions, mean and maximum over the positions, one logit per mode and one for everything else.

    Shapes: images [B, 3, 32, 32], 0..255 -> logits [B, 19].
    """

    WIDTHS = (32, 48, 64, 64)
    STRIDES = (2, 1, 2, 1)

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inward, outward, 3, stride, padding=1)
            for inward, outward, stride in zip((3, *self.WIDTHS), self.WIDTHS, self.STRIDES, strict=False)
        )
        self.classify = nn.Linear(2 * self.WIDTHS[-1], MODES + 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images to logits; the last one stands for no single shape."""
        hidden = images / 127.5 - 1
        for convolution in self.convolutions:
            hidden = F.relu(convolution(hidden))
        # The maximum responds to a flaw anywhere, the mean to the area.
        pooled = torch.cat([hidden.mean((2, 3)), hidden.amax((2, 3))], dim=1)  # [B, 128]
        logits: Tensor = self.classify(pooled)
        return logits


class ShapesClassifier:
    """The trained network.

    Attributes:
        about: the description in the file: accuracy on real shapes, share of each sort of wrong image that is
            taken for a shape, and how the weights were made.
        accuracy_on_real: share of real shapes, none of them trained on, that it confidently classifies
            correctly.
        digest: SHA-256 of the file.

    Args:
        device: where the images will be.
        path: the file of weights.

    Raises:
        MissingError: the file is not there.
        CheckpointError: the file is damaged or not of this network.
    """

    def __init__(self, device: torch.device, path: Path = WEIGHTS) -> None:
        tensors, self.about, self.digest = _read(path)
        self.accuracy_on_real = float(self.about["accuracy_on_real"])
        with global_state_kept():
            network = ShapesClassifierNetwork()
        try:
            network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        except RuntimeError as problem:
            raise CheckpointError(
                f"{path} does not contain the classifier of shapes: reinstall gantx"
            ) from problem
        self._network = network.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Probabilities of the modes.

        Args:
            images: uint8 or float [B, 3, H, W] of any size, 0..255, on the classifier's device; float values
                outside are clipped. Sizes other than 32x32 are resized by bilinear interpolation, antialiased
                where they shrink; shapes are classified well from a resolution of 16 on.

        Returns:
            float32 [B, 18]; what is left to 1 is the probability that the image is no single shape.
        """
        images = images.float().clamp(0, 255)
        if images.shape[2:] != (RESOLUTION, RESOLUTION):
            images = F.interpolate(images, (RESOLUTION, RESOLUTION), mode="bilinear", antialias=True)
        with full_precision():
            return torch.softmax(self._network(images), dim=1)[:, :MODES]


class ModeCount:
    """Counts modes over batches of images, in one pass and without synchronising with the device.

    Attributes:
        digest: SHA-256 of the classifier's weights.
        images: counted so far.

    Args:
        device: where the images are.
        objects: shapes in an image of the set; only single ones have modes.

    Raises:
        UsageError: there is more than one shape in an image.
        MissingError, CheckpointError: the weights of the classifier cannot be read.
    """

    def __init__(self, device: torch.device, objects: int = 1) -> None:
        if objects != 1:
            raise UsageError(
                f"the metric modes counts single shapes, but the images have {objects} each: "
                "omit it, or train with data.shapes.objects=1"
            )
        self._classifier = ShapesClassifier(device)
        self.digest = self._classifier.digest
        self._counts = torch.zeros(MODES, dtype=torch.int64, device=device)
        self._whole = torch.zeros((), dtype=torch.int64, device=device)
        self._found: list[Tensor] = []
        self.images = 0

    def add(self, images: Tensor) -> None:
        """Count images, uint8 or float [B, 3, H, W], 0..255, any size, on the device."""
        probability = self._classifier(images)  # [B, 18]
        among = probability / probability.sum(dim=1, keepdim=True).clamp(min=1e-30)
        confident = among > THRESHOLD
        self._counts += confident.sum(dim=0)
        self._found.append(torch.where(confident.any(dim=1), confident.int().argmax(dim=1), -1))
        self._whole += (probability > THRESHOLD).sum()
        self.images += len(images)

    def modes(self) -> Tensor:
        """The mode of each image so far, int64 [N] on the CPU; -1 where it cannot be classified."""
        return torch.cat(self._found).cpu() if self._found else torch.zeros(0, dtype=torch.int64)

    def result(self) -> ClassifiedShapes:
        """The counts so far; DataError when no images were added."""
        if not self.images:
            raise DataError("there are no images to count modes in: add some first")
        counts = self._counts.cpu()
        return ClassifiedShapes(
            confident=int(counts.sum()) / self.images,
            whole=int(self._whole) / self.images,
            modes=int((counts * SHARE >= self.images).sum()),
            counts=counts,
            accuracy_on_real=self._classifier.accuracy_on_real,
        )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors, description and digest of a file of weights."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        with utf8_path(path) as readable, safe_open(readable, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            about: dict[str, Any] = json.loads(file.metadata()["recogniser"])
            return tensors, about, digest
    except OSError as problem:
        raise MissingError(f"cannot read the classifier of shapes, {path}: reinstall gantx") from problem
    except (SafetensorError, KeyError, TypeError, ValueError) as problem:
        raise CheckpointError(
            f"{path} does not contain the classifier of shapes: reinstall gantx"
        ) from problem
