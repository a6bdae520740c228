"""What the steps of a preset cost on one CPU thread: CPU seconds of each phase, and peak memory.

    python benchmarks/training_step.py vitgan-cifar10 training.batch=4
    python benchmarks/training_step.py vitgan-stylegan2d-cifar10 training.batch=4 --repetitions 6

CPU seconds, not wall time, because other work may share the machine; the least of the repetitions counts, and
the first one, which warms up, does not. Images are noise: what they show does not change what they cost.
"""

import argparse
import json
import platform
import resource
import time

import torch

from gantx.config import presets
from gantx.runtime.random import draw
from gantx.training.phase import Statistics, run_phase
from gantx.training.phases import phases
from gantx.training.state import TrainingState

CPU = torch.device("cpu")


def measure(settings, repetitions):
    """Least CPU seconds of every phase of a run, and of one update of the average."""
    state = TrainingState(settings, CPU)
    state.average.set_beta(0.99)
    side = settings.data.resolution
    found = {}
    made = phases(settings, state.generator, state.discriminator, state.path_length)
    for repetition in range(repetitions + 1):
        for phase in made:
            reals = {name: torch.rand(phase.batch, 3, side, side) * 2 - 1 for name in phase.reals}
            draws = draw(phase.spec, seed=0, stream=phase.name, step=repetition, device=CPU)
            start = time.process_time()
            run_phase(phase, reals, draws, Statistics())
            found.setdefault(phase.name, []).append(time.process_time() - start)
        start = time.process_time()
        state.average.update()
        found.setdefault("average", []).append(time.process_time() - start)
    return {name: min(times[1:]) for name, times in found.items()}


def main():
    """Measure a preset and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE")
    parser.add_argument("--repetitions", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = presets.load(arguments.preset, overrides=arguments.overrides)
    seconds = measure(settings, arguments.repetitions)
    figures = {
        "preset": arguments.preset,
        "overrides": arguments.overrides,
        "cpu_seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
