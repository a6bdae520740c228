"""Sections of TransGAN, version 2."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from gantx.config.section import STAGES, Classes, Positive, Section

Depth = Annotated[int, Field(ge=0, le=1024)]
Upsampling = Literal["shuffle", "bicubic", "blur-shuffle"]


class TransGAN2GeneratorConfig(Section):
    """TransGAN version 2, generator (NeurIPS 2021 and the released code); see gantx.models.transgan2.

    Attributes:
        latent_dim: size of z.
        normalize_latent: scale each z to length √latent_dim.
        dim: channels C of the first stage.
        base_size: side of the first token grid; every later stage doubles it.
        depths: blocks of each stage.
        upsampling: the step into each stage after the first: `bicubic` keeps the channels, `shuffle` divides
            them by four, `blur-shuffle` blurs before that.
        windows: side of the windows of attention, one for each stage; null for the whole grid, in one stage
            or in all.
        heads: attention heads.
        mlp_ratio: hidden width of the MLPs in units of the stage's channels.
        norm: LayerNorm, or the paper's modified normalisation (`pixel`).
        noise: put noise into the attention of every block.
        latent_grid: make a second token grid from z, which every block attends to (CelebA-HQ).
        classes: number of classes, 0 for none; a run sets it from `conditioning`.
    """

    family: Literal["transgan2"] = "transgan2"
    has_styles: ClassVar[bool] = False
    latent_dim: Positive = 256
    normalize_latent: bool = False
    dim: Positive = 1024
    base_size: Positive = 8
    depths: Annotated[tuple[Depth, ...], STAGES] = (5, 4, 2)
    upsampling: tuple[Upsampling, ...] = ("shuffle", "shuffle")
    windows: tuple[Positive | None, ...] | None = None
    heads: Positive = 4
    mlp_ratio: Positive = 4
    norm: Literal["layer", "pixel"] = "layer"
    noise: bool = False
    latent_grid: bool = False
    classes: Classes = 0

    @property
    def resolution(self) -> int:
        """Resolution of the generated images."""
        return self.base_size << (len(self.depths) - 1)

    @model_validator(mode="after")
    def _fits(self) -> TransGAN2GeneratorConfig:
        stages = len(self.depths)
        if len(self.upsampling) != stages - 1:
            raise ValueError(
                f"upsampling must name {stages - 1} steps, one for each stage of depths after the first, "
                f"not {len(self.upsampling)}"
            )
        _check_length("windows", self.windows, stages)
        dim = self.dim
        for stage, kind in enumerate(("bicubic", *self.upsampling), 1):
            if kind != "bicubic" and dim % 4:
                raise ValueError(
                    f"stage {stage} takes a quarter of the {dim} channels before it, which 4 does not divide"
                )
            dim = dim if kind == "bicubic" else dim // 4
            if dim % self.heads:
                raise ValueError(f"stage {stage} has {dim} channels, which {self.heads} heads cannot share")
        _check_windows(self.windows, [self.base_size << stage for stage in range(stages)])
        return self


class TransGAN2DiscriminatorConfig(Section):
    """TransGAN version 2, discriminator: patches of growing size; see gantx.models.transgan2.

    Attributes:
        resolution: height and width of the images it receives.
        patch_size: side of the patches of the first token grid; every later stage doubles it.
        overlap: the patches of the first grid are twice as large and overlap by half (CelebA-HQ).
        dim: channels of the last stage.
        shares: what each stage's patches contribute to `dim`, in proportion; one number for each stage.
        depths: blocks of each stage, without the last one, which adds the class token.
        windows: side of the windows of attention, one for each stage; null for the whole grid, in one stage
            or in all.
        global_blocks: how many blocks of each stage, the last ones, attend over the whole grid
            regardless of `windows`; null for none.
        heads: attention heads.
        mlp_ratio: hidden width of the MLPs in units of the stage's channels.
        norm: LayerNorm, or the paper's modified normalisation (`pixel`).
        relative_positions: learn biases for relative positions, in all blocks but the last.
        noise: put noise into the attention of every block.
        classes: number of classes, 0 for none; a run sets it from `conditioning`.
    """

    family: Literal["transgan2"] = "transgan2"
    resolution: Positive = 32
    patch_size: Positive = 2
    overlap: bool = False
    dim: Positive = 384
    shares: Annotated[tuple[Positive, ...], Field(min_length=1)] = (3, 1)
    depths: Annotated[tuple[Depth, ...], STAGES] = (3, 3)
    windows: tuple[Positive | None, ...] | None = None
    global_blocks: tuple[Depth, ...] | None = None
    heads: Positive = 4
    mlp_ratio: Positive = 4
    norm: Literal["layer", "pixel"] = "layer"
    relative_positions: bool = True
    noise: bool = True
    classes: Classes = 0

    @model_validator(mode="after")
    def _fits(self) -> TransGAN2DiscriminatorConfig:
        stages = len(self.depths)
        _check_length("shares", self.shares, stages)
        _check_length("windows", self.windows, stages)
        _check_length("global_blocks", self.global_blocks, stages)
        coarsest = self.patch_size << (stages - 1)
        if self.resolution % coarsest:
            raise ValueError(
                f"patches of stage {stages} are {coarsest} pixels wide, which does not divide resolution "
                f"{self.resolution}"
            )
        if self.overlap and self.patch_size % 2:
            raise ValueError(f"overlap needs an even patch_size, not {self.patch_size}")
        if self.dim % sum(self.shares):
            raise ValueError(f"dim {self.dim} cannot be split in proportions {list(self.shares)}")
        part = self.dim // sum(self.shares)
        for stage in range(stages):
            if (dim := part * sum(self.shares[: stage + 1])) % self.heads:
                raise ValueError(
                    f"stage {stage + 1} has {dim} channels, which {self.heads} heads cannot share"
                )
        for stage, count in enumerate(self.global_blocks or ()):
            if count > self.depths[stage]:
                raise ValueError(
                    f"global_blocks wants {count} blocks of stage {stage + 1}, which has {self.depths[stage]}"
                )
        _check_windows(self.windows, [self.resolution // self.patch_size >> stage for stage in range(stages)])
        return self


def _check_length(key: str, values: tuple[object, ...] | None, stages: int) -> None:
    if values is not None and len(values) != stages:
        raise ValueError(f"{key} must name {stages} stages, as many as depths, not {len(values)}")


def _check_windows(windows: tuple[int | None, ...] | None, sides: list[int]) -> None:
    for stage, (window, side) in enumerate(zip(windows or (), sides, strict=False), 1):
        if window is not None and side % window:
            raise ValueError(
                f"windows of {window} tokens a side do not tile the grid of stage {stage}, {side} a side"
            )
