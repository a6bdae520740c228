"""Protocols: how a score is measured, by name.

Two scores can be compared only when they were measured in the same way. A protocol fixes everything that
affects a score and is not the generator; docs/evaluation.md gives the source of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from gantx.errors import UsageError, closest


@dataclass(frozen=True)
class Protocol:
    """One way of measuring scores.

    Attributes:
        name: as given to `--protocol`.
        summary: one line for people.
        resize: how images are resized to the feature network's input (gantx.evaluation.resizing).
        quantise: how the generator's floats become grey levels (gantx.generation.sampling.quantise).
        num: generated images.
        split: the part of the data that is the reference.
        reference_num: reference images, drawn without replacement; None takes all.
        mirror: each reference image is flipped with probability one half where the generator was trained so.
        ddof: 1 divides covariances by N - 1, 0 by N.
        is_splits: contiguous parts whose Inception Scores are averaged.
        neighbours: images of each side that enter precision, recall, density and coverage, at most.
    """

    name: str
    summary: str
    resize: Literal["clean", "legacy-tensorflow", "legacy-pytorch"] = "clean"
    quantise: Literal["round", "truncate", "none"] = "round"
    num: int = 50_000
    split: Literal["train", "test"] = "train"
    reference_num: int | None = None
    mirror: bool = False
    ddof: Literal[0, 1] = 1
    is_splits: int = 10
    neighbours: int = 10_000


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("clean-50k", "clean-fid's resizing, 50,000 images against the whole training set"),
        Protocol(
            "stylegan-50k-full",
            "StyleGAN2-ADA and later: TensorFlow's resizing, covariances divided by N",
            resize="legacy-tensorflow",
            ddof=0,
            neighbours=50_000,
        ),
        Protocol(
            "transgan-test",
            "TransGAN's test script: TensorFlow's resizing, grey levels truncated",
            resize="legacy-tensorflow",
            quantise="truncate",
        ),
        Protocol(
            "vitgan-release",
            "ViTGAN's public code: PyTorch's resizing, 10,000 unrounded images against the test set",
            resize="legacy-pytorch",
            quantise="none",
            num=10_000,
            split="test",
            mirror=True,
        ),
        Protocol(
            "ganformer-50k",
            "GANformer's TensorFlow code: 50,000 images against 50,000, mirrored as in training",
            resize="legacy-tensorflow",
            reference_num=50_000,
            mirror=True,
            neighbours=50_000,
        ),
    )
}


def named(name: str) -> Protocol:
    """The protocol of this name; UsageError with the closest one when there is none."""
    if name not in PROTOCOLS:
        raise UsageError(f"no protocol '{name}'{closest(name, PROTOCOLS)}: there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def ratio_stamp(ratio: float) -> dict[str, Any]:
    """The fields of a stamp for images that are `ratio` times as high as wide.

    Square images have none, so that their protocols keep the hashes from before other ratios were possible.
    """
    return {} if ratio == 1 else {"ratio": ratio}


def channels_stamp(channels: int) -> dict[str, Any]:
    """The fields of a stamp for images that are scored as RGB, which has the hashes from before others."""
    return {} if channels == 3 else {"channels": channels}
