"""How fast images become features: gantx against clean-fid's own path, on the same random weights.

    OMP_NUM_THREADS=1 python benchmarks/inception_throughput.py [--images 64] [--size 32]

Both sides start from the same PNG files and end with features; one thread, CPU time of the process, taken
alternately, the best of three turns each. Prints the table that results/ keeps.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.random_inception import random_inception, write_torchscript  # noqa: E402

from gantx.evaluation.features import open_features  # noqa: E402
from gantx.evaluation.frechet import Gaussian  # noqa: E402
from gantx.evaluation.image_sets import open_images  # noqa: E402
from gantx.evaluation.inception_weights import open_torchscript  # noqa: E402

CPU = torch.device("cpu")


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--images", type=int, default=64)
    options.add_argument("--size", type=int, default=32)
    options.add_argument("--turns", type=int, default=3)
    asked = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["GANTX_CACHE"] = str(folder / "cache")
        write_torchscript(random_inception(), folder / "inception.pt")
        sides = [folder / "a", folder / "b"]
        for seed, side in enumerate(sides):
            _write_pictures(side, asked.images, asked.size, seed)
        ways = {"clean-fid get_folder_features": _cleanfid(folder), "gantx": _gantx(folder)}
        for way in ways.values():
            way(sides[0])  # caches and TorchScript's profiling runs
        fastest = dict.fromkeys(ways, float("inf"))
        distances = {}
        for _ in range(asked.turns):
            for label, way in ways.items():
                before = time.process_time()
                first = way(sides[0])
                fastest[label] = min(fastest[label], time.process_time() - before)
                second = way(sides[1])
                distances[label] = Gaussian.of_features(first).distance(Gaussian.of_features(second))
    base = fastest["clean-fid get_folder_features"]
    print(f"| path | images a CPU second at {asked.size} px | times clean-fid | distance of two sets |")
    print("|---|---|---|---|")
    for label, seconds in fastest.items():
        print(f"| {label} | {asked.images / seconds:.1f} | {base / seconds:.2f} | {distances[label]:.6f} |")
    one, two = distances.values()
    print(f"\nrelative difference of the distances: {abs(one - two) / one:.1e}")


def _write_pictures(folder: Path, count: int, size: int, seed: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for index in range(count):
        coarse = rng.integers(0, 256, (size // 4, size // 4, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        picture.save(folder / f"{index:04d}.png")


def _cleanfid(folder: Path) -> Callable[[Path], torch.Tensor]:
    from cleanfid.fid import get_folder_features

    model = open_torchscript(folder / "inception.pt")
    return lambda side: torch.from_numpy(
        get_folder_features(str(side), model, num_workers=0, batch_size=32, device=CPU, verbose=False)
    )


def _gantx(folder: Path) -> Callable[[Path], torch.Tensor]:
    network = open_features(
        "inception", resize="clean", weights=folder / "inception.pt", device=CPU, allow_unverified=True
    )

    def measure(side: Path) -> torch.Tensor:
        images = open_images(side)
        found = images.batches(range(len(images)), network.batch)
        return torch.cat([network(batch).features for batch in found])

    return measure


if __name__ == "__main__":
    main()
