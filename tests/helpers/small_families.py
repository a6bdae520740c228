"""One generator and one discriminator of every family, small enough to train in a second, at 16x16 pixels."""

from gantx.config import presets

GENERATORS = {
    "transgan": "latent_dim: 8, base_dim: 32, base_size: 4, depths: [1,1,1], heads: 2",
    "transgan2": "latent_dim: 8, dim: 32, base_size: 4, depths: [1,1,1], heads: 2",
    "vitgan": "resolution: 16, dim: 24, depth: 1, heads: 2, mapping_depth: 2, decoder_dim: 16",
    "stylegan2": "resolution: 16, latent_dim: 16, mapping_layers: 2, channel_base: 128, channel_max: 16",
    "ganformer": "resolution: 16, components: 2, latent_dim: 8, mapping_layers: 3, channel_base: 128, "
    "channel_max: 16",
    "implicit": "resolution: 16, latent_dim: 8, style_dim: 16, mapping_layers: 2, categories: [4, 2], "
    "width: 8, components: 3",
}
DISCRIMINATORS = {
    "transgan": "resolution: 16, dim: 16, depth: 1, heads: 2",
    "transgan2": "resolution: 16, dim: 16, depths: [1,1], heads: 2",
    "vitgan": "resolution: 16, dim: 24, depth: 1, heads: 2",
    "stylegan2": "resolution: 16, channel_base: 128, channel_max: 16",
    "ganformer": "resolution: 16, channel_base: 128, channel_max: 16, components: 2, latent_dim: 8",
    "dcgan": "resolution: 16, channels: 8",
}


def small(generator, discriminator, *overrides):
    """A run of two iterations of 4 images with these families."""
    settings = presets.load(
        overrides=[
            *("data.resolution=16", "data.shapes.count=16", "objective.n_critic=1"),
            f"generator={{family: {generator}, {GENERATORS[generator]}}}",
            f"discriminator={{family: {discriminator}, {DISCRIMINATORS[discriminator]}}}",
            *("training.batch=4", "training.kimg=0.008", "training.report_kimg=0.008", "training.samples=2"),
            "training.threads=1",
            *overrides,
        ],
        settings={"data.source": "shapes"},
    )
    assert (settings.generator.family, settings.discriminator.family) == (generator, discriminator)
    return settings
