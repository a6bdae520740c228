"""RunConfig: everything that decides a run, checked before anything starts.

A preset is a YAML file of the sections below; unknown keys are errors. Imports no torch, so that the command
line stays quick.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from gantx.config.networks import (
    DiscriminatorConfig,
    GeneratorConfig,
    TransGANDiscriminatorConfig,
    TransGANGeneratorConfig,
)
from gantx.config.section import Fraction, Positive, Section

# --- data -------------------------------------------------------------------------------------------------


class ShapesConfig(Section):
    """The built-in `--data shapes`: procedural pictures with known factors."""

    count: Positive = 32768
    objects: Annotated[int, Field(ge=1, le=8)] = 1
    seed: int = 0


class DataConfig(Section):
    """Which images, and how they become training samples.

    Attributes:
        source: folder, zip, archive, or a known name such as `cifar10` or `shapes`; set by `--data`.
        split: the images to train on, or those the set holds back for testing.
        resolution: side of the square images in pixels.
        ratio: height / width of the images; below 1 they lie in the middle of black squares, and what leaves
            is cropped back to them.
        mirror: flip each image left-right with probability one half.
        on_bad_image: stop at an unreadable image, or skip it and list it.
        allow_upscale: accept images smaller than `resolution`.
        resident: keep the set on the device, stream it from the host, or decide by free memory.
        shapes: settings of `--data shapes`.
    """

    source: str | None = None
    split: Literal["train", "test"] = "train"
    resolution: Annotated[int, Field(ge=4, le=2048)] = 32
    ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    mirror: bool = False
    on_bad_image: Literal["error", "skip"] = "error"
    allow_upscale: bool = False
    resident: Literal["auto", "device", "stream"] = "auto"
    shapes: ShapesConfig = ShapesConfig()


# --- objective --------------------------------------------------------------------------------------------


class GradientPenaltyConfig(Section):
    """WGAN-GP: the slope of D between real and fake images is pulled towards `target`."""

    weight: Annotated[float, Field(gt=0)] = 10.0
    target: Annotated[float, Field(gt=0)] = 1.0
    every: Positive = 1


class ZeroCenteredPenaltyConfig(Section):
    """R1 (at real images) or R2 (at fakes): gamma/2 times the squared slope of D."""

    gamma: Annotated[float, Field(gt=0)] = 1.0
    every: Positive = 1


class ConsistencyConfig(Section):
    """Balanced consistency regularisation (bCR, arXiv 2002.04724): D judges an image alike however augmented.

    Attributes:
        real: weight of the squared difference at real images.
        fake: weight of the squared difference at generated images.
        compare: two independent augmentations of an image, or one with the image itself as in the paper.
    """

    real: Annotated[float, Field(ge=0)] = 10.0
    fake: Annotated[float, Field(ge=0)] = 10.0
    compare: Literal["augmented", "clean"] = "augmented"


class PathLengthConfig(Section):
    """Path length regularisation (StyleGAN2): equal steps in style change an image equally.

    Attributes:
        weight: of the squared deviation from the mean length.
        decay: share of its way that the running mean goes to a step's mean length.
        every: the penalty is a G step of its own at every iteration that this number divides.
        shrink: its batch is that of G divided by this number.
    """

    weight: Annotated[float, Field(gt=0)] = 2.0
    decay: Annotated[float, Field(gt=0, le=1)] = 0.01
    every: Positive = 4
    shrink: Positive = 2


class ObjectiveConfig(Section):
    """What the two networks minimise.

    Attributes:
        loss: the adversarial loss; the two wgangp losses want `gradient_penalty`.
        gradient_penalty: WGAN-GP penalty, or null.
        drift: weight of (mean D(real))² in `wgangp-eps`.
        r1: zero-centred penalty at real images, or null.
        r2: zero-centred penalty at generated images, or null.
        consistency: bCR, or null; wants `augment.policy`.
        path_length: penalty on a generator with styles, or null.
        style_mixing: chance, in every pass of a generator with styles, that from a random layer on the styles
            are those of other latents.
        component_mixing: the same from a random latent on, for a generator that paints from several.
        w_average: the average of styles moves once per G step, or after every pass of D and G steps as in the
            released code of GANformer.
        first: which network moves first in an iteration.
        n_critic: D steps per G step.
        super_resolution_weight: weight of the co-training term of a generator built with
            `super_resolution` (MSE between the painted and the original image).
    """

    loss: Literal["wgangp-eps", "wgangp", "hinge", "lsgan", "non-saturating", "relativistic"] = "wgangp-eps"
    gradient_penalty: GradientPenaltyConfig | None = GradientPenaltyConfig()
    drift: Annotated[float, Field(ge=0)] = 1e-3
    r1: ZeroCenteredPenaltyConfig | None = None
    r2: ZeroCenteredPenaltyConfig | None = None
    consistency: ConsistencyConfig | None = None
    path_length: PathLengthConfig | None = None
    style_mixing: Fraction = 0.0
    component_mixing: Fraction = 0.0
    w_average: Literal["generator_step", "every_pass"] = "generator_step"
    first: Literal["discriminator", "generator"] = "discriminator"
    n_critic: Positive = 5
    super_resolution_weight: Annotated[float, Field(gt=0)] = 50.0

    @model_validator(mode="before")
    @classmethod
    def _without_former_keys(cls, tree: Any) -> Any:
        # Checkpoints of earlier versions hold it.
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
    """DiffAugment: operations applied, in this order, to every image D sees; an empty list turns it off.

    Attributes:
        policy: names of operations.
        chances: chance of an operation to be applied to an image, by its name; an operation that is not named
            is applied as it is defined, to most images or batches. With a chance, cutout decides by image.
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
        name: which.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: of AdamW.
        clip_norm: limit on the norm of all gradients together; null for none.
        lazy_every: rate and betas are meant for the iteration, in which a lazy penalty takes a step of its
            own whenever this number divides; they are corrected for the extra steps. Null for no correction.
    """

    name: Literal["adam", "adamw"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.0, 0.99)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    lazy_every: Positive | None = None


class OptimizerConfig(Section):
    """One optimiser for each network, and the learning-rate schedule they share.

    Attributes:
        generator: optimiser of G.
        discriminator: optimiser of D.
        warmup_kimg: the rate rises linearly from 0 over this many thousand images.
        decay_from: share of the run after which the rate falls linearly; 1 keeps it constant.
        decay_to: what is left of the rate at the end of the run.
    """

    generator: AdamConfig = AdamConfig()
    discriminator: AdamConfig = AdamConfig()
    warmup_kimg: Annotated[float, Field(ge=0)] = 0.0
    decay_from: Fraction = 1.0
    decay_to: Fraction = 0.0


class EMAConfig(Section):
    """The running average of G that is sampled and scored.

    Attributes:
        kind: `constant` keeps `beta`; `half-life` derives it from `half_life_kimg`.
        beta: weight of the old average in each update.
        half_life_kimg: thousand images after which an old weight counts half, if G moves once per D step;
            with `n_critic` D steps it lasts that many times longer, as in the released code.
        ramp: bounds the half-life by this share of the images seen so far; null for no bound.
        start_kimg: until so many thousand images the average is the network itself.
    """

    kind: Literal["constant", "half-life"] = "constant"
    beta: Fraction = 0.999
    half_life_kimg: Annotated[float, Field(gt=0)] = 500.0
    ramp: Annotated[float, Field(gt=0)] | None = None
    start_kimg: Annotated[float, Field(ge=0)] = 0.0


class AttentionWindowConfig(Section):
    """Schedule of locality-aware initialisation (TransGAN v1).

    Attributes:
        steps: pairs (until, window): up to `until` thousand images, attention reaches `window` tokens far.
        of_kimg: length of the run the steps are written for; a shorter run shrinks them in proportion.
    """

    steps: Annotated[tuple[tuple[Annotated[float, Field(gt=0)], Positive], ...], Field(min_length=1)]
    of_kimg: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _ordered(self) -> AttentionWindowConfig:
        untils = [until for until, _ in self.steps]
        if untils != sorted(set(untils)):
            raise ValueError("steps must be ordered by their first number, each larger than the one before")
        return self


class TrainingConfig(Section):
    """Length, batches and housekeeping of a run. All lengths are in thousand real images shown to D.

    Attributes:
        kimg: length of the run.
        batch: real images of one D step.
        generator_batch: images of one G step; null means the same as `batch`.
        micro_batch: samples computed at once, gradients accumulating over the rest; null means all, auto as
            many as fit into a GPU's memory. What a loss takes from the whole batch (the drift of
            `wgangp-eps`, the spread across a batch that StyleGAN2's discriminator sees, the mean path
            length) is then taken per micro-batch.
        penalty_micro_batch: samples of a gradient penalty computed at once, where that takes more memory than
            anything else; null means as many as `micro_batch`. G then paints what the penalty needs anew.
        recompute: forget the activations of transformer blocks and of StyleGAN2's discriminator, to compute
            them again on the way back: less memory for about a third more time. A gradient penalty keeps its
            activations, and so do the generators of StyleGAN2 and GANformer.
        diagnostics: observe, whenever metrics are reported, what ViTGAN's authors plot: the spectral norms of
            D's weights, the slope of D at real images, and the entropy of D's attention.
        seed: seed of everything random.
        precision: fp32, bf16 (matrix products, convolutions and attention multiply in bf16, all else is
            float32), or auto (bf16 on a GPU that has it, fp32 elsewhere).
        compile: compile the losses with torch.compile, which takes minutes before it saves any; auto does so
            for long runs on CUDA.
        cuda_graphs: capture each kind of step as a CUDA graph and replay it, compiled or not: next to no work
            for the host, more memory; auto does so on CUDA.
        threads: CPU threads, or auto (from the cores this process may use and how busy they are).
        deterministic: use deterministic algorithms; null means yes on the CPU, no on a GPU.
        attention_window: schedule of the locality window, or null.
        report_kimg: how often a line of metrics is written.
        sample_kimg: how often a picture of fixed latents is painted.
        checkpoint_kimg: how often the state is saved.
        keep_checkpoints: how many of the latest checkpoints stay.
        evaluate_every: how often the averaged generator is scored as `evaluation` says; null for never. The
            best checkpoint by the first metric is kept in checkpoints/best.
        samples: images of the sample picture.
    """

    kimg: Annotated[float, Field(gt=0)] = 1000.0
    batch: Positive = 64
    generator_batch: Positive | None = None
    micro_batch: Literal["auto"] | Positive | None = None
    penalty_micro_batch: Positive | None = None
    recompute: bool = False
    diagnostics: bool = False
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto"] | bool = "auto"
    cuda_graphs: Literal["auto"] | bool = "auto"
    threads: Literal["auto"] | Positive = "auto"
    deterministic: bool | None = None
    attention_window: AttentionWindowConfig | None = None
    report_kimg: Annotated[float, Field(gt=0)] = 1.0
    sample_kimg: Annotated[float, Field(gt=0)] = 50.0
    checkpoint_kimg: Annotated[float, Field(gt=0)] = 50.0
    keep_checkpoints: Positive = 3
    evaluate_every: Annotated[float, Field(gt=0)] | None = None
    samples: Annotated[int, Field(ge=1, le=4096)] = 64


class EvaluationConfig(Section):
    """How the paper measured this setting; `gantx eval` starts from it.

    Attributes:
        protocol: named protocol of resizing, reference and quantisation.
        metrics: what is computed; the first one decides which checkpoint of a run is the best.
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
    num: Annotated[int, Field(ge=2)] | None = None
    num_during_training: Annotated[int, Field(ge=2)] = 5000


class PaperConfig(Section):
    """Where a preset comes from."""

    title: str
    arxiv: str
    setting: str


class RunConfig(Section):
    """Everything that decides a run. Travels inside every checkpoint."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "custom"
    summary: str = ""
    paper: PaperConfig | None = None
    reported: dict[str, float | str] = Field(default_factory=dict)
    data: DataConfig = DataConfig()
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
                f"generator: paints {self.generator.resolution} pixels a side but data.resolution is {side}; "
                "set data.resolution to that, or choose the generator's sizes for the other"
            )
        if self.discriminator.resolution != side:
            raise ValueError(
                f"discriminator: judges {self.discriminator.resolution} pixels a side but data.resolution "
                f"is {side}; set discriminator.resolution={side}"
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
                "training.generator_batch: the relativistic loss pairs every fake with a real image, "
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
        if self.training.attention_window and getattr(self.generator, "locality", "none") == "none":
            # One override, `generator.locality=none`, switches the whole trick off.
            return self.model_copy(
                update={"training": self.training.model_copy(update={"attention_window": None})}
            )
        return self

    def to_yaml(self) -> str:
        """The configuration as YAML that `--config` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
