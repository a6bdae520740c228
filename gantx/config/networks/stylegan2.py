"""Sections of StyleGAN2."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from gantx.config.section import Classes, Depth, Positive, Section


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        below = 1 << (value.bit_length() - 1)
        raise ValueError(f"must be a power of two, such as {below} or {2 * below}, not {value}")
    return value


PowerOfTwo = Annotated[int, Field(ge=8, le=2048), AfterValidator(_power_of_two)]


def require_channels(resolution: int, channel_base: int) -> None:
    """ValueError when the finest features would have no channel."""
    if channel_base < resolution:
        raise ValueError(
            f"channel_base {channel_base} leaves no channel at resolution {resolution}: "
            f"it must be at least {resolution}"
        )


def with_label_head(tree: Any) -> Any:
    """The section of a discriminator; classes without a `label_head`, of earlier versions, are `selected`."""
    if isinstance(tree, dict) and tree.get("classes") and "label_head" not in tree:
        return {**tree, "label_head": "selected"}
    return tree


class StyleGAN2GeneratorConfig(Section):
    """StyleGAN2, generator (arXiv 1912.04958); see gantx.models.stylegan2.

    Attributes:
        resolution: height and width of the images, a power of two from 8.
        latent_dim: size of z and w.
        mapping_layers: linear layers from z to w (8 in the paper, 9 in GANformer's PyTorch code).
        channel_base: a layer of resolution r has channel_base/r channels, ...
        channel_max: ... but no more than this.
        architecture: `skip` adds up the colours of all blocks, `resnet` adds each block's input to its
            output, `orig` does neither.
        noise: add noise in every layer.
        final_convolution: one more convolution, without activation, before the last colours, as in
            GANformer's PyTorch code.
        classes: number of classes, 0 for none; a run sets it from `conditioning`.
    """

    family: Literal["stylegan2"] = "stylegan2"
    has_styles: ClassVar[bool] = True
    resolution: PowerOfTwo = 32
    latent_dim: Positive = 512
    mapping_layers: Depth = 8
    channel_base: Positive = 32768
    channel_max: Positive = 512
    architecture: Literal["skip", "resnet", "orig"] = "skip"
    noise: bool = True
    final_convolution: bool = False
    classes: Classes = 0

    @model_validator(mode="after")
    def _has_channels(self) -> StyleGAN2GeneratorConfig:
        require_channels(self.resolution, self.channel_base)
        return self


class StyleGAN2DiscriminatorConfig(Section):
    """StyleGAN2, residual discriminator; see gantx.models.stylegan2.

    Attributes:
        resolution: height and width of the images it receives, a power of two from 8.
        channel_base: features of resolution r have channel_base/r channels, ...
        channel_max: ... but no more than this.
        group_size: samples in a group of the minibatch standard deviation.
        group_channels: channels of the minibatch standard deviation.
        classes: number of classes, 0 for an unconditional discriminator; a run sets it from `conditioning`.
        label_head: how classes enter: `mapped`, the logit is a feature vector times the mapped label
            (StyleGAN2-ADA); `selected`, there is a logit for each class (the first release of StyleGAN2), as
            in files of earlier versions that have classes.
    """

    family: Literal["stylegan2"] = "stylegan2"
    resolution: PowerOfTwo = 32
    channel_base: Positive = 32768
    channel_max: Positive = 512
    group_size: Positive = 4
    group_channels: Positive = 1
    classes: Classes = 0
    label_head: Literal["mapped", "selected"] = "mapped"

    @model_validator(mode="before")
    @classmethod
    def _with_label_head(cls, tree: Any) -> Any:
        return with_label_head(tree)

    @model_validator(mode="after")
    def _divisible(self) -> StyleGAN2DiscriminatorConfig:
        require_channels(self.resolution, self.channel_base)
        require_groups(self.channel_base, self.channel_max, self.group_channels)
        return self


def require_groups(channel_base: int, channel_max: int, group_channels: int) -> None:
    """ValueError when the 4x4 features cannot be divided into `group_channels` groups."""
    if (channels := min(channel_base // 4, channel_max)) % group_channels:
        raise ValueError(f"group_channels {group_channels} does not divide the {channels} channels at 4x4")
