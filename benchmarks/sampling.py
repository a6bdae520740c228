"""Speed from seeds to a file, as a share of the speed of the generator alone.

    python benchmarks/sampling.py transgan-tiny --threads 1
    python benchmarks/sampling.py transgan-s --device cuda --batch 1024 -n 50000

The generator has random initial weights: its speed does not depend on its images. `generator` computes
batches of given latents and stores nothing; the others go from seeds to a complete file. `ceiling` is the
speed of the same path with a generator that takes no time, an upper limit on any device. The variants are
measured in turn, so that other load on the machine affects all of them, and the minimum of each is reported.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch

from gantx import models
from gantx.config import presets
from gantx.generation import sampling
from gantx.generation.latents import spec_of_one
from gantx.generation.sampling import BatchRunner
from gantx.io import imaging
from gantx.runtime import devices
from gantx.runtime.random import for_seeds


class Instant(torch.nn.Module):
    """Stands for a generator: the same draws, the same shapes, noise for images, no computation."""

    def __init__(self, generator, batch, device):
        super().__init__()
        self.latent_shape, self.image_shape = generator.latent_shape, generator.image_shape
        self.noise_spec = generator.noise_spec
        self.images = torch.rand(batch, *generator.image_shape, device=device) * 2 - 1

    def forward(self, z, noise=None):
        return self.images[: len(z)]


OUTPUTS = {"npy": "images.npy", "zip": "images.zip", "folder": "images"}


@torch.no_grad()
def generate_only(generator, number, batch, device):
    """The generator without anything before or after it; tiles and replay as in `sampling`."""
    q = for_seeds(spec_of_one(generator), range(batch), device)
    batches = -(-number // batch)
    runner = BatchRunner(lambda given: generator(given["z"], given["noise"]), device, batches=batches)
    for _ in range(batches):
        runner(q)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def generate_to(path, generator, number, batch, device):
    """The whole way that `gantx sample` goes."""
    seeds = range(number)
    images = sampling.sample(generator, seeds, batch=batch, device=device)
    imaging.save_images(path, images, seeds, {"gantx:preset": "benchmark"})


def timed(work, *arguments):
    """(wall seconds, CPU seconds) of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(generator, number, batch, device, repetitions):
    """Least wall seconds and CPU seconds of every kind, and of every kind without the generator."""
    instant = Instant(generator, batch, device)
    found = {}

    def keep(kind, spent):
        found[kind] = [min(pair) for pair in zip(spent, found.get(kind, spent), strict=True)]

    generate_only(generator, batch, batch, device)  # warms up
    for _ in range(repetitions):
        keep("generator", timed(generate_only, generator, number, batch, device))
        for kind, name in OUTPUTS.items():
            for runner, label in ((generator, kind), (instant, f"{kind} ceiling")):
                with tempfile.TemporaryDirectory() as folder:
                    keep(label, timed(generate_to, Path(folder) / name, runner, number, batch, device))
    return found


def main():
    """Measure a preset; prints a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE")
    parser.add_argument("-n", type=int, default=2048, help="images, a multiple of the batch")
    parser.add_argument("--batch", type=int, default=sampling.BATCH)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=4)
    parser.add_argument("--compile", action="store_true", help="compile the generator")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = devices.pick_device(arguments.device)
    settings = presets.load(arguments.preset, overrides=arguments.overrides)
    generator = models.build(settings.generator).to(device).eval().requires_grad_(False)
    if arguments.compile:
        generator = sampling.compiled(generator)
    found = measure(generator, arguments.n, arguments.batch, device, arguments.repetitions)
    print(f"{'':12}{'images/s':>10}{'share':>8}{'CPU ms/image':>14}{'share':>8}{'ceiling':>10}{'CPU ms':>8}")
    best_wall, best_cpu = found["generator"]
    for kind in ("generator", *OUTPUTS):
        wall, cpu = found[kind]
        rate, each = arguments.n / wall, 1000 * cpu / arguments.n
        line = f"{kind:12}{rate:10.0f}{best_wall / wall:8.0%}{each:14.3f}{best_cpu / cpu:8.0%}"
        if kind in OUTPUTS:
            wall, cpu = found[f"{kind} ceiling"]
            line += f"{arguments.n / wall:10.0f}{1000 * cpu / arguments.n:8.3f}"
        print(line)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    facts = {**vars(arguments), "seconds": found, "peak_gib": round(peak, 2), "torch": torch.__version__}
    print(json.dumps({**facts, "machine": devices.device_name(device)}))


if __name__ == "__main__":
    main()
