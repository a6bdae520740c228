"""CPU time and peak memory of TransGAN's training steps, part by part; by default version 2 on CIFAR-10.

    OMP_NUM_THREADS=1 python benchmarks/transgan2_step.py
    OMP_NUM_THREADS=1 python benchmarks/transgan2_step.py --way released

The method is that of ../shared/specs/peers/transgan.md: networks at full size, batch 4 for D and for G, one
thread, augmentation on, random images, the first repetition dropped. What counts here is the CPU time of the
process, so that a busy machine matters less, and the least of all repetitions.

`--way released` takes the same networks through the steps as those notes describe the released training loop:
G's graph is kept in the D step, real and fake images pass D one after the other, attention is written out
with a bias that is looked up, D collects gradients in the G step, and clipping, Adam and averaging go
parameter by parameter. Products then are PyTorch's own. It stands in for the released code and is not it.

`--keep-memory` keeps the C library from giving freed memory back to the system.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import platform
import time

import torch
from torch import nn

from gantx.config import presets
from gantx.models import transgan2
from gantx.runtime import devices
from gantx.runtime.random import draw
from gantx.training.losses import discriminator_loss, generator_loss
from gantx.training.phase import Statistics, run_phase
from gantx.training.phases import build_objective, phases
from gantx.training.regularizers import gradient_penalty
from gantx.training.state import TrainingState

CPU = torch.device("cpu")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="transgan2-cifar10", help="one trained with a gradient penalty")
    parser.add_argument("--batch", type=int, default=4, help="images of each step")
    parser.add_argument("--repeats", type=int, default=6, help="repetitions after the first")
    parser.add_argument(
        "--way", choices=("gantx", "released"), default="gantx", help="how steps are computed"
    )
    parser.add_argument("--totals", action="store_true", help="do not measure the parts")
    parser.add_argument("--keep-memory", action="store_true", help="with glibc")
    options = parser.parse_args()

    if options.keep_memory:
        c_library = ctypes.CDLL(None)
        assert c_library.mallopt(M_MMAP_MAX, 0) == c_library.mallopt(M_TRIM_THRESHOLD, -1) == 1
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(options.way == "gantx")
    torch.utils.deterministic.fill_uninitialized_memory = False
    settings = presets.load(
        options.preset,
        overrides=[f"training.{name}={options.batch}" for name in ("batch", "generator_batch")],
        settings={"data.source": "shapes"},
    )
    state = TrainingState(settings, CPU)
    side = settings.data.resolution
    real = torch.rand(options.batch, 3, side, side) * 2 - 1
    if options.way == "released":
        measured = [released_steps(settings, state, real, turn) for turn in range(options.repeats + 1)]
    else:
        plan = phases(settings, state.generator, state.discriminator)
        measured = [steps(settings, state, plan, real, turn) for turn in range(options.repeats + 1)]
        if not options.totals:
            parted = [parts(settings, state, real, turn) for turn in range(options.repeats + 1)]
            measured = [{**whole, **split} for whole, split in zip(measured, parted, strict=True)]

    print(f"{devices.device_name(CPU)}; Python {platform.python_version()}, torch {torch.__version__}")
    print(f"{options.preset}, batch {options.batch}, way of {options.way}\n")
    print("| part | CPU seconds, least | median |\n|---|---|---|")
    for name in measured[0]:
        values = sorted(turn[name] for turn in measured[1:])
        print(f"| {name} | {values[0]:.2f} | {values[len(values) // 2]:.2f} |")
    print(f"| peak memory, GiB | {devices.memory_gb(CPU):.2f} | |")


class Watch:
    """Collects the CPU seconds since the last lap under names."""

    def __init__(self):
        self.seconds = {}
        self.start()

    def start(self):
        self.before = time.process_time()

    def lap(self, name):
        now = time.process_time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.before
        self.before = now


def steps(settings, state, plan, real, turn):
    """Whole steps as a run takes them, and the average."""
    watch = Watch()
    for phase in plan:
        draws = draw(phase.spec, seed=0, stream=phase.name, step=turn, device=CPU)
        run_phase(phase, {"real": real}, draws, Statistics())
        watch.lap(f"**{phase.name} step**")
    state.average.set_beta(0.999)
    state.average.update()
    watch.lap("average of G")
    return watch.seconds


def draws_of(gan, batch, turn):
    """What one D step and one G step draw."""
    views = {name: gan.discriminator_spec(batch) for name in ("on_real", "on_fake", "mixed")}
    spec = {"latent": gan.latent_spec(batch), **views}
    return draw(spec, seed=0, stream="benchmark", step=turn, device=CPU)


def objective_of(settings, state):
    """The losses of a run's networks."""
    networks = state.generator.network, state.discriminator.network
    return build_objective(settings, *networks, state.path_length)


def parts(settings, state, real, turn):
    """The same computations with a stop after each part."""
    objective, discriminator, generator = settings.objective, state.discriminator, state.generator
    gan = objective_of(settings, state)
    q = draws_of(gan, len(real), turn)
    alpha = torch.rand(len(real))
    watch = Watch()

    generator.network.requires_grad_(False)
    discriminator.network.requires_grad_(True)
    discriminator.gradient.zero_()
    watch.start()
    with torch.no_grad():
        fake, _ = gan.generate(q["latent"])
    watch.lap("D: G forward without graph")
    on_real, on_fake = gan.discriminate_views((real, q["on_real"]), (fake, q["on_fake"]))
    watch.lap("D: D forward on reals and fakes")
    target = objective.gradient_penalty.target
    penalty = gradient_penalty(lambda x: gan.discriminate(x, q["mixed"]), real, fake, alpha, target)
    watch.lap("D: penalty, forward and slope")
    loss = discriminator_loss(objective.loss, on_real, on_fake, objective.drift)
    (loss + objective.gradient_penalty.weight * penalty).backward()
    watch.lap("D: backward")
    discriminator.step()
    watch.lap("D: clip and Adam")

    generator.network.requires_grad_(True)
    discriminator.network.requires_grad_(False)
    generator.gradient.zero_()
    watch.start()
    loss = generator_loss(objective.loss, gan.discriminate(gan.generate(q["latent"])[0], q["on_fake"]), None)
    watch.lap("G: forward of G and D")
    loss.backward()
    watch.lap("G: backward")
    generator.step()
    watch.lap("G: clip and Adam")
    return watch.seconds


# --- the way of the released training loop ----------------------------------------------------------------


def attend_by_hand(q, k, v, *, bias=None):
    """Attention with all its logits."""
    logits = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    return (logits if bias is None else logits + bias).softmax(3) @ v


def look_up(self):
    """The bias of relative positions gathered from its table, by an index that is copied each time."""
    places = torch.cartesian_prod(torch.arange(self.side), torch.arange(self.side))
    apart = places[:, None] - places + self.side - 1
    index = (apart[..., 0] * (2 * self.side - 1) + apart[..., 1]).clone()
    return self.table[index.flatten()].view(self.side**2, self.side**2, -1).permute(2, 0, 1).contiguous()


def released_steps(settings, state, real, turn):
    """One D step, one G step and the average, in the way of the released loop."""
    if turn == 0:
        transgan2.attention = attend_by_hand
        transgan2.RelativePositions.forward = look_up
        for player in (state.generator, state.discriminator):
            options = player.settings
            player.optimizer = torch.optim.Adam(player.parameters, lr=options.lr, betas=options.betas)
    gan = objective_of(settings, state)
    objective, q = settings.objective, draws_of(gan, len(real), turn)
    alpha = torch.rand(len(real), 1, 1, 1)
    generator, discriminator = state.generator, state.discriminator
    for player in (generator, discriminator):
        player.network.requires_grad_(True)
    watch = Watch()

    on_real = gan.discriminate(real, q["on_real"])
    fake = gan.generate(q["latent"])[0].detach()
    on_fake = gan.discriminate(fake, q["on_fake"])
    mixed = (alpha * real + (1 - alpha) * fake).requires_grad_()
    logits = gan.discriminate(mixed, q["mixed"])
    slope = torch.autograd.grad(logits.sum(), mixed, create_graph=True)[0]
    penalty = ((slope.flatten(1).norm(2, 1) - 1) ** 2).mean()
    loss = discriminator_loss(objective.loss, on_real, on_fake, objective.drift)
    (loss + objective.gradient_penalty.weight * penalty).backward()
    nn.utils.clip_grad_norm_(discriminator.parameters, 5.0)
    discriminator.optimizer.step()
    discriminator.optimizer.zero_grad(set_to_none=True)
    watch.lap("**discriminator step**")

    generator_loss(
        objective.loss, gan.discriminate(gan.generate(q["latent"])[0], q["on_fake"]), None
    ).backward()
    nn.utils.clip_grad_norm_(generator.parameters, 5.0)
    generator.optimizer.step()
    generator.optimizer.zero_grad(set_to_none=True)
    watch.lap("**generator step**")

    for kept, current in zip(state.average.network.parameters(), generator.parameters, strict=True):
        kept.data.copy_(kept.data * 0.999 + copy.deepcopy(current.data) * 0.001)
    watch.lap("average of G")
    return watch.seconds


if __name__ == "__main__":
    main()
