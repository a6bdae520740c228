"""A compiled training step against an eager one, by turns in one process.

    OMP_NUM_THREADS=1 python benchmarks/compiled_step.py transgan-tiny vitgan-tiny

Both train the same preset on random pixels; blocks of iterations alternate, so that neighbours on the machine
disturb both alike. Two lines per preset, of whole iterations and of what is compiled in them, the losses with
their backward passes (lazy ones with their share): CPU milliseconds, eager and compiled, in the median of the
blocks and in the quickest one, and how many times the compiled one is as quick.
"""

import argparse
import math
import sys
import time
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gantx.benchmarking.training import Trainer  # noqa: E402
from gantx.config import presets  # noqa: E402
from gantx.runtime.random import draw  # noqa: E402
from gantx.training.resolve import frozen_garbage, prepared_process, resolve  # noqa: E402

CPU = torch.device("cpu")


def trainer(preset, compile, threads):
    """A run of a preset, and its settings."""
    changes = {"training.compile": compile, "training.threads": threads, "training.attention_window": None}
    settings = resolve(presets.load(preset, settings=changes), CPU, 1, lambda text: None)
    return Trainer(settings, CPU, print), settings


def losses(run, settings):
    """A function that computes the losses of an iteration with their gradients, and returns CPU seconds."""
    side = settings.data.resolution
    work = []
    for phase in run.phases:
        reals = {
            name: torch.rand(phase.batch, settings.data.channels, side, side) * 2 - 1 for name in phase.reals
        }
        work.append((phase, reals, draw(phase.spec, seed=0, stream=phase.name, step=0, device=CPU)))

    def once():
        spent = 0.0
        for phase, reals, draws in work:
            for other in phase.frozen:
                other.train_parameters(False)
            phase.trained.train_parameters(True)
            part = phase.passes[0]
            began = time.process_time()
            part.differentiate(part.loss, phase.trained.parameters, reals, draws, 1.0)
            spent += (time.process_time() - began) / phase.interval
        return spent

    return once


def measure(preset, threads, blocks, length):
    """CPU milliseconds of an iteration in each block, eager and compiled; and those of its losses."""
    runs = {compile: trainer(preset, compile, threads)[0] for compile in ("off", "on")}
    _, settings = trainer(preset, "off", threads)
    period = math.lcm(*(phase.interval for phase in runs["off"].phases))
    length = -(-length // period) * period
    spans, parts = {"off": [], "on": []}, {"off": [], "on": []}
    compute = {compile: losses(run, settings) for compile, run in runs.items()}
    with prepared_process(settings, CPU), frozen_garbage():
        for run in runs.values():
            run.iterate(2 * period)
        for _ in range(blocks):
            for compile, run in runs.items():
                began = time.process_time()
                run.iterate(length)
                spans[compile].append(1000 * (time.process_time() - began) / length)
                parts[compile].append(1000 * sum(compute[compile]() for _ in range(length)) / length)
    return spans, parts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--length", type=int, default=16, help="iterations of a block")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {options.threads} thread(s), {options.blocks} blocks of each")
    for preset in options.presets:
        measured = measure(preset, options.threads, options.blocks, options.length)
        for what, spans in zip(("iterations", "losses"), measured, strict=True):
            eager, fast = spans["off"], spans["on"]
            print(
                f"{preset}, {what}: median {median(eager):.1f} -> {median(fast):.1f} ms "
                f"({median(eager) / median(fast):.2f}x), quickest {min(eager):.1f} -> {min(fast):.1f} ms "
                f"({min(eager) / min(fast):.2f}x)",
                flush=True,
            )


if __name__ == "__main__":
    main()
