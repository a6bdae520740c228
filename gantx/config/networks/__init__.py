"""The sections `generator:` and `discriminator:`: one model per network, its fields the network's arguments.

`family` selects the model. Importing this package does not import torch.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import Discriminator, Tag

from gantx.config.networks.dcgan import DCGANDiscriminatorConfig
from gantx.config.networks.ganformer import GANformerDiscriminatorConfig, GANformerGeneratorConfig
from gantx.config.networks.implicit import ImplicitGeneratorConfig
from gantx.config.networks.stylegan2 import StyleGAN2DiscriminatorConfig, StyleGAN2GeneratorConfig
from gantx.config.networks.transgan import TransGANDiscriminatorConfig, TransGANGeneratorConfig
from gantx.config.networks.transgan2 import TransGAN2DiscriminatorConfig, TransGAN2GeneratorConfig
from gantx.config.networks.vitgan import ViTGANDiscriminatorConfig, ViTGANGeneratorConfig
from gantx.config.section import Section

__all__ = [
    "DISCRIMINATORS",
    "GENERATORS",
    "DCGANDiscriminatorConfig",
    "DiscriminatorConfig",
    "GANformerDiscriminatorConfig",
    "GANformerGeneratorConfig",
    "GeneratorConfig",
    "ImplicitGeneratorConfig",
    "StyleGAN2DiscriminatorConfig",
    "StyleGAN2GeneratorConfig",
    "TransGAN2DiscriminatorConfig",
    "TransGAN2GeneratorConfig",
    "TransGANDiscriminatorConfig",
    "TransGANGeneratorConfig",
    "ViTGANDiscriminatorConfig",
    "ViTGANGeneratorConfig",
]


GENERATORS: dict[str, type[Section]] = {
    "transgan": TransGANGeneratorConfig,
    "transgan2": TransGAN2GeneratorConfig,
    "vitgan": ViTGANGeneratorConfig,
    "stylegan2": StyleGAN2GeneratorConfig,
    "ganformer": GANformerGeneratorConfig,
    "implicit": ImplicitGeneratorConfig,
}
DISCRIMINATORS: dict[str, type[Section]] = {
    "transgan": TransGANDiscriminatorConfig,
    "transgan2": TransGAN2DiscriminatorConfig,
    "vitgan": ViTGANDiscriminatorConfig,
    "stylegan2": StyleGAN2DiscriminatorConfig,
    "ganformer": GANformerDiscriminatorConfig,
    "dcgan": DCGANDiscriminatorConfig,
}


def _family(section: Any) -> str:
    """The family of a section that is not validated yet; TransGAN's first version where it does not say."""
    if isinstance(section, dict):
        return str(section.get("family", "transgan"))
    return str(getattr(section, "family", section))


GeneratorConfig: TypeAlias = Annotated[
    Annotated[TransGANGeneratorConfig, Tag("transgan")]
    | Annotated[TransGAN2GeneratorConfig, Tag("transgan2")]
    | Annotated[ViTGANGeneratorConfig, Tag("vitgan")]
    | Annotated[StyleGAN2GeneratorConfig, Tag("stylegan2")]
    | Annotated[GANformerGeneratorConfig, Tag("ganformer")]
    | Annotated[ImplicitGeneratorConfig, Tag("implicit")],
    Discriminator(_family),
]
DiscriminatorConfig: TypeAlias = Annotated[
    Annotated[TransGANDiscriminatorConfig, Tag("transgan")]
    | Annotated[TransGAN2DiscriminatorConfig, Tag("transgan2")]
    | Annotated[ViTGANDiscriminatorConfig, Tag("vitgan")]
    | Annotated[StyleGAN2DiscriminatorConfig, Tag("stylegan2")]
    | Annotated[GANformerDiscriminatorConfig, Tag("ganformer")]
    | Annotated[DCGANDiscriminatorConfig, Tag("dcgan")],
    Discriminator(_family),
]
