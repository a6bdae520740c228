"""The families of networks, and how a section of the configuration becomes one."""

from __future__ import annotations

import inspect
from typing import Any, overload

from gantx.config.networks import (
    DiscriminatorConfig,
    GANformerDiscriminatorConfig,
    GANformerGeneratorConfig,
    GeneratorConfig,
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
from gantx.models import ganformer, stylegan2, transgan, transgan2, vitgan
from gantx.models.interfaces import Discriminator, Generator

_GENERATORS: dict[type[Section], type[Generator]] = {
    TransGANGeneratorConfig: transgan.Generator,
    TransGAN2GeneratorConfig: transgan2.Generator,
    ViTGANGeneratorConfig: vitgan.Generator,
    StyleGAN2GeneratorConfig: stylegan2.Generator,
    GANformerGeneratorConfig: ganformer.Generator,
}
_DISCRIMINATORS: dict[type[Section], type[Discriminator]] = {
    TransGANDiscriminatorConfig: transgan.Discriminator,
    TransGAN2DiscriminatorConfig: transgan2.Discriminator,
    ViTGANDiscriminatorConfig: vitgan.Discriminator,
    StyleGAN2DiscriminatorConfig: stylegan2.Discriminator,
    GANformerDiscriminatorConfig: ganformer.Discriminator,
}


@overload
def build(section: GeneratorConfig) -> Generator: ...
@overload
def build(section: DiscriminatorConfig) -> Discriminator: ...
@overload
def build(section: Section) -> Generator | Discriminator: ...
def build(section: Section) -> Generator | Discriminator:
    """Build the network that a `generator:` or `discriminator:` section describes."""
    network: Any = {**_GENERATORS, **_DISCRIMINATORS}[type(section)]
    found: Generator | Discriminator
    if "config" in inspect.signature(network).parameters:
        found = network(section)
        return found
    arguments = {name: getattr(section, name) for name in type(section).model_fields if name != "family"}
    found = network(**arguments)
    return found
