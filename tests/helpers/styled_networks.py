"""Small generators with styles, one of each family, and a checkpoint of one."""

import torch

from gantx import checkpoint, models
from gantx.config import presets
from gantx.config.networks import (
    GANformerGeneratorConfig,
    ImplicitGeneratorConfig,
    StyleGAN2GeneratorConfig,
    ViTGANGeneratorConfig,
)

SECTIONS = {
    "stylegan2": StyleGAN2GeneratorConfig(
        resolution=16, latent_dim=16, mapping_layers=2, channel_base=256, channel_max=32
    ),
    "ganformer": GANformerGeneratorConfig(
        resolution=16, components=3, latent_dim=8, mapping_layers=3, channel_base=256, channel_max=32
    ),
    "vitgan": ViTGANGeneratorConfig(
        resolution=16, patch_size=4, dim=32, depth=2, heads=2, mapping_depth=2, decoder_dim=32
    ),
    "implicit": ImplicitGeneratorConfig(
        resolution=16, latent_dim=8, style_dim=16, categories=(4, 2), width=16, components=3
    ),
}


def styled(family):
    """A generator with an average that is not zero and every parameter moved away from where it starts."""
    torch.manual_seed(0)
    generator = models.build(SECTIONS[family]).eval().requires_grad_(False)
    for parameter in generator.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    generator.w_avg.normal_()
    return generator


def save_styled(folder, family):
    """Write the generator as a checkpoint into `folder`; returns the file."""
    tree = presets.load("transgan-tiny").model_dump(mode="json")
    tree |= {"name": family, "generator": SECTIONS[family].model_dump(mode="json")}
    tree["data"]["resolution"] = tree["discriminator"]["resolution"] = 16
    settings = presets.validate(tree)
    path = folder / checkpoint.checkpoint_name(0)
    tensors = {f"generator_ema.{name}": value for name, value in styled(family).state_dict().items()}
    checkpoint.write(path, tensors, config=settings, progress={"images": 0}, data={})
    return path
