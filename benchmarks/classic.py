"""The classic training loop, as a baseline for `gantx bench train`: same networks, same recipe, same batch.

    python benchmarks/classic.py --preset transgan-s --device cuda
    python benchmarks/classic.py --preset transgan-s --device cuda --improve bf16 attention adam

It is what the released code of TransGAN, ViTGAN and GANformer does, with the networks and formulas of gantx:

- eager float32, attention written out as matrix products
- D passes one after the other: real images, generated ones, penalties, further views
- G runs with its graph in the D step, and its images are detached afterwards
- images are PNG files that a DataLoader decodes, resizes and flips anew in every epoch
- Adam goes through the parameters one by one
- the average of G copies each parameter before it is mixed in
- `loss.item()` in every step

Each habit can be given up by name, so that what it costs is a number.
"""

import argparse
import contextlib
import copy
import dataclasses
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gantx import models  # noqa: E402
from gantx.benchmarking.machine import this_machine  # noqa: E402
from gantx.benchmarking.timing import Stopwatch  # noqa: E402
from gantx.config import presets  # noqa: E402
from gantx.models import interfaces  # noqa: E402
from gantx.runtime import devices  # noqa: E402
from gantx.runtime.precision import set_compute_dtype  # noqa: E402
from gantx.runtime.random import draw  # noqa: E402
from gantx.training import ema  # noqa: E402
from gantx.training.augment import augment  # noqa: E402
from gantx.training.augment import spec as augment_spec  # noqa: E402
from gantx.training.losses import discriminator_loss, generator_loss  # noqa: E402
from gantx.training.mixing_regularization import mix  # noqa: E402
from gantx.training.regularizers import inconsistency, path_length_penalty  # noqa: E402

IMPROVEMENTS = {
    "bf16": "matrix products, convolutions and attention in bf16",
    "attention": "fused, where no second derivative is taken",
    "detached": "no graph of G in the D step",
    "adam": "one fused step for all parameters",
    "average": "all parameters mixed at once",
    "silent": "no loss.item()",
    "resident": "images on the device, decoded once",
}
PICTURES = 2048  # PNG files; an epoch
STEPS_ON_GPU, STEPS_ELSEWHERE = 20, 5


class Pictures(Dataset):
    """PNG files, decoded, resized, flipped and normalised whenever they are asked for."""

    def __init__(self, folder, side, mirror):
        self.files = sorted(Path(folder).glob("*.png"))
        flip = [transforms.RandomHorizontalFlip()] if mirror else []
        self.transform = transforms.Compose(
            [
                transforms.Resize((side, side)),
                *flip,
                transforms.ToTensor(),
                transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            ]
        )

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return self.transform(Image.open(self.files[index]).convert("RGB"))


class Classic:
    """One iteration of the classic loop: a D step, its lazy penalties, and G's steps when they are due."""

    def __init__(self, settings, device, improved):
        self.settings, self.objective = settings, settings.objective
        self.device, self.improved = device, improved
        torch.manual_seed(settings.training.seed)
        self.generator = models.build(settings.generator).to(device)
        self.discriminator = models.build(settings.discriminator).to(device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        if "bf16" in improved:
            for network in (self.generator, self.discriminator):
                set_compute_dtype(network, torch.bfloat16)
        self.players = {
            network: (self._optimizer(network, adam), adam.clip_norm)
            for network, adam in (
                (self.generator, settings.optimizer.generator),
                (self.discriminator, settings.optimizer.discriminator),
            )
        }
        self.path_length = torch.zeros((), device=device)
        self.iteration = 0
        penalties = (self.objective.gradient_penalty, self.objective.r1, self.objective.r2)
        self.lazy = sorted({part.every for part in penalties if part is not None and part.every > 1})
        path = [] if self.objective.path_length is None else [self.objective.path_length.every]
        self.period = math.lcm(self.objective.n_critic, *self.lazy, *path)

    def _optimizer(self, network, adam):
        kind = torch.optim.AdamW if adam.name == "adamw" else torch.optim.Adam
        how = {"fused": True} if "adam" in self.improved else {"foreach": False, "fused": False}
        decay = adam.weight_decay
        return kind(
            network.parameters(), lr=adam.lr, betas=adam.betas, eps=adam.eps, weight_decay=decay, **how
        )

    def iterate(self, real):
        """One iteration on real images [B, 3, H, W] in [-1, 1]."""
        self._step(self.discriminator, self._discriminator_loss, real)
        for every in self.lazy:
            if self.iteration % every == 0:
                self._step(
                    self.discriminator, lambda x, every=every: every * self._penalties(x, every)[0], real
                )
        if self.iteration % self.objective.n_critic == 0:
            self._step(self.generator, self._generator_loss, real)
            path = self.objective.path_length
            if path is not None and self.iteration % path.every == 0:
                self._step(self.generator, self._path_length_loss, real)
            self._follow()
        self.iteration += 1

    def _step(self, network, loss_of, real):
        optimizer, clip_norm = self.players[network]
        optimizer.zero_grad()
        fused = "attention" in self.improved
        with contextlib.nullcontext() if fused else sdpa_kernel(SDPBackend.MATH):
            loss = loss_of(real)
        loss.backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
        optimizer.step()
        if isinstance(network, interfaces.KeepsState):
            with torch.no_grad():
                network.update_state()
        if "silent" not in self.improved:
            loss.item()

    def _discriminator_loss(self, real):
        objective = self.objective
        fake = self._detached(len(real))
        on_real, on_fake = self._critic(real), self._critic(fake)
        loss = discriminator_loss(objective.loss, on_real, on_fake, objective.drift)
        if (consistency := objective.consistency) is not None:
            blank = consistency.compare == "clean"
            loss = loss + consistency.real * inconsistency(on_real, self._critic(real, clean=blank))
            loss = loss + consistency.fake * inconsistency(on_fake, self._critic(fake, clean=blank))
        return loss + self._penalties(real, 1, fake)[0]

    def _penalties(self, real, every, fake=None):
        """The weighted sum of the penalties with this interval, and the generated images they took."""
        objective, total = self.objective, torch.zeros((), device=self.device)
        for name in ("gradient_penalty", "r1", "r2"):
            penalty = getattr(objective, name)
            if penalty is None or penalty.every != every:
                continue
            if name != "r1" and fake is None:
                fake = self._detached(len(real))
            if name == "gradient_penalty":
                alpha = torch.rand(len(real), 1, 1, 1, device=self.device)
                images = alpha * real + (1 - alpha) * fake
            else:
                images = real if name == "r1" else fake
            squared = self._slope(images).square().sum((1, 2, 3))
            if name == "gradient_penalty":
                value = (((squared + 1e-12).sqrt() - penalty.target) ** 2).mean() / penalty.target**2
                total = total + penalty.weight * value
            else:
                total = total + penalty.gamma / 2 * squared.mean()
        return total, fake

    def _slope(self, images):
        images = images.detach().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):
            (slope,) = torch.autograd.grad(self._critic(images).sum(), images, create_graph=True)
        return slope

    def _generator_loss(self, real):
        objective, batch = self.objective, self.settings.generator_batch
        on_fake = self._critic(self._paint(batch))
        on_real = self._critic(real) if objective.loss == "relativistic" else None
        loss = generator_loss(objective.loss, on_fake, on_real)
        if getattr(self.settings.generator, "super_resolution", False):
            images = torch.cat([real] * -(-batch // len(real)))[:batch]
            low = F.adaptive_avg_pool2d(images, self.generator.low_resolution)
            apart = F.mse_loss(self.generator.upscale(low), images)
            loss = loss + objective.super_resolution_weight * apart
        return loss

    def _path_length_loss(self, real):
        path = self.objective.path_length
        batch = self.settings.generator_batch // path.shrink
        noise = self._drawn(self.generator.noise_spec(batch))
        ws = self._styles(batch, noise)
        with sdpa_kernel(SDPBackend.MATH):
            images = self.generator.synthesis(ws, noise)
            unit = torch.randn_like(images) / math.sqrt(images.shape[2] * images.shape[3])
            (slope,) = torch.autograd.grad((images * unit).sum(), ws, create_graph=True)
        lengths = (slope.float().square().sum(-1).flatten(1).mean(1) + 1e-12).sqrt()
        penalty, mean = path_length_penalty(lengths, self.path_length, path.decay)
        self.path_length = mean.detach()
        return path.every * path.weight * penalty

    def _detached(self, batch):
        """Generated images without graph, painted with one unless that is given up."""
        with torch.no_grad() if "detached" in self.improved else contextlib.nullcontext():
            return self._paint(batch).detach()

    def _paint(self, batch):
        noise = self._drawn(self.generator.noise_spec(batch))
        if isinstance(self.generator, interfaces.StyleBased):
            return self.generator.synthesis(self._styles(batch, noise), noise)
        return self.generator(torch.randn(batch, *self.generator.latent_shape, device=self.device), noise)

    def _styles(self, batch, noise):
        shape, objective = (batch, *self.generator.latent_shape), self.objective
        ws = self.generator.mapping(torch.randn(shape, device=self.device), noise=noise)
        ema.follow_styles(self.generator.w_avg, ws.detach().flatten(0, -2).mean(0))
        if objective.style_mixing or objective.component_mixing:
            other = self.generator.mapping(torch.randn(shape, device=self.device), noise=noise)
            coins = torch.rand(2, device=self.device)
            if objective.style_mixing:
                ws = mix(ws, other, coins[0], objective.style_mixing, axis=-2)
            if objective.component_mixing and ws.ndim == 4:
                ws = mix(ws, other, coins[1], objective.component_mixing, axis=1)
        return ws

    def _critic(self, images, clean=False):
        batch, settings = len(images), self.settings.augment
        if settings.policy and not clean:
            spec = augment_spec(settings.policy, batch, images.shape[-1], settings.chances)
            images = augment(images, self._drawn(spec), settings.policy, settings.chances)
        return self.discriminator(images, self._drawn(self.discriminator.noise_spec(batch)))

    def _drawn(self, spec):
        return draw(spec, seed=0, stream="classic", step=self.iteration, device=self.device)

    @torch.no_grad()
    def _follow(self):
        pairs = list(zip(self.average.parameters(), self.generator.parameters(), strict=True))
        if "average" in self.improved:
            torch._foreach_lerp_([old for old, _ in pairs], [new.detach() for _, new in pairs], 0.001)
        else:
            for old, new in pairs:
                old.mul_(0.999).add_(copy.deepcopy(new).data, alpha=0.001)
        for old, new in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            old.copy_(new)


def resident(settings, device):
    """Random images [B, 3, H, W] in [-1, 1] without end, from bytes that lie on the device."""
    batch, side = settings.training.batch, settings.data.resolution
    images = torch.randint(0, 256, (8 * batch, 3, side, side), dtype=torch.uint8, device=device)
    while True:
        yield images[torch.randint(0, len(images), (batch,), device=device)].float() / 127.5 - 1


def loaded(folder, settings, device, workers):
    """Random images [B, 3, H, W] in [-1, 1] without end, from PNG files made in a folder."""
    batch, side = settings.training.batch, settings.data.resolution
    rng = np.random.default_rng(0)
    for index in range(max(PICTURES, batch)):
        pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(Path(folder) / f"{index:05d}.png")
    loader = DataLoader(
        Pictures(folder, side, settings.data.mirror),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )
    while True:
        for real in loader:
            yield real.to(device)


def measure(settings, device, improved, steps, workers):
    """Figures under the names of `gantx bench train --json`, of whole iterations."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        devices.keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        at_once = "resident" in improved
        reals = resident(settings, device) if at_once else loaded(folder, settings, device, workers)
        run = Classic(settings, device, improved)
        for _ in range(max(run.period, 3)):
            run.iterate(next(reals))
        periods = -(-steps // run.period)
        watch = Stopwatch(device)
        watch.mark()
        for _ in range(periods):
            for _ in range(run.period):
                run.iterate(next(reals))
            watch.mark()
        iteration = median(watch.spans()) / run.period
    return {
        "schema": "gantx.bench/1",
        "what": "classic",
        "preset": settings.name,
        "batch": settings.training.batch,
        "improved": improved,
        "workers": workers,
        "iterations": periods * run.period,
        "images_per_second": settings.training.batch / iteration,
        "iteration_milliseconds": 1000 * iteration,
        "peak_memory_gib": devices.memory_gb(device),
        "machine": dataclasses.asdict(this_machine(device)),
    }


def main():
    """Measure a preset and print one line of JSON."""
    names = "; ".join(f"{name}: {what}" for name, what in IMPROVEMENTS.items())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", required=True)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, help="iterations, rounded up to whole periods")
    parser.add_argument("--workers", type=int, help="processes that decode (8 on a GPU, else none)")
    parser.add_argument("--improve", nargs="+", choices=IMPROVEMENTS, default=[], metavar="HABIT", help=names)
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE")
    asked = parser.parse_args()
    device = devices.pick_device(asked.device)
    batch = {} if asked.batch is None else {"training.batch": asked.batch}
    settings = presets.load(asked.preset, overrides=asked.overrides, settings=batch)
    on_gpu = device.type == "cuda"
    workers = asked.workers
    if workers is None:
        workers = min(8, os.cpu_count() or 1) if on_gpu else 0
    steps = asked.steps or (STEPS_ON_GPU if on_gpu else STEPS_ELSEWHERE)
    print(json.dumps(measure(settings, device, asked.improve, steps, workers)))


if __name__ == "__main__":
    main()
