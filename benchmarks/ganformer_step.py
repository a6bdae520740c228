"""What GANformer costs on a CPU: gantx against a plain network of the same sizes, in turn, in CPU seconds.

    OMP_NUM_THREADS=1 python benchmarks/ganformer_step.py time [--turns 3] [--only step,sampling] [--keep]
    OMP_NUM_THREADS=1 python benchmarks/ganformer_step.py memory

`time` takes the steps of simplex attention at 64x64 with a batch of 4 (m = 16, d = 32, 512 channels),
inference at 64 and at 256 pixels, and prints the least CPU time of all turns; one thread, without optimisers.
`memory` runs each in a process of its own and prints its peak, sampling of one image of 1024x1024 with its
attention map among them.

The plain network is what one writes from the papers: contiguous NCHW features, one torch convolution per
convolution of the paper, resampling by depthwise convolutions, modulated kernels formed for their norms,
attention with queries, keys and values in full. Unlike the released code it keeps no attention maps.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from gantx import models  # noqa: E402
from gantx.config.networks.ganformer import GANformerGeneratorConfig  # noqa: E402
from gantx.config.networks.stylegan2 import StyleGAN2DiscriminatorConfig  # noqa: E402
from gantx.runtime.devices import keep_freed_memory  # noqa: E402
from gantx.runtime.random import draw  # noqa: E402
from gantx.training.regularizers import input_gradient  # noqa: E402

BATCH, COMPONENTS, DIM = 4, 16, 32
CPU = torch.device("cpu")

# --- the plain network --------------------------------------------------------------------------------------


def filtered(x: Tensor, up: int, down: int, before: int, after: int, gain: float = 1.0) -> Tensor:
    """Zeros between pixels, zeros around them, [1, 3, 3, 1] along both axes, every `down`-th pixel."""
    batch, channels, side, _ = x.shape
    if up > 1:
        x = x.reshape(batch, channels, side, 1, side, 1)
        x = F.pad(x, [0, up - 1, 0, 0, 0, up - 1]).reshape(batch, channels, side * up, side * up)
    x = F.pad(x, [before, after, before, after])
    row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    taps = (row.outer(row) * gain).repeat(channels, 1, 1, 1)
    return F.conv2d(x, taps, groups=channels)[:, :, ::down, ::down]


class Linear(nn.Module):
    """Equalised linear layer."""

    def __init__(self, inputs: int, outputs: int, start: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), start / rate))
        self.rate, self.scale = rate, rate / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)


def activated(x: Tensor, gain: float = math.sqrt(2)) -> Tensor:
    """Leaky ReLU with a gain."""
    return F.leaky_relu(x, 0.2) * gain


class Convolution(nn.Module):
    """Equalised convolution of D, with an activation when it has a bias."""

    def __init__(self, inputs: int, outputs: int, size: int, down: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.down = down

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        weight = self.weight / math.sqrt(self.weight[0].numel())
        size = weight.shape[2]
        if self.down == 1:
            x = F.conv2d(x, weight, padding=size // 2)
        elif size == 1:
            x = F.conv2d(filtered(x, 1, 2, 1, 1), weight)
        else:
            x = F.conv2d(filtered(x, 1, 1, 2, 2), weight, stride=2)
        if self.bias is None:
            return x * gain
        return activated(x + self.bias[:, None, None], gain * math.sqrt(2))


class PlainDiscriminator(nn.Module):
    """The residual discriminator of StyleGAN2, 512 channels everywhere."""

    def __init__(self, resolution: int, channels: int = 512) -> None:
        super().__init__()
        self.from_rgb = Convolution(3, channels, 1)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    Convolution(channels, channels, 3),
                    Convolution(channels, channels, 3, down=2),
                    Convolution(channels, channels, 1, down=2, bias=False),
                ]
            )
            for _ in range(int(math.log2(resolution)) - 2)
        )
        self.last = Convolution(channels + 1, channels, 3)
        self.linear = Linear(channels * 16, channels)
        self.out = Linear(channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.from_rgb(images)
        for first, second, shortcut in self.blocks:
            x = second(first(x), math.sqrt(0.5)) + shortcut(x, math.sqrt(0.5))
        deviation = ((x - x.mean(0)).square().mean(0) + 1e-8).sqrt().mean()
        x = torch.cat([x, deviation.expand(len(x), 1, 4, 4)], dim=1)
        return self.out(activated(self.linear(self.last(x).flatten(1)))).squeeze(1)


class PlainLayer(nn.Module):
    """Modulated convolution, simplex attention, noise, bias and activation."""

    def __init__(self, inputs: int, channels: int, side: int, up: bool, attends: bool) -> None:
        super().__init__()
        self.up, self.attends = up, attends
        self.weight = nn.Parameter(torch.randn(channels, inputs, 3, 3))
        self.style = Linear(DIM, inputs, start=1.0)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.strength = nn.Parameter(torch.zeros(()))
        if attends:
            self.queries, self.grid_queries = Linear(channels, channels), Linear(DIM, channels)
            self.keys, self.position_keys = Linear(DIM, channels), Linear(DIM, channels)
            self.values, self.modulation = Linear(DIM, channels), Linear(channels, channels)
            self.register_buffer("grid", torch.randn(side**2, DIM))

    def convolve(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.style(w)
        weight = self.weight / math.sqrt(self.weight[0].numel())
        of_samples = weight * style[:, None, :, None, None]  # [B, out, in, 3, 3]
        normalizer = (of_samples.square().sum((2, 3, 4)) + 1e-8).rsqrt()
        x = x * style[:, :, None, None]
        if self.up:
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            x = filtered(x, 1, 1, 1, 1, gain=4.0)
        else:
            x = F.conv2d(x, weight, padding=1)
        return x * normalizer[:, :, None, None]

    def attend(self, x: Tensor, latents: Tensor, positions: Tensor, rate: float) -> Tensor:
        batch, channels, side, _ = x.shape
        cells = x.permute(0, 2, 3, 1).reshape(batch, -1, channels)
        queries = self.queries(cells) + self.grid_queries(self.grid.expand(batch, -1, -1))
        keys = self.keys(latents) + self.position_keys(positions)
        looks = (queries @ keys.transpose(1, 2) / math.sqrt(channels)).softmax(2)
        looks = F.dropout(F.dropout(looks, rate / 2), rate / 2)
        read = self.modulation(looks @ self.values(latents))
        cells = cells * (cells.square().mean(2, keepdim=True) + 1e-8).rsqrt() * (1 + read)
        return cells.reshape(batch, side, side, channels).permute(0, 3, 1, 2).contiguous()

    def forward(self, x: Tensor, w: Tensor, latents: Tensor, positions: Tensor, gain: float) -> Tensor:
        x = self.convolve(x, w)
        if self.attends:
            x = self.attend(x, latents, positions, 0.12 if self.training else 0.0)
        x = x + torch.randn(len(x), 1, *x.shape[2:]) * self.strength
        return activated(x + self.bias[:, None, None], gain)


class PlainGenerator(nn.Module):
    """GANformer's residual generator; the latents come mapped."""

    def __init__(self, resolution: int) -> None:
        super().__init__()
        sides = [2**power for power in range(2, int(math.log2(resolution)) + 1)]
        channels = [min(32768 // side, 512) for side in sides]
        self.constant = nn.Parameter(torch.randn(512, 4, 4))
        self.positions = nn.Parameter(torch.rand(COMPONENTS, DIM))
        self.first = PlainLayer(512, 512, 4, False, True)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    PlainLayer(before, count, side, True, side <= 128),
                    PlainLayer(count, count, side, False, side <= 128),
                    Convolution(before, count, 1, bias=False),
                ]
            )
            for before, count, side in zip(channels, channels[1:], sides[1:], strict=False)
        )
        self.last = PlainLayer(channels[-1], channels[-1], resolution, False, False)
        self.colour = nn.Parameter(torch.randn(3, channels[-1], 1, 1))
        self.colour_style = Linear(DIM, channels[-1], start=1.0)

    def forward(self, ws: Tensor) -> Tensor:
        w, latents = ws[:, -1], ws[:, :-1]
        x = self.constant.expand(len(ws), -1, -1, -1)
        x = self.first(x, w, latents, self.positions, math.sqrt(2))
        for doubling, same, shortcut in self.blocks:
            y = doubling(x, w, latents, self.positions, math.sqrt(2))
            y = same(y, w, latents, self.positions, 1.0)
            x = y + filtered(shortcut(x, math.sqrt(0.5)), 2, 1, 2, 1, gain=4.0)
        x = self.last.convolve(x, w)
        return F.conv2d(x * self.colour_style(w)[:, :, None, None], self.colour) / math.sqrt(x.shape[1])


# --- what is measured ---------------------------------------------------------------------------------------

Task = Callable[[], object]


def gantx_networks(resolution: int, attention: str) -> tuple[nn.Module, nn.Module]:
    """G and D of gantx, with the channels of the released code."""
    generator = models.build(GANformerGeneratorConfig(resolution=resolution, attention=attention))
    return generator, models.build(StyleGAN2DiscriminatorConfig(resolution=resolution))


def gantx_steps() -> dict[str, Task]:
    """The steps of gantx at 64x64."""
    generator, critic = gantx_networks(64, "simplex")
    give_gradients(generator, critic)
    z, real = torch.randn(BATCH, *generator.latent_shape), torch.randn(BATCH, 3, 64, 64)
    noise = draw(generator.noise_spec(BATCH), seed=0, stream="noise", step=0, device=CPU)

    def generator_step() -> None:
        turn(generator, critic)
        F.softplus(-critic(generator(z, noise))).mean().backward()

    def discriminator_step() -> None:
        turn(critic, generator)
        with torch.no_grad():
            fake = generator(z, noise)
        on_real, on_fake = critic(torch.cat([real, fake]), parts=2).chunk(2)
        (F.softplus(-on_real).mean() + F.softplus(on_fake).mean()).backward()

    def penalty_step() -> None:
        turn(critic, generator)
        input_gradient(critic, real).square().sum((1, 2, 3)).mean().backward()

    return {"G step": generator_step, "D step": discriminator_step, "R1 step": penalty_step}


def plain_steps() -> dict[str, Task]:
    """The same steps of the plain network: real and generated images one after the other, as released."""
    generator, critic = PlainGenerator(64), PlainDiscriminator(64)
    give_gradients(generator, critic)
    ws, real = torch.randn(BATCH, COMPONENTS + 1, DIM), torch.randn(BATCH, 3, 64, 64)

    def generator_step() -> None:
        turn(generator, critic)
        F.softplus(-critic(generator(ws))).mean().backward()

    def discriminator_step() -> None:
        turn(critic, generator)
        with torch.no_grad():
            fake = generator(ws)
        F.softplus(critic(fake)).mean().backward()
        F.softplus(-critic(real)).mean().backward()

    def penalty_step() -> None:
        turn(critic, generator)
        images = real.clone().requires_grad_()
        (slopes,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
        slopes.square().sum((1, 2, 3)).mean().backward()

    return {"G step": generator_step, "D step": discriminator_step, "R1 step": penalty_step}


def turn(moves: nn.Module, holds: nn.Module) -> None:
    """Whose parameters get gradients, from zero."""
    holds.requires_grad_(False)
    moves.requires_grad_(True)
    for parameter in moves.parameters():
        parameter.grad.zero_()


def give_gradients(*networks: nn.Module) -> None:
    """Gradients as views of one buffer per network, as `gantx.training.optimized_network` has them."""
    for network in networks:
        parameters = list(network.parameters())
        pieces = torch.zeros(sum(p.numel() for p in parameters)).split([p.numel() for p in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)


def gantx_sampling(resolution: int, attention: str, batch: int = BATCH) -> Task:
    """Inference of gantx, without attention maps."""
    generator = gantx_networks(resolution, attention)[0].eval()
    z = torch.randn(batch, *generator.latent_shape)
    noise = draw(generator.noise_spec(batch), seed=0, stream="noise", step=0, device=CPU)
    return torch.no_grad()(lambda: generator(z, noise))


def gantx_observing(resolution: int) -> Task:
    """Inference of one image with its attention maps of all layers."""
    generator = gantx_networks(resolution, "duplex")[0].eval()
    ws = generator.mapping(torch.randn(1, *generator.latent_shape)).detach()
    return torch.no_grad()(lambda: generator.observe(ws, layers="all"))


def plain_sampling(resolution: int) -> Task:
    """Inference of the plain network."""
    generator = PlainGenerator(resolution).eval()
    ws = torch.randn(BATCH, COMPONENTS + 1, DIM)
    return torch.no_grad()(lambda: generator(ws))


TIMED: dict[str, Callable[[], dict[str, dict[str, Task]]]] = {
    "step": lambda: {"gantx": gantx_steps(), "plain": plain_steps()},
    "sampling": lambda: {
        "gantx": {
            "64, simplex, 4 images": gantx_sampling(64, "simplex"),
            "256, simplex, 4 images": gantx_sampling(256, "simplex"),
            "256, duplex, 4 images": gantx_sampling(256, "duplex"),
        },
        "plain": {
            "64, simplex, 4 images": plain_sampling(64),
            "256, simplex, 4 images": plain_sampling(256),
        },
    },
}


def step_tasks(tasks: dict[str, Task]) -> Task:
    """All steps one after the other."""
    return lambda: [task() for task in tasks.values()]


MEASURED: dict[str, Callable[[], Task]] = {
    "64, simplex, steps, gantx": lambda: step_tasks(gantx_steps()),
    "64, simplex, steps, plain": lambda: step_tasks(plain_steps()),
    "64, simplex, 4 images, gantx": lambda: gantx_sampling(64, "simplex"),
    "256, duplex, 4 images, gantx": lambda: gantx_sampling(256, "duplex"),
    "256, simplex, 4 images, plain": lambda: plain_sampling(256),
    "1024, duplex, 1 image with maps, gantx": lambda: gantx_observing(1024),
}


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("what", choices=["time", "memory"])
    options.add_argument("--turns", type=int, default=3)
    options.add_argument("--only", default=",".join(TIMED))
    options.add_argument("--keep", action="store_true", help="keep freed memory, as training on a CPU does")
    options.add_argument(
        "--alone", choices=list(MEASURED), help="measure the memory of this, in this process"
    )
    asked = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if asked.keep:
        keep_freed_memory()
    if asked.alone:
        task = MEASURED[asked.alone]()
        task()
        task()
        print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}")
    elif asked.what == "memory":
        print("| peak MiB of a process that does nothing else | |\n|---|---|")
        for name in MEASURED:
            command = [sys.executable, __file__, "memory", "--alone", name]
            print(f"| {name} | {subprocess.check_output(command, text=True).strip()} |", flush=True)
    else:
        print("| CPU seconds | gantx | plain | plain / gantx |\n|---|---|---|---|")
        for chosen in asked.only.split(","):
            times(TIMED[chosen](), asked.turns)


def times(sides: dict[str, dict[str, Task]], turns: int) -> None:
    """Print the least CPU time of every task, taken in turn."""
    least: dict[tuple[str, str], float] = {}
    for number in range(turns + 1):
        for side, tasks in sides.items():
            for name, task in tasks.items():
                before = time.process_time()
                task()
                taken = time.process_time() - before
                if number:  # the first is for caches and memory
                    least[name, side] = min(taken, least.get((name, side), math.inf))
    for name in sides["gantx"]:
        ours, plain = least[name, "gantx"], least.get((name, "plain"), math.nan)
        print(f"| {name} | {ours:.2f} | {plain:.2f} | {plain / ours:.2f} |")


if __name__ == "__main__":
    main()
