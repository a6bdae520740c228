"""From a configuration to the ordered list of phases of an iteration.

An iteration is one D step, its lazy penalties when they are due, and one G step when `n_critic` is reached
with path length regularisation when that is due: in this order, so that the first iteration already trains G
as TransGAN's code does, or G before D as in the code of GANformer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gantx.config.schema import RunConfig
from gantx.models.interfaces import MinibatchDependent, StyleBased
from gantx.models.layers.checkpointing import recomputing
from gantx.runtime.random import Draw, Draws, Spec
from gantx.training.augment import Constants, augment
from gantx.training.augment import constants as augment_constants
from gantx.training.augment import spec as augment_spec
from gantx.training.ema import follow_styles
from gantx.training.losses import discriminator_loss, generator_loss
from gantx.training.optimized_network import OptimizedNetwork
from gantx.training.phase import LossOutput, Pass, Phase, Reals
from gantx.training.regularizers import (
    gradient_penalty,
    inconsistency,
    path_length_penalty,
    path_lengths,
    zero_centered_penalty,
)
from gantx.training.style_mixing import mix


def phases(
    config: RunConfig,
    generator: OptimizedNetwork,
    discriminator: OptimizedNetwork,
    path_length: Tensor | None = None,
) -> list[Phase]:
    """The phases of one iteration, in order.

    Args:
        config: the run.
        generator: G with its optimiser.
        discriminator: D with its optimiser.
        path_length: running mean of path lengths (0-d, on their device), moved by the phase that penalises
            them; None starts a new one.
    """
    if path_length is None:
        path_length = torch.zeros((), device=generator.weights.device)
    policy, device = config.augment.policy, generator.weights.device
    fixed = augment_constants(policy, config.data.resolution, device)
    gan = GANObjective(config, generator, discriminator, path_length, fixed)
    penalties = _penalties(gan)
    lazy = sorted({penalty.every for penalty in penalties if penalty.every > 1})
    of_discriminator = [
        _discriminator_stage(gan, [penalty for penalty in penalties if penalty.every == 1]),
        *(_penalty_stage(gan, every, [p for p in penalties if p.every == every]) for every in lazy),
    ]
    of_generator = [_generator_stage(gan)]
    if config.objective.path_length is not None:
        of_generator.append(_path_length_stage(gan))
    if config.objective.first == "generator":
        return of_generator + of_discriminator
    return of_discriminator + of_generator


@dataclass(frozen=True)
class GANObjective:
    """The two networks and what passes between them."""

    config: RunConfig
    generator: OptimizedNetwork
    discriminator: OptimizedNetwork
    path_length: Tensor
    augment_constants: Constants = field(default_factory=dict)

    def latent_spec(self, batch: int) -> Spec:
        """The draws of one G pass."""
        network: Any = self.generator.network
        z = Draw("normal", (batch, *network.latent_shape))
        spec: Spec = {"z": z, "noise": network.noise_spec(batch)}
        if self.config.objective.style_mixing or self.config.objective.component_mixing:
            coin = Draw("uniform", (), per="batch")
            spec["mixing"] = {"z": z, "layer": coin, "component": coin}
        return spec

    def style(self, q: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Styles with the draws of `latent_spec`, mixed, and what is kept of those before mixing."""
        network: Any = self.generator.network
        ws: Tensor = network.mapping(q["z"], noise=q["noise"])
        kept = {"styles": ws.detach().flatten(0, -2).mean(0)}
        if "mixing" in q:
            other: Tensor = network.mapping(q["mixing"]["z"], noise=q["noise"])
            objective, mixing = self.config.objective, q["mixing"]
            if objective.style_mixing:
                ws = mix(ws, other, mixing["layer"], objective.style_mixing, axis=-2)
            if objective.component_mixing and ws.ndim == 4:
                ws = mix(ws, other, mixing["component"], objective.component_mixing, axis=1)
        return ws, kept

    def generate(self, q: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """One G pass with the draws of `latent_spec`: images [B, 3, H, W], and what is kept of it."""
        network: Any = self.generator.network
        if not isinstance(network, StyleBased):
            return network(q["z"], q["noise"]), {}
        ws, kept = self.style(q)
        return network.synthesis(ws, q["noise"]), kept

    def critic_spec(self, batch: int) -> Spec:
        """The draws of one D pass, augmentation included."""
        network: Any = self.discriminator.network
        side, settings = self.config.data.resolution, self.config.augment
        return {
            "augment": augment_spec(settings.policy, batch, side, settings.chances),
            "noise": network.noise_spec(batch),
        }

    def augment(self, images: Tensor, q: Any) -> Tensor:
        """What D sees of images, with the draws of `critic_spec`; without `augment` as they are."""
        settings = self.config.augment
        if "augment" not in q:
            return images
        return augment(images, q["augment"], settings.policy, settings.chances, self.augment_constants)

    def critic(self, images: Tensor, q: Any) -> Tensor:
        """One D pass with the draws of `critic_spec`: logits [B]."""
        logits: Tensor = self.discriminator.network(self.augment(images, q), q["noise"])
        return logits

    def compare(self, *views: tuple[Tensor, Any]) -> tuple[Tensor, ...]:
        """Logits [B] of several batches, each with draws of `critic_spec`, from one D pass over all."""
        seen = torch.cat([self.augment(images, q) for images, q in views])
        apart = {"parts": len(views)} if isinstance(self.discriminator.network, MinibatchDependent) else {}
        noise = _joined([q["noise"] for _, q in views])
        logits: Tensor = self.discriminator.network(seen, noise, **apart)
        return logits.chunk(len(views))

    def recomputing(self) -> Any:
        """The context of passes that may forget their activations, outside gradient penalties."""
        return recomputing(self.config.training.recompute)

    def keep(self, kept: dict[str, Tensor]) -> None:
        """Move the average of G's styles."""
        network: Any = self.generator.network
        if "styles" in kept:
            follow_styles(network.w_avg, kept["styles"])

    def average_every_pass(self) -> dict[str, Any]:
        """For phases that paint without moving G: arguments of `Phase` that let them move its average."""
        every_pass = self.config.objective.w_average == "every_pass"
        return {"keep": self.keep, "update_every_pass": True} if every_pass else {}


def _joined(each: list[Draws]) -> Draws:
    """Concatenate draws of one spec along the batch."""
    joined: Draws = {}
    for name, value in each[0].items():
        values = [draws[name] for draws in each]
        if isinstance(value, dict):
            joined[name] = _joined([draws for draws in values if isinstance(draws, dict)])
        else:
            joined[name] = torch.cat([draws for draws in values if isinstance(draws, Tensor)])
    return joined


@dataclass(frozen=True)
class Penalty:
    """A penalty on D: its name, how often it is due, its weight, its draws and its value."""

    name: str
    every: int
    weight: float
    needs_fakes: bool
    spec: Callable[[int], Spec]
    value: Callable[[Tensor, Tensor, Any], Tensor]


def _penalties(gan: GANObjective) -> list[Penalty]:
    objective = gan.config.objective
    found: list[Penalty] = []
    if (gp := objective.gradient_penalty) is not None:
        target = gp.target

        def mixed_value(real: Tensor, fake: Tensor, q: Any) -> Tensor:
            return gradient_penalty(lambda x: gan.critic(x, q["mixed"]), real, fake, q["alpha"], target)

        def mixed_spec(batch: int) -> Spec:
            return {"alpha": Draw("uniform", (batch,)), "mixed": gan.critic_spec(batch)}

        found.append(Penalty("gradient_penalty", gp.every, gp.weight, True, mixed_spec, mixed_value))
    if (r1 := objective.r1) is not None:

        def real_value(real: Tensor, fake: Tensor, q: Any) -> Tensor:
            return zero_centered_penalty(lambda x: gan.critic(x, q), real)

        found.append(Penalty("r1", r1.every, r1.gamma, False, gan.critic_spec, real_value))
    if (r2 := objective.r2) is not None:

        def fake_value(real: Tensor, fake: Tensor, q: Any) -> Tensor:
            return zero_centered_penalty(lambda x: gan.critic(x, q), fake)

        found.append(Penalty("r2", r2.every, r2.gamma, True, gan.critic_spec, fake_value))
    return found


def at_once(micro_batch: int | str | None, batch: int) -> int:
    """Samples of a step that are computed at once; all, unless their number is fixed."""
    return micro_batch if isinstance(micro_batch, int) else batch


def _discriminator_stage(gan: GANObjective, penalties: list[Penalty]) -> Phase:
    objective, training = gan.config.objective, gan.config.training
    batch, size = training.batch, at_once(training.micro_batch, training.batch)
    consistency = objective.consistency
    # Penalties share the images of the loss, unless they are computed on fewer samples at once.
    penalty_size = size if training.penalty_micro_batch is None else training.penalty_micro_batch
    shared = penalties if penalty_size == size else []

    def loss(reals: Reals, q: Any) -> LossOutput:
        real = reals["real"]
        with torch.no_grad():
            fake, kept = gan.generate(q["latent"])
        views = [(real, q["on_real"]), (fake, q["on_fake"])]
        if consistency is not None:
            views += [(real, q["on_real_again"]), (fake, q["on_fake_again"])]
        with gan.recomputing():
            on_real, on_fake, *again = gan.compare(*views)
        total = discriminator_loss(objective.loss, on_real, on_fake, objective.drift)
        observed = {"on_real": on_real.mean(), "on_fake": on_fake.mean()}
        if consistency is not None:
            apart = [inconsistency(*pair) for pair in zip((on_real, on_fake), again, strict=True)]
            observed["inconsistency_real"], observed["inconsistency_fake"] = apart
            total = total + consistency.real * apart[0] + consistency.fake * apart[1]
        for penalty in shared:
            observed[penalty.name] = penalty.value(real, fake, q[penalty.name])
            total = total + penalty.weight * observed[penalty.name]
        return LossOutput(total, observed, kept)

    again_spec: Spec = {}
    if consistency is not None:
        again = gan.critic_spec(batch)
        if consistency.compare == "clean":
            del again["augment"]
        again_spec = {"on_real_again": again, "on_fake_again": again}
    spec: Spec = {
        "latent": gan.latent_spec(batch),
        "on_real": gan.critic_spec(batch),
        "on_fake": gan.critic_spec(batch),
        **again_spec,
        **{penalty.name: penalty.spec(batch) for penalty in penalties},
    }
    passes = [Pass(loss, size)]
    if penalties and not shared:
        passes.append(Pass(_penalty_loss(gan, penalties), penalty_size))
    return Phase(
        "discriminator",
        gan.discriminator,
        (gan.generator,),
        1,
        batch,
        ("real",),
        spec,
        tuple(passes),
        **gan.average_every_pass(),
    )


def _penalty_loss(gan: GANObjective, penalties: list[Penalty]) -> Callable[[Reals, Any], LossOutput]:
    """The weighted sum of penalties, at images of their own."""
    fakes = any(penalty.needs_fakes for penalty in penalties)

    def loss(reals: Reals, q: Any) -> LossOutput:
        real = fake = reals["real"]
        if fakes:
            with torch.no_grad():
                fake, _ = gan.generate(q["latent"])
        observed = {penalty.name: penalty.value(real, fake, q[penalty.name]) for penalty in penalties}
        weighted = [penalty.weight * observed[penalty.name] for penalty in penalties]
        return LossOutput(torch.stack(weighted).sum(), observed)

    return loss


def _penalty_stage(gan: GANObjective, every: int, penalties: list[Penalty]) -> Phase:
    """Lazy regularisation (StyleGAN2, appendix B): a D step of its own, its loss scaled by its interval."""
    training = gan.config.training
    batch = training.batch
    plain = _penalty_loss(gan, penalties)

    def loss(reals: Reals, q: Any) -> LossOutput:
        outcome = plain(reals, q)
        return LossOutput(every * outcome.loss, outcome.observed, outcome.kept)

    spec: Spec = {penalty.name: penalty.spec(batch) for penalty in penalties}
    if any(penalty.needs_fakes for penalty in penalties):
        spec["latent"] = gan.latent_spec(batch)
    name = "penalty" if len(penalties) != 1 else penalties[0].name
    return Phase(
        f"{name}_every_{every}",
        gan.discriminator,
        (gan.generator,),
        every,
        batch,
        ("real",),
        spec,
        (Pass(loss, training.penalty_micro_batch or at_once(training.micro_batch, batch)),),
    )


def _generator_stage(gan: GANObjective) -> Phase:
    config, objective, batch = gan.config, gan.config.objective, gan.config.generator_batch
    paired = objective.loss == "relativistic"
    super_resolution: bool = getattr(config.generator, "super_resolution", False)
    network: Any = gan.generator.network

    def loss(reals: Reals, q: Any) -> LossOutput:
        with gan.recomputing():
            fake, kept = gan.generate(q["latent"])
            on_fake = gan.critic(fake, q["on_fake"])
            on_real = gan.critic(reals["real"], q["on_real"]) if paired else None
        total = generator_loss(objective.loss, on_fake, on_real)
        observed = {"on_fake": on_fake.mean()}
        if super_resolution:
            high = reals["super_resolution"]
            low = F.adaptive_avg_pool2d(high, network.low_resolution)
            with gan.recomputing():
                observed["super_resolution"] = (network.upscale(low) - high).square().mean()
            total = total + objective.super_resolution_weight * observed["super_resolution"]
        return LossOutput(total, observed, kept)

    spec: Spec = {"latent": gan.latent_spec(batch), "on_fake": gan.critic_spec(batch)}
    if paired:
        spec["on_real"] = gan.critic_spec(batch)
    streams = (("real",) if paired else ()) + (("super_resolution",) if super_resolution else ())
    return Phase(
        "generator",
        gan.generator,
        (gan.discriminator,),
        objective.n_critic,
        batch,
        streams,
        spec,
        (Pass(loss, at_once(config.training.micro_batch, batch)),),
        **{"keep": gan.keep, **gan.average_every_pass()},
    )


def _path_length_stage(gan: GANObjective) -> Phase:
    """Path length regularisation: a lazy G step of its own, its loss scaled by its interval."""
    training, settings = gan.config.training, gan.config.objective.path_length
    assert settings is not None
    every, batch = settings.every, gan.config.generator_batch // settings.shrink
    network: Any = gan.generator.network

    def loss(reals: Reals, q: Any) -> LossOutput:
        ws, _ = gan.style(q["latent"])
        lengths = path_lengths(lambda s: network.synthesis(s, q["latent"]["noise"]), ws, q["direction"])
        penalty, mean = path_length_penalty(lengths, gan.path_length, settings.decay)
        observed = {"path_length": lengths.mean(), "path_length_penalty": penalty}
        return LossOutput(every * settings.weight * penalty, observed, {"path_length": mean.detach()})

    def keep(kept: dict[str, Tensor]) -> None:
        gan.path_length.copy_(kept["path_length"])

    spec: Spec = {
        "latent": gan.latent_spec(batch),
        "direction": Draw("normal", (batch, *network.image_shape)),
    }
    size = min(batch, training.penalty_micro_batch or at_once(training.micro_batch, batch))
    return Phase(
        f"path_length_every_{every}",
        gan.generator,
        (gan.discriminator,),
        every,
        batch,
        (),
        spec,
        (Pass(loss, size),),
        keep=keep,
    )
