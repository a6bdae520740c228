"""The sections `generator:` and `discriminator:`: one model per network, its fields the network's arguments.

Which one a section is, `family` says. Loads no torch.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import Discriminator, Tag

from gantx.architectures.ganformer import GANformerDiscriminatorConfig, GANformerGeneratorConfig
from gantx.architectures.stylegan2 import StyleGAN2DiscriminatorConfig, StyleGAN2GeneratorConfig
from gantx.architectures.transgan import TransGANDiscriminatorConfig, TransGANGeneratorConfig
from gantx.architectures.vitgan import ViTGANDiscriminatorConfig, ViTGANGeneratorConfig
from gantx.sections import Section

__all__ = [
    "DISCRIMINATORS",
    "GENERATORS",
    "DiscriminatorConfig",
    "GANformerDiscriminatorConfig",
    "GANformerGeneratorConfig",
    "GeneratorConfig",
    "StyleGAN2DiscriminatorConfig",
    "StyleGAN2GeneratorConfig",
    "TransGANDiscriminatorConfig",
    "TransGANGeneratorConfig",
    "ViTGANDiscriminatorConfig",
    "ViTGANGeneratorConfig",
]


GENERATORS: dict[str, type[Section]] = {
    "transgan": TransGANGeneratorConfig,
    "vitgan": ViTGANGeneratorConfig,
    "stylegan2": StyleGAN2GeneratorConfig,
    "ganformer": GANformerGeneratorConfig,
}
DISCRIMINATORS: dict[str, type[Section]] = {
    "transgan": TransGANDiscriminatorConfig,
    "vitgan": ViTGANDiscriminatorConfig,
    "stylegan2": StyleGAN2DiscriminatorConfig,
    "ganformer": GANformerDiscriminatorConfig,
}


def _family(section: Any) -> str:
    """The family of a section that is not validated yet; TransGAN's first version where it does not say."""
    if isinstance(section, dict):
        return str(section.get("family", "transgan"))
    return str(getattr(section, "family", section))


GeneratorConfig: TypeAlias = Annotated[
    Annotated[TransGANGeneratorConfig, Tag("transgan")]
    | Annotated[ViTGANGeneratorConfig, Tag("vitgan")]
    | Annotated[StyleGAN2GeneratorConfig, Tag("stylegan2")]
    | Annotated[GANformerGeneratorConfig, Tag("ganformer")],
    Discriminator(_family),
]
DiscriminatorConfig: TypeAlias = Annotated[
    Annotated[TransGANDiscriminatorConfig, Tag("transgan")]
    | Annotated[ViTGANDiscriminatorConfig, Tag("vitgan")]
    | Annotated[StyleGAN2DiscriminatorConfig, Tag("stylegan2")]
    | Annotated[GANformerDiscriminatorConfig, Tag("ganformer")],
    Discriminator(_family),
]
