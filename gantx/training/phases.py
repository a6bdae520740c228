"""The phases of an iteration: their order, their intervals, and how many samples each computes at once.

An iteration is one D step, its lazy penalties when they are due, and one G step when `n_critic` is reached,
with path length regularisation when that is due. The first iteration already trains G, as TransGAN's code
does; `objective.first` puts G before D, as in the code of GANformer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gantx.config.schema import RunConfig, TrainingConfig
from gantx.models.interfaces import Discriminator, Generator
from gantx.runtime.random import Draws
from gantx.training.augment import constants as augment_constants
from gantx.training.conditioning import label_draws
from gantx.training.objective import GANObjective, Penalty, penalties
from gantx.training.optimized_network import OptimizedNetwork
from gantx.training.phase import LossOutput, Pass, Phase, Reals, no_update


def phases(
    config: RunConfig,
    generator: OptimizedNetwork[Generator],
    discriminator: OptimizedNetwork[Discriminator],
    path_length: Tensor | None = None,
) -> list[Phase]:
    """The phases of one iteration, in order.

    Args:
        config: the run.
        generator: G with its optimiser.
        discriminator: D with its optimiser.
        path_length: running mean of path lengths (0-d, on their device), updated by the phase that penalises
            them; None starts a new one.
    """
    if path_length is None:
        path_length = torch.zeros((), device=generator.weights.device)
    gan = build_objective(config, generator.network, discriminator.network, path_length)
    by_interval: dict[int, list[Penalty]] = {1: []}
    for penalty in penalties(gan):
        by_interval.setdefault(penalty.interval, []).append(penalty)
    training = config.training
    of_discriminator = [
        _discriminator_phase(gan, discriminator, generator, training, by_interval.pop(1)),
        *(
            _penalty_phase(gan, discriminator, generator, training, due, interval)
            for interval, due in sorted(by_interval.items())
        ),
    ]
    super_resolution: bool = getattr(config.generator, "super_resolution", False)
    batch = config.generator_batch
    of_generator = [_generator_phase(gan, generator, discriminator, training, batch, super_resolution)]
    if config.objective.path_length is not None:
        of_generator.append(_path_length_phase(gan, generator, discriminator, training, batch))
    if config.objective.first == "generator":
        return of_generator + of_discriminator
    return of_discriminator + of_generator


def build_objective(
    config: RunConfig, generator: Generator, discriminator: Discriminator, path_length: Tensor
) -> GANObjective:
    """The losses of a run; arguments as for `phases`."""
    resolution = config.data.resolution
    return GANObjective(
        generator,
        discriminator,
        config.objective,
        config.augment,
        resolution,
        config.training.recompute,
        path_length,
        augment_constants(config.augment.policy, resolution, path_length.device),
        label_draws(config.conditioning, path_length.device),
    )


def micro_batch_size(training: TrainingConfig, batch: int) -> int:
    """Samples of a batch that are computed at once; all of them unless a number is configured."""
    return training.micro_batch if isinstance(training.micro_batch, int) else batch


def penalty_micro_batch_size(training: TrainingConfig, batch: int) -> int:
    """Samples of a batch on which penalties are computed at once."""
    return training.penalty_micro_batch or micro_batch_size(training, batch)


def _discriminator_phase(
    gan: GANObjective,
    discriminator: OptimizedNetwork[Discriminator],
    generator: OptimizedNetwork[Generator],
    training: TrainingConfig,
    penalties: Sequence[Penalty],
) -> Phase:
    """The D step, with the penalties that are due in every iteration."""
    batch = training.batch
    size, penalty_size = micro_batch_size(training, batch), penalty_micro_batch_size(training, batch)
    # Penalties share the images of the loss, unless they are computed on fewer samples at once.
    shared = penalties if penalty_size == size else ()

    def loss(reals: Reals, q: Draws) -> LossOutput:
        return gan.discriminator_loss(reals, q, shared)

    def penalty_loss(reals: Reals, q: Draws) -> LossOutput:
        return gan.penalty_loss(reals, q, penalties, 1)

    passes = [Pass(loss, size)]
    if penalties and not shared:
        passes.append(Pass(penalty_loss, penalty_size))
    # G generates here without being trained, and its average of styles may follow even so.
    averages = gan.objective.w_average == "every_pass"
    return Phase(
        name="discriminator",
        trained=discriminator,
        frozen=(generator,),
        interval=1,
        batch=batch,
        reals=("real",),
        spec=gan.discriminator_loss_spec(batch, penalties),
        passes=tuple(passes),
        update_state=gan.update_style_average if averages else no_update,
        update_every_pass=averages,
        labelled=gan.labelled(("real",)),
    )


def _penalty_phase(
    gan: GANObjective,
    discriminator: OptimizedNetwork[Discriminator],
    generator: OptimizedNetwork[Generator],
    training: TrainingConfig,
    penalties: Sequence[Penalty],
    interval: int,
) -> Phase:
    """Lazy regularisation (StyleGAN2, appendix B): a D step of its own, its loss scaled by its interval."""

    def loss(reals: Reals, q: Draws) -> LossOutput:
        return gan.penalty_loss(reals, q, penalties, interval)

    name = "penalty" if len(penalties) != 1 else penalties[0].name
    return Phase(
        name=f"{name}_every_{interval}",
        trained=discriminator,
        frozen=(generator,),
        interval=interval,
        batch=training.batch,
        reals=("real",),
        spec=gan.penalty_loss_spec(training.batch, penalties),
        passes=(Pass(loss, penalty_micro_batch_size(training, training.batch)),),
        labelled=gan.labelled(("real",)),
    )


def _generator_phase(
    gan: GANObjective,
    generator: OptimizedNetwork[Generator],
    discriminator: OptimizedNetwork[Discriminator],
    training: TrainingConfig,
    batch: int,
    super_resolution: bool,
) -> Phase:
    """The G step."""
    reals = (("real",) if gan.relativistic else ()) + (("super_resolution",) if super_resolution else ())
    return Phase(
        name="generator",
        trained=generator,
        frozen=(discriminator,),
        interval=gan.objective.n_critic,
        batch=batch,
        reals=reals,
        spec=gan.generator_loss_spec(batch),
        passes=(Pass(gan.generator_loss, micro_batch_size(training, batch)),),
        update_state=gan.update_style_average,
        update_every_pass=gan.objective.w_average == "every_pass",
        labelled=gan.labelled(reals),
    )


def _path_length_phase(
    gan: GANObjective,
    generator: OptimizedNetwork[Generator],
    discriminator: OptimizedNetwork[Discriminator],
    training: TrainingConfig,
    generator_batch: int,
) -> Phase:
    """Path length regularisation: a lazy G step of its own, its loss scaled by its interval."""
    settings = gan.objective.path_length
    assert settings is not None
    batch = generator_batch // settings.shrink

    def update_mean(state_updates: dict[str, Tensor]) -> None:
        gan.path_length.copy_(state_updates["path_length"])

    return Phase(
        name=f"path_length_every_{settings.every}",
        trained=generator,
        frozen=(discriminator,),
        interval=settings.every,
        batch=batch,
        reals=(),
        spec=gan.path_length_spec(batch),
        passes=(Pass(gan.path_length_loss, min(batch, penalty_micro_batch_size(training, batch))),),
        update_state=update_mean,
    )
