"""The networks of all families, built from sections of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from gantx.config.networks import (
    DCGANDiscriminatorConfig,
    DiscriminatorConfig,
    GANformerDiscriminatorConfig,
    GANformerGeneratorConfig,
    GeneratorConfig,
    ImplicitGeneratorConfig,
    StyleGAN2DiscriminatorConfig,
    StyleGAN2GeneratorConfig,
    TransGAN2DiscriminatorConfig,
    TransGAN2GeneratorConfig,
    TransGANDiscriminatorConfig,
    TransGANGeneratorConfig,
    ViTGANDiscriminatorConfig,
    ViTGANGeneratorConfig,
)
from gantx.config.section import Section
from gantx.models import dcgan, ganformer, implicit, stylegan2, transgan, transgan2, vitgan
from gantx.models.interfaces import Discriminator, Generator
from gantx.runtime.precision import float32_parameters
from gantx.runtime.random import global_state_kept

_NETWORKS: dict[type[Section], Callable[[Any, int], Generator | Discriminator]] = {
    TransGANGeneratorConfig: transgan.Generator,
    TransGAN2GeneratorConfig: transgan2.Generator,
    ViTGANGeneratorConfig: vitgan.Generator,
    StyleGAN2GeneratorConfig: stylegan2.Generator,
    GANformerGeneratorConfig: ganformer.Generator,
    ImplicitGeneratorConfig: implicit.Generator,
    TransGANDiscriminatorConfig: transgan.Discriminator,
    TransGAN2DiscriminatorConfig: transgan2.Discriminator,
    ViTGANDiscriminatorConfig: vitgan.Discriminator,
    StyleGAN2DiscriminatorConfig: stylegan2.Discriminator,
    GANformerDiscriminatorConfig: ganformer.Discriminator,
    DCGANDiscriminatorConfig: dcgan.Discriminator,
}


@overload
def build(section: GeneratorConfig, channels: int = 3) -> Generator: ...
@overload
def build(section: DiscriminatorConfig, channels: int = 3) -> Discriminator: ...
@overload
def build(section: Section, channels: int = 3) -> Generator | Discriminator: ...
def build(section: Section, channels: int = 3) -> Generator | Discriminator:
    """Build the network that a `generator:` or `discriminator:` section describes, in float32.

    Its weights are drawn from torch's global generator, which the caller seeds; see `build_to_load`.

    Args:
        section: of the network.
        channels: of its images, `data.channels`.
    """
    with float32_parameters():
        found: Generator | Discriminator = _NETWORKS[type(section)](section, channels)
    return found


@overload
def build_to_load(section: GeneratorConfig, channels: int = 3) -> Generator: ...
@overload
def build_to_load(section: DiscriminatorConfig, channels: int = 3) -> Discriminator: ...
@overload
def build_to_load(section: Section, channels: int = 3) -> Generator | Discriminator: ...
def build_to_load(section: Section, channels: int = 3) -> Generator | Discriminator:
    """As `build`, for weights that are loaded next: torch's global generator is left as it was."""
    with global_state_kept():
        return build(section, channels)
