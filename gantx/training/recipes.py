"""From a configuration to the ordered list of stages of an iteration.

An iteration is one D step, its lazy penalties when they are due, and one G step when `n_critic` is reached,
in this order: the first iteration already trains G, as TransGAN's code does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gantx.config import RunConfig
from gantx.draws import Draw, Draws, Spec
from gantx.models import LooksAcrossBatch
from gantx.training.augment import augment
from gantx.training.augment import spec as augment_spec
from gantx.training.losses import discriminator_loss, generator_loss
from gantx.training.regularizers import gradient_penalty, zero_centered_penalty
from gantx.training.stage import Player, Reals, Stage


def stages(config: RunConfig, generator: Player, discriminator: Player) -> list[Stage]:
    """The stages of one iteration, in order."""
    game = Game(config, generator, discriminator)
    penalties = _penalties(game)
    lazy = sorted({penalty.every for penalty in penalties if penalty.every > 1})
    return [
        _discriminator_stage(game, [penalty for penalty in penalties if penalty.every == 1]),
        *(_penalty_stage(game, every, [p for p in penalties if p.every == every]) for every in lazy),
        _generator_stage(game),
    ]


def in_order(due: list[Stage], micro_batch: int | None) -> list[tuple[Stage, Stage | None]]:
    """The order in which the stages of an iteration run, each with one that runs inside it.

    A G step that leaks into D comes after the first micro-batch of the D step where D accumulates, and after
    the whole of it otherwise, as in the released training code of TransGAN version 2.
    """
    inner = next((stage for stage in due if stage.spills), None)
    first = due[0]
    if inner is None or inner is first or micro_batch is None or micro_batch >= first.batch:
        return [(stage, None) for stage in due]
    return [(first, inner), *((stage, None) for stage in due[1:] if stage is not inner)]


@dataclass(frozen=True)
class Game:
    """The two players and what passes between them."""

    config: RunConfig
    generator: Player
    discriminator: Player

    def latent_spec(self, batch: int) -> Spec:
        """The draws of one G pass."""
        network: Any = self.generator.network
        return {"z": Draw("normal", (batch, *network.latent_shape)), "noise": network.noise_spec(batch)}

    def paint(self, q: Any) -> Tensor:
        """One G pass with the draws of `latent_spec`: images [B, 3, H, W]."""
        images: Tensor = self.generator.network(q["z"], q["noise"])
        return images

    def critic_spec(self, batch: int) -> Spec:
        """The draws of one D pass, augmentation included."""
        network: Any = self.discriminator.network
        policy, side = self.config.augment.policy, self.config.data.resolution
        return {"augment": augment_spec(policy, batch, side), "noise": network.noise_spec(batch)}

    def critic(self, images: Tensor, q: Any) -> Tensor:
        """One D pass with the draws of `critic_spec`: logits [B]."""
        seen = augment(images, q["augment"], self.config.augment.policy)
        logits: Tensor = self.discriminator.network(seen, q["noise"])
        return logits

    def compare(self, real: Tensor, fake: Tensor, q_real: Any, q_fake: Any) -> tuple[Tensor, Tensor]:
        """Logits of real and generated images, each [B], from one D pass over both."""
        policy = self.config.augment.policy
        seen = torch.cat([augment(real, q_real["augment"], policy), augment(fake, q_fake["augment"], policy)])
        apart = {"parts": 2} if isinstance(self.discriminator.network, LooksAcrossBatch) else {}
        noise = _joined(q_real["noise"], q_fake["noise"])
        logits: Tensor = self.discriminator.network(seen, noise, **apart)
        on_real, on_fake = logits.chunk(2)
        return on_real, on_fake


def _joined(first: Draws, second: Draws) -> Draws:
    """Concatenate two draws of one spec along the batch."""
    joined: Draws = {}
    for name, value in first.items():
        other = second[name]
        if isinstance(value, Tensor) and isinstance(other, Tensor):
            joined[name] = torch.cat([value, other])
        elif isinstance(value, dict) and isinstance(other, dict):
            joined[name] = _joined(value, other)
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


def _penalties(game: Game) -> list[Penalty]:
    objective = game.config.objective
    found: list[Penalty] = []
    if (gp := objective.gradient_penalty) is not None:
        target = gp.target

        def mixed_value(real: Tensor, fake: Tensor, q: Any) -> Tensor:
            return gradient_penalty(lambda x: game.critic(x, q["mixed"]), real, fake, q["alpha"], target)

        def mixed_spec(batch: int) -> Spec:
            return {"alpha": Draw("uniform", (batch,)), "mixed": game.critic_spec(batch)}

        found.append(Penalty("gradient_penalty", gp.every, gp.weight, True, mixed_spec, mixed_value))
    if (r1 := objective.r1) is not None:

        def real_value(real: Tensor, fake: Tensor, q: Any) -> Tensor:
            return zero_centered_penalty(lambda x: game.critic(x, q), real)

        found.append(Penalty("r1", r1.every, r1.gamma, False, game.critic_spec, real_value))
    if (r2 := objective.r2) is not None:

        def fake_value(real: Tensor, fake: Tensor, q: Any) -> Tensor:
            return zero_centered_penalty(lambda x: game.critic(x, q), fake)

        found.append(Penalty("r2", r2.every, r2.gamma, True, game.critic_spec, fake_value))
    return found


def _discriminator_stage(game: Game, penalties: list[Penalty]) -> Stage:
    objective, batch = game.config.objective, game.config.training.batch

    def loss(reals: Reals, q: Any) -> tuple[Tensor, dict[str, Tensor]]:
        real = reals["real"]
        with torch.no_grad():
            fake = game.paint(q["latent"])
        on_real, on_fake = game.compare(real, fake, q["on_real"], q["on_fake"])
        total = discriminator_loss(objective.loss, on_real, on_fake, objective.drift)
        observed = {"on_real": on_real.mean(), "on_fake": on_fake.mean()}
        for penalty in penalties:
            observed[penalty.name] = penalty.value(real, fake, q[penalty.name])
            total = total + penalty.weight * observed[penalty.name]
        return total, observed

    spec: Spec = {
        "latent": game.latent_spec(batch),
        "on_real": game.critic_spec(batch),
        "on_fake": game.critic_spec(batch),
        **{penalty.name: penalty.spec(batch) for penalty in penalties},
    }
    return Stage("discriminator", game.discriminator, (game.generator,), 1, batch, ("real",), spec, loss)


def _penalty_stage(game: Game, every: int, penalties: list[Penalty]) -> Stage:
    """Lazy regularisation (StyleGAN2, appendix B): a D step of its own, its loss scaled by its interval."""
    batch = game.config.training.batch
    fakes = any(penalty.needs_fakes for penalty in penalties)

    def loss(reals: Reals, q: Any) -> tuple[Tensor, dict[str, Tensor]]:
        real = fake = reals["real"]
        if fakes:
            with torch.no_grad():
                fake = game.paint(q["latent"])
        observed = {penalty.name: penalty.value(real, fake, q[penalty.name]) for penalty in penalties}
        weighted = [penalty.weight * observed[penalty.name] for penalty in penalties]
        return every * torch.stack(weighted).sum(), observed

    spec: Spec = {penalty.name: penalty.spec(batch) for penalty in penalties}
    if fakes:
        spec["latent"] = game.latent_spec(batch)
    name = "penalty" if len(penalties) != 1 else penalties[0].name
    return Stage(
        f"{name}_every_{every}", game.discriminator, (game.generator,), every, batch, ("real",), spec, loss
    )


def _generator_stage(game: Game) -> Stage:
    config, objective, batch = game.config, game.config.objective, game.config.generator_batch
    paired = objective.loss == "relativistic"
    super_resolution: bool = getattr(config.generator, "super_resolution", False)
    network: Any = game.generator.network

    def loss(reals: Reals, q: Any) -> tuple[Tensor, dict[str, Tensor]]:
        on_fake = game.critic(game.paint(q["latent"]), q["on_fake"])
        on_real = game.critic(reals["real"], q["on_real"]) if paired else None
        total = generator_loss(objective.loss, on_fake, on_real)
        observed = {"on_fake": on_fake.mean()}
        if super_resolution:
            high = reals["super_resolution"]
            low = F.adaptive_avg_pool2d(high, network.low_resolution)
            observed["super_resolution"] = F.mse_loss(network.upscale(low), high)
            total = total + objective.super_resolution_weight * observed["super_resolution"]
        return total, observed

    spec: Spec = {"latent": game.latent_spec(batch), "on_fake": game.critic_spec(batch)}
    if paired:
        spec["on_real"] = game.critic_spec(batch)
    streams = (("real",) if paired else ()) + (("super_resolution",) if super_resolution else ())
    return Stage(
        "generator",
        game.generator,
        (game.discriminator,),
        objective.n_critic,
        batch,
        streams,
        spec,
        loss,
        spills=objective.gradient_leak,
    )
