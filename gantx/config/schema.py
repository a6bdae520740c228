"""RunConfig: everything that decides a run, checked before anything starts.

A preset is a YAML file of the sections below; unknown keys are errors. Imports no torch, so that the command
line starts quickly.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from gantx.config import resolutions
from gantx.config.networks import (
    DiscriminatorConfig,
    GeneratorConfig,
    TransGANDiscriminatorConfig,
    TransGANGeneratorConfig,
)
from gantx.config.section import Decay, Fraction, Kimg, KimgOrZero, Positive, Section, Seed

SMALLEST_SIDE, LARGEST_SIDE = 4, 2048  # in pixels

# --- data -------------------------------------------------------------------------------------------------


class ShapesConfig(Section):
    """The built-in `--data shapes`: procedural images with known factors.

    Attributes:
        count: number of images.
        objects: shapes per image.
        seed: other seeds give other images.
    """

    count: Annotated[int, Field(ge=1, le=10_000_000)] = 32768
    objects: Annotated[int, Field(ge=1, le=8)] = 1
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] = 0


class DataConfig(Section):
    """Which images, and how they become training samples.

    Attributes:
        source: folder, zip, archive, or a known name such as `cifar10` or `shapes`; set by `--data`.
        split: the images for training, or those kept apart for testing.
        resolution: height and width of the square images in pixels.
        ratio: height / width of the images; unless it is 1 they are centred in black squares, and generated
            images are cropped back to this ratio.
        channels: of the images and of both networks: 1 (grey), 3 (RGB) or 4 (RGB and alpha); every image is
            converted to it.
        mirror: flip each image left-right with probability one half.
        on_bad_image: stop at images that are unreadable or too small, or skip them and list them in
            the cache.
        allow_upscale: accept images smaller than `resolution`.
        allow_single: train on a set of one image.
        resident: keep the set on the device, stream it from the host, or decide by free memory.
        shapes: settings of `--data shapes`.
    """

    source: str | None = None
    split: Literal["train", "test"] = "train"
    resolution: Annotated[int, Field(ge=SMALLEST_SIDE, le=LARGEST_SIDE)] = 32
    ratio: Annotated[float, Field(gt=0, le=100)] = 1.0
    channels: Literal[1, 3, 4] = 3
    mirror: bool = False
    on_bad_image: Literal["error", "skip"] = "error"
    allow_upscale: bool = False
    allow_single: bool = False
    resident: Literal["auto", "device", "stream"] = "auto"
    shapes: ShapesConfig = ShapesConfig()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, R, R) of an image, as networks see it."""
        return self.channels, self.resolution, self.resolution


class ConditioningConfig(Section):
    """Whether the networks are given the classes of images.

    Attributes:
        classes: number of classes; `auto` for those of the data; null to train without them.
        dropout: probability that an image's class is withheld, in training: an embedding of its own then
            stands for every class, and images can be generated without one.
        names: names of the classes; taken from the data when a run begins.
        counts: training images of each class, likewise; generated images have classes in these proportions.
    """

    classes: Literal["auto"] | Annotated[int, Field(ge=1, le=100_000)] | None = None
    dropout: Decay = 0.0
    names: tuple[str, ...] = ()
    counts: tuple[Annotated[int, Field(ge=0, le=2**53)], ...] = ()

    @property
    def labels(self) -> int:
        """Number of labels that the networks know: the classes, and one more if classes are withheld."""
        return self.classes + (self.dropout > 0) if isinstance(self.classes, int) else 0

    @model_validator(mode="after")
    def _fits(self) -> ConditioningConfig:
        if not isinstance(self.classes, int):  # what an earlier run was given has no meaning here
            return self.model_copy(update={"names": (), "counts": ()}) if self.names or self.counts else self
        for key, values in (("names", self.names), ("counts", self.counts)):
            if values and len(values) != self.classes:
                raise ValueError(f"{key} has {len(values)} entries, but classes is {self.classes}")
        return self


# --- objective --------------------------------------------------------------------------------------------


class GradientPenaltyConfig(Section):
    """WGAN-GP: weight · (‖∇D‖ / target − 1)² at random points between real and generated images.

    Attributes:
        weight: of the penalty.
        target: norm of the input gradient that costs nothing.
        every: apply the penalty in every n-th iteration.
    """

    weight: PositiveFloat = 10.0
    target: PositiveFloat = 1.0
    every: Positive = 1


class ZeroCenteredPenaltyConfig(Section):
    """R1 (at real images) or R2 (at generated images): gamma/2 times the squared norm of D's input gradient.

    Attributes:
        gamma: weight of the penalty.
        every: apply the penalty in every n-th iteration.
    """

    gamma: PositiveFloat = 1.0
    every: Positive = 1


class ConsistencyConfig(Section):
    """Balanced consistency regularisation (bCR, arXiv 2002.04724): augmentation leaves the logit unchanged.

    Attributes:
        real: weight of the squared difference at real images.
        fake: weight of the squared difference at generated images.
        compare: two independent augmentations of an image, or one with the image itself as in the paper.
    """

    real: NonNegativeFloat = 10.0
    fake: NonNegativeFloat = 10.0
    compare: Literal["augmented", "clean"] = "augmented"


class PathLengthConfig(Section):
    """Path length regularisation (StyleGAN2): steps of equal length in style space change an image equally.

    Attributes:
        weight: of the squared deviation from the mean length.
        decay: weight of a step's mean length in the running mean.
        every: the penalty is a G step of its own in every n-th iteration.
        shrink: its batch is that of G divided by this number.
    """

    weight: PositiveFloat = 2.0
    decay: Annotated[float, Field(gt=0, le=1)] = 0.01
    every: Positive = 4
    shrink: Positive = 2


class ObjectiveConfig(Section):
    """What the two networks minimise.

    Attributes:
        loss: the adversarial loss; the two wgangp losses need `gradient_penalty`.
        gradient_penalty: WGAN-GP penalty, or null.
        drift: weight of (mean D(real))² in `wgangp-eps`.
        r1: zero-centred penalty at real images, or null.
        r2: zero-centred penalty at generated images, or null.
        consistency: bCR, or null; needs `augment.policy`.
        path_length: penalty on a generator with styles, or null.
        style_mixing: probability, in every pass of a generator with styles, that the styles from a random
            layer on are those of other latents.
        component_mixing: the same from a random latent on, for a generator with several latents per image.
        w_average: update the average of the styles once per G step, or after every pass of D and G steps as
            in the released code of GANformer.
        first: which network is trained first in an iteration.
        n_critic: D steps per G step.
        super_resolution_weight: weight of the co-training term of a generator built with
            `super_resolution` (MSE between the generated and the original image).
    """

    loss: Literal["wgangp-eps", "wgangp", "hinge", "lsgan", "non-saturating", "relativistic"] = "wgangp-eps"
    gradient_penalty: GradientPenaltyConfig | None = GradientPenaltyConfig()
    drift: NonNegativeFloat = 1e-3
    r1: ZeroCenteredPenaltyConfig | None = None
    r2: ZeroCenteredPenaltyConfig | None = None
    consistency: ConsistencyConfig | None = None
    path_length: PathLengthConfig | None = None
    style_mixing: Fraction = 0.0
    component_mixing: Fraction = 0.0
    w_average: Literal["generator_step", "every_pass"] = "generator_step"
    first: Literal["discriminator", "generator"] = "discriminator"
    n_critic: Positive = 5
    super_resolution_weight: PositiveFloat = 50.0

    @model_validator(mode="before")
    @classmethod
    def _without_former_keys(cls, tree: Any) -> Any:
        # Checkpoints of earlier versions contain it.
        if isinstance(tree, dict) and "gradient_leak" in tree:
            if tree["gradient_leak"] not in (False, None):
                raise ValueError(
                    "gradient_leak, an oversight of TransGAN's released code, is no longer repeated: leave "
                    "it out"
                )
            return {key: value for key, value in tree.items() if key != "gradient_leak"}
        return tree

    @model_validator(mode="after")
    def _bounded(self) -> ObjectiveConfig:
        if self.loss in ("wgangp-eps", "wgangp") and self.gradient_penalty is None:
            raise ValueError(f"loss {self.loss} needs a gradient_penalty (for example weight=10)")
        return self


class AugmentConfig(Section):
    """DiffAugment: operations applied, in this order, to every input of D; an empty list turns it off.

    Attributes:
        policy: names of operations.
        chances: probability that an operation is applied to an image, by its name; an operation that is not
            named is applied as it is defined, to most images or batches. With a probability, cutout is
            decided per image.
    """

    policy: tuple[
        Literal[
            "translation", "strong_translation", "cutout", "erase_ratio", "stl_erase_ratio", "filter", "hue",
            "color", "brightness", "saturation", "contrast", "flip",
        ],
        ...,
    ] = ()  # fmt: skip
    chances: dict[str, Fraction] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _each_once(self) -> AugmentConfig:
        plain = [part for name in self.policy for part in (_COLOR if name == "color" else (name,))]
        if twice := sorted({name for name in plain if plain.count(name) > 1}):
            raise ValueError(
                f"policy applies {', '.join(twice)} twice ('color' is brightness, saturation and contrast): "
                "name every operation once"
            )
        if stray := sorted(set(self.chances) - set(plain)):
            raise ValueError(
                f"chances names {', '.join(stray)}, but policy applies {', '.join(plain) or 'nothing'}"
                "; 'color' is brightness, saturation and contrast"
            )
        return self


_COLOR = ("brightness", "saturation", "contrast")


# --- optimisation -----------------------------------------------------------------------------------------


class AdamConfig(Section):
    """Adam or AdamW.

    Attributes:
        name: which of the two.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: of AdamW.
        clip_norm: upper bound of the global gradient norm; null for none.
        lazy_every: interval of a lazy penalty that takes optimiser steps of its own; lr and betas, which are
            given per iteration, are corrected for these extra steps. Null for no correction.
    """

    name: Literal["adam", "adamw"] = "adam"
    lr: PositiveFloat = 1e-4
    betas: tuple[Decay, Decay] = (0.0, 0.99)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat | None = None
    lazy_every: Positive | None = None


class OptimizerConfig(Section):
    """One optimiser for each network, and the learning-rate schedule they share.

    Attributes:
        generator: optimiser of G.
        discriminator: optimiser of D.
        warmup_kimg: the learning rate rises linearly from 0 over this many thousand images.
        decay_from: fraction of the run after which the rate falls linearly; 1 keeps it constant.
        decay_to: fraction of the rate that remains at the end of the run.
    """

    generator: AdamConfig = AdamConfig()
    discriminator: AdamConfig = AdamConfig()
    warmup_kimg: KimgOrZero = 0.0
    decay_from: Fraction = 1.0
    decay_to: Fraction = 0.0


class EMAConfig(Section):
    """The exponential moving average of G that is sampled and scored.

    Attributes:
        kind: `constant` uses `beta`; `half-life` derives it from `half_life_kimg`.
        beta: weight of the old average in each update.
        half_life_kimg: thousand images after which an old weight counts half, with one G step per D step;
            with `n_critic` D steps it is that many times longer, as in the released code.
        ramp: bounds the half-life by this fraction of the images seen so far; null for no bound.
        start_kimg: for this many thousand images the average is a copy of the network.
    """

    kind: Literal["constant", "half-life"] = "constant"
    beta: Fraction = 0.999
    half_life_kimg: Kimg = 500.0
    ramp: PositiveFloat | None = None
    start_kimg: KimgOrZero = 0.0


class AttentionWindowConfig(Section):
    """Schedule of locality-aware initialisation (TransGAN v1).

    Attributes:
        steps: pairs (until, window): up to `until` thousand images, attention is limited to a distance of
            `window` tokens.
        of_kimg: length of the run that the steps are meant for; a shorter run scales them in proportion.
    """

    steps: Annotated[tuple[tuple[Kimg, Positive], ...], Field(min_length=1, max_length=1000)]
    of_kimg: Kimg

    @model_validator(mode="after")
    def _ordered(self) -> AttentionWindowConfig:
        untils = [until for until, _ in self.steps]
        if untils != sorted(set(untils)):
            raise ValueError("steps must be ordered by their first number, each larger than the one before")
        return self


class TrainingConfig(Section):
    """Length, batches, precision and outputs of a run. All lengths are in thousand real images shown to D.

    Attributes:
        kimg: length of the run.
        batch: real images of one D step.
        generator_batch: images of one G step; null means the same as `batch`.
        micro_batch: samples per forward and backward pass; gradients are accumulated over the batch. Null
            means the whole batch, auto as many samples as fit into a GPU's memory. Statistics over the batch
            (the drift of `wgangp-eps`, the minibatch standard deviation of StyleGAN2's discriminator, the
            mean path length) are then taken per micro-batch.
        penalty_micro_batch: the same for gradient penalties, which take the most memory per sample; null
            means as many as `micro_batch`. G then generates the images of the penalty again.
        recompute: activation checkpointing: recompute the activations of transformer blocks and of
            StyleGAN2's discriminator in the backward pass, which takes less memory and about a third more
            time. Gradient penalties keep their activations, and so do the generators of StyleGAN2 and
            GANformer.
        diagnostics: report, with the metrics, what ViTGAN's authors plot: the spectral norms of D's weights,
            the norm of D's input gradient at real images, and the entropy of D's attention.
        seed: seed of all random numbers.
        precision: fp32, bf16 (matrix products, convolutions and attention multiply in bf16, all else is
            float32), or auto (bf16 on a GPU that supports it, fp32 elsewhere).
        compile: compile the losses with torch.compile, which takes minutes at the start; auto does so for
            long runs on CUDA.
        cuda_graphs: capture each phase as a CUDA graph and replay it, compiled or not: little work for the
            host, more memory; auto does so on CUDA.
        threads: CPU threads, or auto (from the cores this process may use and how busy they are).
        deterministic: use deterministic algorithms; null means yes on the CPU, no on a GPU.
        attention_window: schedule of the locality window, or null.
        report_kimg: how often a line of metrics is written.
        sample_kimg: how often images of fixed latents are generated and saved.
        checkpoint_kimg: how often the state is saved.
        keep_checkpoints: how many of the latest checkpoints are kept.
        on_divergence: stop when a loss or gradient is not finite; or also go back, when gradients explode or
            the generator collapses too, to the last healthy checkpoint with half the learning rate.
        max_rollbacks: how often a run may go back, each time with half the rate before.
        evaluate_every: how often the averaged generator is scored as `evaluation` says; null for never. The
            best checkpoint by each score is kept as checkpoints/best-SCORE.safetensors.
        samples: number of images in a grid of samples.
    """

    kimg: Kimg = 1000.0
    batch: Positive = 64
    generator_batch: Positive | None = None
    micro_batch: Literal["auto"] | Positive | None = None
    penalty_micro_batch: Positive | None = None
    recompute: bool = False
    diagnostics: bool = False
    seed: Seed = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto"] | bool = "auto"
    cuda_graphs: Literal["auto"] | bool = "auto"
    threads: Literal["auto"] | Positive = "auto"
    deterministic: bool | None = None
    attention_window: AttentionWindowConfig | None = None
    report_kimg: Kimg = 1.0
    sample_kimg: Kimg = 50.0
    checkpoint_kimg: Kimg = 50.0
    keep_checkpoints: Positive = 3
    on_divergence: Literal["stop", "rollback"] = "stop"
    max_rollbacks: Annotated[int, Field(ge=1, le=100)] = 3
    evaluate_every: Kimg | None = None
    samples: Annotated[int, Field(ge=1, le=4096)] = 64


class EvaluationConfig(Section):
    """How the paper measured this setting; `gantx eval` starts from it.

    Attributes:
        protocol: named protocol of resizing, reference and quantisation.
        metrics: what is computed.
        features: the feature network: `inception`, the built-in `random`, or an .onnx file.
        num: generated images; null takes the protocol's number.
        num_during_training: generated images of one evaluation by `training.evaluate_every`.
    """

    protocol: Literal[
        "clean-50k", "stylegan-50k-full", "transgan-test", "vitgan-release", "ganformer-50k"
    ] = "clean-50k"
    metrics: Annotated[tuple[Literal["fid", "kid", "is", "pr", "dc", "modes"], ...], Field(min_length=1)] = (
        "fid",
    )
    features: str = "inception"
    num: Annotated[int, Field(ge=2, le=1_000_000_000)] | None = None
    num_during_training: Annotated[int, Field(ge=2, le=1_000_000_000)] = 5000


class InitializationConfig(Section):
    """Another run, from whose weights this one starts with a new optimiser; set by `--init`.

    Attributes:
        checkpoint: a run, a folder of checkpoints, or a .safetensors file.
        digest: of the networks in it, filled in when the run starts.
    """

    checkpoint: Annotated[str, Field(min_length=1)]
    digest: str | None = None


class PaperConfig(Section):
    """The publication a preset reproduces.

    Attributes:
        title: of the paper.
        arxiv: its number there, with the version.
        setting: which of its experiments.
    """

    title: str
    arxiv: str
    setting: str


class RunConfig(Section):
    """Everything that decides a run. Stored in every checkpoint.

    Attributes:
        name: of the preset or the recipe; part of the names of runs.
        summary: one line for `gantx presets ls`.
        paper: the publication that a preset reproduces, or null.
        reported: scores of the publication, by name.
        initialization: weights of another run to begin with, or null.
        data: the images.
        conditioning: their classes.
        generator: its `family` selects the network.
        discriminator: likewise; any pair of equal resolution can be trained.
        objective: what the two minimise.
        augment: of the images that D sees.
        optimizer: of both networks, and the schedule of their learning rates.
        ema: the average of G's weights, which samples are generated by.
        training: length, batch, precision, reports.
        evaluation: how scores are measured.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "custom"
    summary: str = ""
    paper: PaperConfig | None = None
    reported: dict[str, float | str] = Field(default_factory=dict)
    initialization: InitializationConfig | None = None
    data: DataConfig = DataConfig()
    conditioning: ConditioningConfig = ConditioningConfig()
    generator: GeneratorConfig = TransGANGeneratorConfig()
    discriminator: DiscriminatorConfig = TransGANDiscriminatorConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EMAConfig = EMAConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def generator_batch(self) -> int:
        """Images of one G step."""
        return self.training.generator_batch or self.training.batch

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        side = self.data.resolution
        if self.generator.resolution != side:
            raise ValueError(
                f"generator: its images have {self.generator.resolution} pixels a side but data.resolution "
                f"is {side}; {resolutions.advice(self.generator, self.discriminator, side)}"
            )
        if self.discriminator.resolution != side:
            raise ValueError(
                f"discriminator: it takes {self.discriminator.resolution} pixels a side but data.resolution "
                f"is {side}; {resolutions.advice(self.generator, self.discriminator, side)}"
            )
        micro, penalty_micro = self.training.micro_batch, self.training.penalty_micro_batch
        micro = micro if isinstance(micro, int) else None
        for key, batch in (("batch", self.training.batch), ("generator_batch", self.generator_batch)):
            if micro is not None and batch % micro:
                raise ValueError(f"training.{key}: {batch} is not divisible by training.micro_batch {micro}")
        if penalty_micro is not None and self.training.batch % penalty_micro:
            raise ValueError(
                f"training.batch: {self.training.batch} is not divisible by training.penalty_micro_batch "
                f"{penalty_micro}"
            )
        if (path_length := self.objective.path_length) is not None:
            if self.generator_batch % path_length.shrink:
                raise ValueError(
                    f"objective.path_length.shrink: {path_length.shrink} does not divide the batch of G, "
                    f"{self.generator_batch}"
                )
            few = self.generator_batch // path_length.shrink
            size = penalty_micro or micro
            if size is not None and few > size and few % size:
                raise ValueError(
                    f"objective.path_length: its batch of {few} images is not divisible by micro-batches of "
                    f"{size}"
                )
        if self.objective.loss == "relativistic" and self.generator_batch != self.training.batch:
            raise ValueError(
                "training.generator_batch: the relativistic loss pairs every generated with a real image, "
                "so it must equal training.batch"
            )
        if self.objective.consistency is not None and not self.augment.policy:
            raise ValueError(
                "objective.consistency: compares augmented images, so augment.policy must not be empty"
            )
        if not self.generator.has_styles:
            for key in ("path_length", "style_mixing", "component_mixing"):
                if getattr(self.objective, key):
                    raise ValueError(
                        f"objective.{key}: generators of the family {self.generator.family} have no styles; "
                        "leave it out"
                    )
        update: dict[str, Any] = {}
        if self.training.attention_window and getattr(self.generator, "locality", "none") == "none":
            # So that the one override `generator.locality=none` turns locality off.
            update["training"] = self.training.model_copy(update={"attention_window": None})
        labels = self.conditioning.labels
        if self.generator.classes != labels:
            update["generator"] = self.generator.model_copy(update={"classes": labels})
        # A discriminator of an imported file may have classes while its generator has none.
        imported = not labels and getattr(self.discriminator, "label_head", "mapped") == "selected"
        if self.discriminator.classes != labels and not imported:
            update["discriminator"] = self.discriminator.model_copy(update={"classes": labels})
        return self.model_copy(update=update) if update else self

    def to_yaml(self) -> str:
        """The configuration as YAML that `--config` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
