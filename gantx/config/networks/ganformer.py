"""Sections of GANformer."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from gantx.config.networks.stylegan2 import (
    PowerOfTwo,
    require_channels,
    require_groups,
    with_label_head,
)
from gantx.config.section import Classes, Depth, Positive, Section

Rate = Annotated[float, Field(ge=0, lt=1)]


class GANformerGeneratorConfig(Section):
    """GANformer, generator (arXiv 2103.01209); see gantx.models.ganformer.

    Attributes:
        resolution: height and width of the images, a power of two from 8.
        components: number of local latents.
        latent_dim: size of every latent, local or global (the released code's `latent-size` is that of all
            local ones together).
        mapping_layers: linear layers from z to w, an odd number with `mapping_residual`.
        mapping_residual: connections around every two of them.
        mapping_attention: self-attention of the local latents in the mapping network.
        latent_norm: `joint` divides the local z by the root mean square of all of them (PyTorch code),
            `component` each by its own (TensorFlow code).
        normalize_global: divide the global z as well (PyTorch code).
        channel_base: a layer of resolution r has channel_base/r channels, ...
        channel_max: ... but no more than this.
        architecture: `skip` adds up the colours of all blocks, `resnet` adds each block's input to its
            output, `orig` does neither.
        style: the global w modulates the convolutions.
        noise: add noise in every layer.
        final_convolution: one more convolution, without activation, before the last colours.
        attention: `simplex`: positions of the image are compared with keys of the latents; `kmeans`: with
            learned centroids, as in the released checkpoints; `duplex`: with centroids that the tokens
            refine, while the latents attend to the tokens in turn (our reading of the paper).
        kmeans_iterations: how often tokens choose a centroid; null means 1 for kmeans and 2 for duplex.
        update_latents: latents attend to the tokens after every layer, for the next; null means only in
            duplex.
        attention_from: lowest resolution of features with attention.
        attention_to: highest resolution of features with attention.
        heads: attention heads, also in the mapping.
        normalization: of the features that attend to the latents.
        integration: the result of attention is a gain (`mul`) of the features, a bias (`add`) or `both`.
        positions: the local latents have position codes of their own.
        grid: position codes of the tokens.
        grid_dim: size of these codes; null means latent_dim.
        grid_directions: directions of `sine` and `linear` codes.
        latent_gate: multiply the attention to each latent by a gate computed from the latent.
        image_gate: multiply the attention of each token by a gate computed from the token.
        attention_dropout: dropout probability of attention, in training alone.
        component_dropout: probability that a local latent is left out of an image, in training alone.
        classes: number of classes, 0 for none; a run sets it from `conditioning`.
    """

    family: Literal["ganformer"] = "ganformer"
    has_styles: ClassVar[bool] = True
    resolution: PowerOfTwo = 256
    components: Positive = 16
    latent_dim: Positive = 32
    mapping_layers: Annotated[int, Field(ge=2, le=1024)] = 9
    mapping_residual: bool = True
    mapping_attention: bool = True
    latent_norm: Literal["joint", "component"] = "joint"
    normalize_global: bool = True
    channel_base: Positive = 32768
    channel_max: Positive = 512
    architecture: Literal["skip", "resnet", "orig"] = "resnet"
    style: bool = True
    noise: bool = True
    final_convolution: bool = True
    attention: Literal["simplex", "kmeans", "duplex"] = "duplex"
    kmeans_iterations: Depth | None = None
    update_latents: bool | None = None
    attention_from: Annotated[int, Field(ge=4)] = 4
    attention_to: Annotated[int, Field(ge=4)] = 128
    heads: Positive = 1
    normalization: Literal["layer", "instance", "none"] = "layer"
    integration: Literal["mul", "add", "both"] = "mul"
    positions: bool = True
    grid: Literal["sine", "linear", "trainable", "trainable2d"] = "sine"
    grid_dim: Positive | None = None
    grid_directions: Positive = 2
    latent_gate: bool = False
    image_gate: bool = False
    attention_dropout: Rate = 0.12
    component_dropout: Rate = 0.0
    classes: Classes = 0

    @model_validator(mode="after")
    def _fits_together(self) -> GANformerGeneratorConfig:
        require_channels(self.resolution, self.channel_base)
        if self.mapping_residual and self.mapping_layers % 2 == 0:
            raise ValueError(
                f"mapping_layers {self.mapping_layers} must be odd with mapping_residual: "
                "pairs of layers, and one more"
            )
        if self.attention == "simplex" and self.kmeans_iterations is not None:
            raise ValueError("kmeans_iterations has no meaning for attention simplex: leave it null")
        _require_grid(self.grid, self.grid_dim or self.latent_dim, self.grid_directions)
        resolutions = _attention_resolutions(4, self.resolution, self.attention_from, self.attention_to)
        for size in resolutions:
            if (channels := min(self.channel_base // size, self.channel_max)) % self.heads:
                raise ValueError(
                    f"{channels} channels at resolution {size} cannot be shared by {self.heads} heads"
                )
        latents_attend = self.mapping_attention or (
            self.attention == "duplex" if self.update_latents is None else self.update_latents
        )
        if latents_attend and self.latent_dim % self.heads:
            raise ValueError(f"latent_dim {self.latent_dim} cannot be shared by {self.heads} heads")
        return self


class GANformerDiscriminatorConfig(Section):
    """GANformer, discriminator with attention; see gantx.models.ganformer.

    The released checkpoints have the `stylegan2` discriminator, without attention.

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
        components: number of latents that attend to the image.
        latent_dim: size of each.
        attention_from: lowest resolution of features that they attend to.
        attention_to: highest resolution of features that they attend to.
        heads: attention heads.
        positions: these latents have position codes.
        grid: position codes of the tokens.
        grid_dim: size of these codes; null means latent_dim.
        grid_directions: directions of `sine` and `linear` codes.
        attention_dropout: dropout probability of attention, in training alone.
    """

    family: Literal["ganformer"] = "ganformer"
    resolution: PowerOfTwo = 256
    channel_base: Positive = 32768
    channel_max: Positive = 512
    group_size: Positive = 4
    group_channels: Positive = 1
    classes: Classes = 0
    label_head: Literal["mapped", "selected"] = "mapped"
    components: Positive = 16
    latent_dim: Positive = 32
    attention_from: Annotated[int, Field(ge=8)] = 8
    attention_to: Annotated[int, Field(ge=8)] = 128
    heads: Positive = 1
    positions: bool = True
    grid: Literal["sine", "linear", "trainable", "trainable2d"] = "sine"
    grid_dim: Positive | None = None
    grid_directions: Positive = 2
    attention_dropout: Rate = 0.12

    @model_validator(mode="before")
    @classmethod
    def _with_label_head(cls, tree: Any) -> Any:
        return with_label_head(tree)

    @model_validator(mode="after")
    def _fits_together(self) -> GANformerDiscriminatorConfig:
        require_channels(self.resolution, self.channel_base)
        require_groups(self.channel_base, self.channel_max, self.group_channels)
        _require_grid(self.grid, self.grid_dim or self.latent_dim, self.grid_directions)
        _attention_resolutions(8, self.resolution, self.attention_from, self.attention_to)
        if self.latent_dim % self.heads:
            raise ValueError(f"latent_dim {self.latent_dim} cannot be shared by {self.heads} heads")
        return self


def _require_grid(grid: str, dim: int, directions: int) -> None:
    """ValueError when a position code cannot be divided among its directions."""
    parts = {"sine": 2 * directions, "linear": directions, "trainable": 2, "trainable2d": 1}[grid]
    if dim % parts:
        raise ValueError(
            f"{grid} position codes of size {dim} do not divide into {parts} parts: "
            f"set grid_dim to a multiple of {parts}"
        )


def _attention_resolutions(smallest: int, resolution: int, first: int, last: int) -> list[int]:
    """Resolutions of the features with attention; ValueError when there are none."""
    resolutions = [size for size in (2**power for power in range(2, 12)) if smallest <= size <= resolution]
    if not (found := [size for size in resolutions if first <= size <= last]):
        raise ValueError(
            f"no features have a resolution from attention_from {first} to attention_to {last}; "
            f"there are {', '.join(map(str, resolutions))}"
        )
    return found
