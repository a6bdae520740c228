"""Sections of ViTGAN."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from gantx.config.section import Classes, Depth, Positive, Section

SpectralNormKind = Literal["none", "plain", "improved", "released"]
Similarity = Literal["dot", "l2"]


class ViTGANGeneratorConfig(Section):
    """ViTGAN, generator (arXiv 2107.04589v1); see gantx.models.vitgan.

    Attributes:
        resolution: height and width of the images it generates.
        patch_size: side of the patch that each token generates.
        dim: channels of tokens, latents and styles.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the MLPs in units of `dim`.
        mapping_depth: layers of the mapping network.
        mapping_lr: learning rate of these layers in units of the optimiser's.
        positions: tokens start from sine features of their coordinates, or from a learned table.
        residual: attention and MLP are added to their input, or to its normalised form as released.
        attention: inner products, a distance (see gantx.models.vitgan.attention), or as released.
        activation: of the MLPs.
        spectral_norm: of the weights of attention and MLPs.
        norm_eps: added to the variance in the norms.
        decoder: `inr` as released, `inr-sine` with one hidden layer of sines, or the convolutional `conv`.
        decoder_dim: width of the decoder's layers.
        decoder_noise: add noise of learned strength to the decoder's layers.
        output: linear, or tanh to keep pixels within [-1, 1].
        classes: number of classes, 0 for none; a run sets it from `conditioning`.
    """

    family: Literal["vitgan"] = "vitgan"
    has_styles: ClassVar[bool] = True
    resolution: Positive = 32
    patch_size: Positive = 4
    dim: Positive = 384
    depth: Depth = 4
    heads: Positive = 6
    mlp_ratio: Positive = 4
    mapping_depth: Depth = 8
    mapping_lr: Annotated[float, Field(gt=0)] = 0.01
    positions: Literal["sine", "table"] = "sine"
    residual: Literal["prenorm", "released"] = "prenorm"
    attention: Similarity | Literal["released", "released-dot"] = "dot"
    activation: Literal["gelu", "silu"] = "gelu"
    spectral_norm: SpectralNormKind = "none"
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    decoder: Literal["inr", "inr-sine", "conv"] = "inr"
    decoder_dim: Positive = 512
    decoder_noise: bool = False
    output: Literal["linear", "tanh"] = "linear"
    classes: Classes = 0

    @model_validator(mode="after")
    def _divisible(self) -> ViTGANGeneratorConfig:
        if self.resolution % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide resolution {self.resolution}")
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} cannot be shared by {self.heads} heads")
        if self.decoder == "conv" and self.patch_size & (self.patch_size - 1):
            raise ValueError(
                f"patch_size {self.patch_size} must be a power of two with the conv decoder, "
                "which doubles the resolution until every token has its patch"
            )
        return self


class ViTGANDiscriminatorConfig(Section):
    """ViTGAN, discriminator (arXiv 2107.04589v1); see gantx.models.vitgan.

    Attributes:
        resolution: height and width of the images it receives.
        patch_size: height and width of the patches that become tokens.
        overlap: pixels by which a patch reaches into its neighbours on each side.
        padding: how images are padded, with `zeros` or by `reflect`ion.
        dim: channels of the tokens.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the MLPs in units of `dim`.
        attention: negative squared distance `l2`, or inner products `dot`.
        qk_std: initial standard deviation of the weights of queries and keys; null for 0.02 with `l2` and
            1/√dim with `dot`.
        spectral_norm: of all linear weights; `improved` keeps each at its initial norm.
        classes: number of classes, 0 for none; a run sets it from `conditioning`.
    """

    family: Literal["vitgan"] = "vitgan"
    resolution: Positive = 32
    patch_size: Positive = 4
    overlap: Annotated[int, Field(ge=0)] = 2
    padding: Literal["zeros", "reflect"] = "zeros"
    dim: Positive = 384
    depth: Depth = 4
    heads: Positive = 6
    mlp_ratio: Positive = 4
    attention: Similarity = "l2"
    qk_std: Annotated[float, Field(gt=0)] | None = None
    spectral_norm: SpectralNormKind = "improved"
    classes: Classes = 0

    @model_validator(mode="after")
    def _divisible(self) -> ViTGANDiscriminatorConfig:
        if self.resolution % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide resolution {self.resolution}")
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} cannot be shared by {self.heads} heads")
        if self.padding == "reflect" and self.overlap >= self.resolution:
            raise ValueError(
                f"overlap {self.overlap} must be smaller than resolution {self.resolution}: "
                "a mirror image shows no more than the image has"
            )
        return self
