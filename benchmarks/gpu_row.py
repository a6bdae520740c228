"""One row of gpu.sh: `gantx bench train` or `gantx bench sample` that waits for its turn after compiling.

    python benchmarks/gpu_row.py train --preset vitgan-cifar10 --batch 128 --turn FOLDER --profile FILE

Compilers need processor cores, measuring needs the GPU alone: so rows compile side by side, write
`FOLDER/ready`, and measure once `FOLDER/go` is there. Prints the document of `gantx bench --json`, with
`notes`: what the run said of optimisations that failed.
"""

import argparse
import dataclasses
import gc
import json
import sys
import time
from pathlib import Path
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import profile_step  # noqa: E402

from gantx.benchmarking import sampling, training  # noqa: E402
from gantx.config import presets  # noqa: E402
from gantx.runtime import devices  # noqa: E402

NOTEWORTHY = ("is not compiled", "is not replayed")  # what gantx says where an optimisation fails


class Turn:
    """Waits before the first measurement until it is this row's turn.

    Args:
        folder: where `ready` is written and `go` is awaited; None for not waiting.
        device: whose unused memory is given back meanwhile.

    Attributes:
        notes: lines that tell of an optimisation that failed.
    """

    def __init__(self, folder, device):
        self._folder, self._device = folder, device
        self.notes = []

    def __call__(self, line):
        """What `measure` says: all of it goes to the log."""
        print(line, file=sys.stderr, flush=True)
        if any(words in line for words in NOTEWORTHY):
            self.notes.append(line)
        if self._folder is not None and line.startswith("measuring"):
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
                torch.cuda.empty_cache()
            (self._folder / "ready").touch()
            while not (self._folder / "go").exists():
                time.sleep(0.05)
            self._folder = None


def train(settings, device, asked, turn):
    """Figures of training, and a profile of what was measured."""
    busy_seconds = training.busy_seconds

    def also_profiled(work, device):
        if asked.profile is not None:
            iterations = work.args[0]
            title = f"{settings.name}, batch {settings.training.batch}: {' '.join(sys.argv[1:])}"
            text, _ = profile_step.profiled(work, device, iterations, title)
            asked.profile.write_text(text, encoding="utf-8")
        return busy_seconds(work, device)

    with mock.patch.object(training, "busy_seconds", also_profiled):
        return training.measure(settings, device, steps=asked.steps, log=turn)


def sample(settings, device, asked, turn):
    """Figures of sampling."""
    return sampling.measure(
        settings, device, batch=asked.batch, number=asked.number, compile=asked.compile == "on", log=turn
    )


def main():
    """Measure a row and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "sample"))
    parser.add_argument("--preset", required=True)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", choices=("on", "off"), default="on")
    parser.add_argument("--steps", type=int, help="iterations that count")
    parser.add_argument("--number", type=int, help="images of the file")
    parser.add_argument("--turn", type=Path, help="folder of `ready` and `go`")
    parser.add_argument("--profile", type=Path, help="file for the profile of an iteration")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE")
    asked = parser.parse_intermixed_args()
    device = devices.pick_device(asked.device)
    changes = {}
    if asked.what == "train":
        changes = {"training.batch": asked.batch, "training.compile": asked.compile}
    given = {key: value for key, value in changes.items() if value is not None}
    settings = presets.load(asked.preset, overrides=asked.overrides, settings=given)
    turn = Turn(asked.turn, device)
    figures = (train if asked.what == "train" else sample)(settings, device, asked, turn)
    document = {"schema": "gantx.bench/1", "what": asked.what, **dataclasses.asdict(figures)}
    print(json.dumps({**document, "notes": turn.notes}))


if __name__ == "__main__":
    main()
