"""What the two networks minimise: the losses of D and G side by side, and the penalties on D.

A loss is a pure function of real images by stream and of draws `q`; the spec beside it declares the draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gantx.config.schema import AugmentConfig, ObjectiveConfig
from gantx.models.interfaces import (
    Discriminator,
    Generator,
    MinibatchDependent,
    StyleBased,
    SuperResolves,
)
from gantx.models.layers.checkpointing import recomputing
from gantx.runtime.random import Draw, Draws, Spec
from gantx.training.augment import Constants, augment
from gantx.training.augment import spec as augment_spec
from gantx.training.conditioning import LabelDraws
from gantx.training.ema import follow_styles
from gantx.training.losses import discriminator_loss, generator_loss
from gantx.training.mixing_regularization import mix
from gantx.training.phase import LossOutput, Reals, labels_of
from gantx.training.regularizers import (
    gradient_penalty,
    inconsistency,
    path_length_penalty,
    path_lengths,
    zero_centered_penalty,
)


class Labelled(NamedTuple):
    """A batch of images.

    Attributes:
        images: [B, C, H, W].
        labels: int64 [B]; None in an unconditional run.
    """

    images: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True)
class Penalty:
    """A penalty on D.

    Attributes:
        name: of its draws and of its value in metrics.
        interval: it is computed at every iteration that this number divides.
        weight: factor on its value.
        needs_fakes: whether it depends on generated images.
        spec: the draws for a batch of a given size.
        value: of real images, generated images and draws; a scalar.
    """

    name: str
    interval: int
    weight: float
    needs_fakes: bool
    spec: Callable[[int], Spec]
    value: Callable[[Labelled, Labelled, Any], Tensor]


@dataclass(frozen=True)
class GANObjective:
    """The losses of a generator and a discriminator.

    Attributes:
        generator: G.
        discriminator: D.
        objective: which losses and penalties.
        augmentation: of the images that D receives.
        resolution: height and width of the images in pixels.
        recompute: recompute activations in the backward pass instead of storing them, except in penalties.
        path_length: running mean of the path lengths of G, 0-d.
        augment_constants: of `gantx.training.augment.constants`.
        label_draws: of a conditional run; None for an unconditional one.
    """

    generator: Generator
    discriminator: Discriminator
    objective: ObjectiveConfig
    augmentation: AugmentConfig
    resolution: int
    recompute: bool
    path_length: Tensor
    augment_constants: Constants
    label_draws: LabelDraws | None = None

    # --- losses -------------------------------------------------------------------------------------------

    def discriminator_loss(self, reals: Reals, q: Any, penalties: Sequence[Penalty] = ()) -> LossOutput:
        """What D minimises on the stream `real`, with the draws of `discriminator_loss_spec`."""
        real = self.real(reals, q)
        with torch.no_grad():
            fake, state_updates = self.generate(q["latent"], self.labels(q["latent"], real))
        views = [(real, q["on_real"]), (fake, q["on_fake"])]
        if self.objective.consistency is not None:
            views += [(real, q["on_real_again"]), (fake, q["on_fake_again"])]
        with recomputing(self.recompute):
            on_real, on_fake, *again = self.discriminate_views(*views)
        loss = discriminator_loss(self.objective.loss, on_real, on_fake, self.objective.drift)
        observed = {"on_real": on_real.mean(), "on_fake": on_fake.mean()}
        if (consistency := self.objective.consistency) is not None:
            on_real_again, on_fake_again = again
            observed["inconsistency_real"] = inconsistency(on_real, on_real_again)
            observed["inconsistency_fake"] = inconsistency(on_fake, on_fake_again)
            loss = loss + consistency.real * observed["inconsistency_real"]
            loss = loss + consistency.fake * observed["inconsistency_fake"]
        for penalty in penalties:
            observed[penalty.name] = penalty.value(real, fake, q[penalty.name])
            loss = loss + penalty.weight * observed[penalty.name]
        return LossOutput(loss, observed, state_updates)

    def generator_loss(self, reals: Reals, q: Any) -> LossOutput:
        """What G minimises, with the draws of `generator_loss_spec`.

        Reads the stream `real` if the loss is relativistic, and adds the loss of super-resolution if there is
        a stream `super_resolution`.
        """
        real = self.real(reals, q) if self.relativistic else None
        with recomputing(self.recompute):
            fake, state_updates = self.generate(q["latent"], self.labels(q["latent"], real))
            on_fake = self.discriminate(fake, q["on_fake"])
            on_real = None if real is None else self.discriminate(real, q["on_real"])
        loss = generator_loss(self.objective.loss, on_fake, on_real)
        observed = {"on_fake": on_fake.mean()}
        if "super_resolution" in reals:
            observed["super_resolution"] = self.super_resolution_loss(reals["super_resolution"])
            loss = loss + self.objective.super_resolution_weight * observed["super_resolution"]
        return LossOutput(loss, observed, state_updates)

    def penalty_loss(self, reals: Reals, q: Any, penalties: Sequence[Penalty], interval: int) -> LossOutput:
        """`interval` times the weighted sum of penalties on D, with the draws of `penalty_loss_spec`."""
        real = fake = self.real(reals, q)
        if any(penalty.needs_fakes for penalty in penalties):
            with torch.no_grad():
                fake, _ = self.generate(q["latent"], self.labels(q["latent"]))
        observed = {penalty.name: penalty.value(real, fake, q[penalty.name]) for penalty in penalties}
        weighted = [penalty.weight * observed[penalty.name] for penalty in penalties]
        return LossOutput(interval * torch.stack(weighted).sum(), observed)

    def path_length_loss(self, reals: Reals, q: Any) -> LossOutput:
        """Path length regularisation of G, times its interval, with the draws of `path_length_spec`."""
        settings, generator = self.objective.path_length, self.generator
        assert settings is not None
        assert isinstance(generator, StyleBased)
        ws, _ = self.styles(q["latent"], self.labels(q["latent"]))
        lengths = path_lengths(lambda s: generator.synthesis(s, q["latent"]["noise"]), ws, q["direction"])
        penalty, mean = path_length_penalty(lengths, self.path_length, settings.decay)
        observed = {"path_length": lengths.mean(), "path_length_penalty": penalty}
        loss = settings.every * settings.weight * penalty
        return LossOutput(loss, observed, {"path_length": mean.detach()})

    def super_resolution_loss(self, high: Tensor) -> Tensor:
        """Mean squared error of G's upscaling of images [B, C, H, W] that were scaled down (TransGAN)."""
        generator = self.generator
        assert isinstance(generator, SuperResolves)
        low = F.adaptive_avg_pool2d(high, generator.low_resolution)
        with recomputing(self.recompute):
            return (generator.upscale(low) - high).square().mean()

    # --- draws of the losses ------------------------------------------------------------------------------

    def discriminator_loss_spec(self, batch: int, penalties: Sequence[Penalty]) -> Spec:
        """The draws of `discriminator_loss` with these penalties."""
        spec: Spec = {
            "latent": self.latent_spec(batch),
            "on_real": self.discriminator_spec(batch),
            "on_fake": self.discriminator_spec(batch),
        }
        if self.objective.consistency is not None:
            again = self.discriminator_spec(batch)
            if self.objective.consistency.compare == "clean":
                del again["augment"]
            spec |= {"on_real_again": again, "on_fake_again": again}
        return spec | self.real_spec(batch) | {penalty.name: penalty.spec(batch) for penalty in penalties}

    def generator_loss_spec(self, batch: int) -> Spec:
        """The draws of `generator_loss`."""
        spec: Spec = {"latent": self.latent_spec(batch), "on_fake": self.discriminator_spec(batch)}
        if self.relativistic:
            spec |= {"on_real": self.discriminator_spec(batch), **self.real_spec(batch)}
        return spec

    def penalty_loss_spec(self, batch: int, penalties: Sequence[Penalty]) -> Spec:
        """The draws of `penalty_loss`."""
        spec: Spec = {penalty.name: penalty.spec(batch) for penalty in penalties}
        spec |= self.real_spec(batch)
        if any(penalty.needs_fakes for penalty in penalties):
            spec["latent"] = self.latent_spec(batch)
        return spec

    def path_length_spec(self, batch: int) -> Spec:
        """The draws of `path_length_loss`."""
        direction = Draw("normal", (batch, *self.generator.image_shape))
        return {"latent": self.latent_spec(batch), "direction": direction}

    # --- passes through the networks ----------------------------------------------------------------------

    @property
    def relativistic(self) -> bool:
        """Whether the loss of G compares generated images with real ones."""
        return self.objective.loss == "relativistic"

    def labelled(self, streams: Sequence[str]) -> tuple[str, ...]:
        """Those of the streams whose labels the losses read."""
        return () if self.label_draws is None else tuple(name for name in streams if name == "real")

    def real_spec(self, batch: int) -> Spec:
        """The draws of `real`, in a conditional run that withholds classes."""
        spec = {} if self.label_draws is None else self.label_draws.withheld_spec(batch)
        return {"real_label": spec} if spec else {}

    def real(self, reals: Reals, q: Any) -> Labelled:
        """The stream `real`, with its labels in a conditional run; some are withheld, by `real_spec`."""
        labels = reals.get(labels_of("real"))
        if labels is not None and self.label_draws is not None and "real_label" in q:
            labels = self.label_draws.withhold(labels, q["real_label"])
        return Labelled(reals["real"], labels)

    def latent_spec(self, batch: int) -> Spec:
        """The draws of one pass through G."""
        z = Draw("normal", (batch, *self.generator.latent_shape))
        spec: Spec = {"z": z, "noise": self.generator.noise_spec(batch)}
        if self.label_draws is not None:
            spec["label"] = self.label_draws.spec(batch)
        if self.objective.style_mixing or self.objective.component_mixing:
            u = Draw("uniform", (), per="batch")
            spec["mixing"] = {"z": z, "layer": u, "component": u}
        return spec

    def labels(self, q: Any, real: Labelled | None = None) -> Tensor | None:
        """The labels [B] of images that are to be generated; None if unconditional.

        They are drawn in the proportions of the data, by `latent_spec`. A relativistic loss compares pairs:
        there each generated image has the label of its real image, so that a difference of their logits says
        nothing about which classes they are of (ours; labels of a batch of data are in proportion, too).

        Args:
            q: the draws of `latent_spec`.
            real: the real images that they are compared with, if any.
        """
        if real is not None and self.relativistic:
            return real.labels
        return None if self.label_draws is None else self.label_draws.draw(q["label"])

    def styles(self, q: Any, labels: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Styles, mixed if the objective says so, and state updates: the mean of styles before mixing.

        Both latents of a mixture have the same label, as in StyleGAN2-ADA.
        """
        generator = self.generator
        assert isinstance(generator, StyleBased)
        ws = generator.mapping(q["z"], noise=q["noise"], **_given(labels))
        state_updates = {"styles": ws.detach().flatten(0, -2).mean(0)}
        if "mixing" in q:
            mixing = q["mixing"]
            other = generator.mapping(mixing["z"], noise=q["noise"], **_given(labels))
            if self.objective.style_mixing:
                ws = mix(ws, other, mixing["layer"], self.objective.style_mixing, axis=-2)
            if self.objective.component_mixing and ws.ndim == 4:
                ws = mix(ws, other, mixing["component"], self.objective.component_mixing, axis=1)
        return ws, state_updates

    def generate(self, q: Any, labels: Tensor | None) -> tuple[Labelled, dict[str, Tensor]]:
        """One pass through G with the draws of `latent_spec` and labels [B]: images, and state updates."""
        if not isinstance(self.generator, StyleBased):
            return Labelled(self.generator(q["z"], q["noise"], **_given(labels)), labels), {}
        ws, state_updates = self.styles(q, labels)
        return Labelled(self.generator.synthesis(ws, q["noise"]), labels), state_updates

    def update_style_average(self, state_updates: Mapping[str, Tensor]) -> None:
        """Update the running average of G's styles."""
        if "styles" in state_updates:
            follow_styles(self.generator.get_buffer("w_avg"), state_updates["styles"])

    def discriminator_spec(self, batch: int) -> Spec:
        """The draws of one pass through D, augmentation included."""
        settings = self.augmentation
        return {
            "augment": augment_spec(settings.policy, batch, self.resolution, settings.chances),
            "noise": self.discriminator.noise_spec(batch),
        }

    def augment(self, images: Tensor, q: Any) -> Tensor:
        """Images as D receives them, with the draws of `discriminator_spec`; unchanged without `augment`."""
        if "augment" not in q:
            return images
        settings = self.augmentation
        return augment(images, q["augment"], settings.policy, settings.chances, self.augment_constants)

    def discriminate(self, batch: Labelled, q: Any) -> Tensor:
        """One pass through D with the draws of `discriminator_spec`: logits [B]."""
        return self.discriminator(self.augment(batch.images, q), q["noise"], **_given(batch.labels))

    def discriminate_views(self, *views: tuple[Labelled, Any]) -> tuple[Tensor, ...]:
        """Logits [B] of several batches, each with its draws, from one pass through D over all of them."""
        images = torch.cat([self.augment(batch.images, q) for batch, q in views])
        noise = _concatenated([q["noise"] for _, q in views])
        each = [batch.labels for batch, _ in views if batch.labels is not None]
        labels = _given(torch.cat(each) if each else None)
        discriminator = self.discriminator
        if isinstance(discriminator, MinibatchDependent):
            logits = discriminator(images, noise, parts=len(views), **labels)
        else:
            logits = discriminator(images, noise, **labels)
        return logits.chunk(len(views))


def penalties(gan: GANObjective) -> list[Penalty]:
    """The penalties on D that the objective asks for."""
    objective, penalties = gan.objective, []
    if (gp := objective.gradient_penalty) is not None:
        target = gp.target

        def at_mixtures(real: Labelled, fake: Labelled, q: Any) -> Tensor:
            # Ours: a mixture has the label of its real image; the paper (WGAN-GP) has no classes.
            return gradient_penalty(
                lambda x: gan.discriminate(Labelled(x, real.labels), q["mixed"]),
                real.images,
                fake.images,
                q["alpha"],
                target,
            )

        def mixture_spec(batch: int) -> Spec:
            return {"alpha": Draw("uniform", (batch,)), "mixed": gan.discriminator_spec(batch)}

        penalties.append(Penalty("gradient_penalty", gp.every, gp.weight, True, mixture_spec, at_mixtures))
    if (r1 := objective.r1) is not None:

        def at_reals(real: Labelled, fake: Labelled, q: Any) -> Tensor:
            return zero_centered_penalty(lambda x: gan.discriminate(Labelled(x, real.labels), q), real.images)

        penalties.append(Penalty("r1", r1.every, r1.gamma, False, gan.discriminator_spec, at_reals))
    if (r2 := objective.r2) is not None:

        def at_fakes(real: Labelled, fake: Labelled, q: Any) -> Tensor:
            return zero_centered_penalty(lambda x: gan.discriminate(Labelled(x, fake.labels), q), fake.images)

        penalties.append(Penalty("r2", r2.every, r2.gamma, True, gan.discriminator_spec, at_fakes))
    return penalties


def _given(labels: Tensor | None) -> dict[str, Any]:
    """The labels as an argument of a network; none in an unconditional run."""
    return {} if labels is None else {"labels": labels}


def _concatenated(each: list[Draws]) -> Draws:
    """Concatenate draws of one spec along the batch."""
    joined: Draws = {}
    for name, value in each[0].items():
        values = [draws[name] for draws in each]
        if isinstance(value, dict):
            joined[name] = _concatenated([draws for draws in values if isinstance(draws, dict)])
        else:
            joined[name] = torch.cat([draws for draws in values if isinstance(draws, Tensor)])
    return joined
