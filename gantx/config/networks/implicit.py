"""The section of the implicit generator."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from gantx.config.section import Classes, Positive, Section


class ImplicitGeneratorConfig(Section):
    """Generator of images as functions of the coordinates, our own; see gantx.models.implicit.

    Attributes:
        resolution: height and width of the images it generates.
        latent_dim: size of z.
        style_dim: size of w.
        mapping_layers: linear layers from z to w.
        categories: number of values of each discrete latent; empty for none. A discrete latent is which of so
            many numbers of z, from the first on, is the largest.
        width: units of every layer of the function.
        depth: layers of the function between the coordinates and the attention.
        components: latents that each pixel attends to; each has one colour.
        classes: number of classes, 0 for none; a run sets it from `conditioning`.
    """

    family: Literal["implicit"] = "implicit"
    has_styles: ClassVar[bool] = True
    resolution: Annotated[int, Field(ge=2)] = 32
    latent_dim: Positive = 64
    style_dim: Positive = 128
    mapping_layers: Positive = 3
    categories: tuple[Annotated[int, Field(ge=2)], ...] = (32, 8)
    width: Positive = 32
    depth: Positive = 2
    components: Annotated[int, Field(ge=2)] = 4
    classes: Classes = 0

    @model_validator(mode="after")
    def _has_numbers_for_categories(self) -> ImplicitGeneratorConfig:
        if (taken := sum(self.categories)) > self.latent_dim:
            raise ValueError(
                f"categories need {taken} numbers of z, one each, but latent_dim is {self.latent_dim}"
            )
        return self
