"""Sections of TransGAN, version 1."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import model_validator

from gantx.config.section import STAGES, Classes, Depth, Positive, Section


class TransGANGeneratorConfig(Section):
    """TransGAN version 1, generator (arXiv 2102.07074v1); see gantx.models.transgan.

    Attributes:
        latent_dim: size of z.
        base_dim: channels C of the first stage; every later stage has a quarter of the one before.
        base_size: side of the first token grid.
        depths: blocks of each stage; every stage after the first doubles the grid.
        heads: attention heads, one number for all stages or one per stage.
        mlp_ratio: hidden width of the MLPs in units of the stage's channels.
        rgb_patch: side of the pixel patch each final token generates (1 in the paper).
        locality: shape of the attention window of locality-aware initialisation.
        super_resolution: build the entry through which low-resolution images come in at stage 2.
        init: weights as released, or Xavier with sine positions as the CPU-sized preset wants.
        classes: number of classes, 0 for none; a run sets it from `conditioning`.
    """

    family: Literal["transgan"] = "transgan"
    has_styles: ClassVar[bool] = False
    latent_dim: Positive = 1024
    base_dim: Positive = 384
    base_size: Positive = 8
    depths: Annotated[tuple[Depth, ...], STAGES] = (5, 2, 2)
    heads: Positive | Annotated[tuple[Positive, ...], STAGES] = 4
    mlp_ratio: Positive = 4
    rgb_patch: Positive = 1
    locality: Literal["band", "neighbourhood", "none"] = "band"
    super_resolution: bool = True
    init: Literal["released", "compact"] = "released"
    classes: Classes = 0

    @property
    def resolution(self) -> int:
        """Resolution of the generated images."""
        return self.base_size * self.rgb_patch << (len(self.depths) - 1)

    @model_validator(mode="after")
    def _divisible(self) -> TransGANGeneratorConfig:
        stages = len(self.depths)
        if self.base_dim % 4 ** (stages - 1):
            raise ValueError(
                f"base_dim {self.base_dim} must be divisible by {4 ** (stages - 1)}, "
                f"because each of the {stages - 1} upsamplings divides the channels by 4"
            )
        heads = self.heads if isinstance(self.heads, tuple) else (self.heads,) * stages
        if len(heads) != stages:
            raise ValueError(f"heads names {len(heads)} stages but depths names {stages}: give one per stage")
        for stage, count in enumerate(heads):
            if (dim := self.base_dim // 4**stage) % count:
                raise ValueError(f"stage {stage + 1} has {dim} channels, which {count} heads cannot share")
        if self.super_resolution and stages < 2:
            raise ValueError("super_resolution needs a second stage for the low-resolution image to enter at")
        return self


class TransGANDiscriminatorConfig(Section):
    """TransGAN version 1, discriminator: a ViT with a class token; see gantx.models.transgan.

    Attributes:
        resolution: height and width of the images it receives.
        patch_size: side of the patches that become tokens.
        dim: channels of the tokens.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the MLPs in units of `dim`.
        init: weights as released, or Xavier with sine positions as the CPU-sized preset wants.
        classes: number of classes, 0 for none; a run sets it from `conditioning`.
    """

    family: Literal["transgan"] = "transgan"
    resolution: Positive = 32
    patch_size: Positive = 4
    dim: Positive = 384
    depth: Depth = 7
    heads: Positive = 4
    mlp_ratio: Positive = 4
    init: Literal["released", "compact"] = "released"
    classes: Classes = 0

    @model_validator(mode="after")
    def _divisible(self) -> TransGANDiscriminatorConfig:
        if self.resolution % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide resolution {self.resolution}")
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} cannot be shared by {self.heads} heads")
        return self
