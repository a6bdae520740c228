"""The smallest generator of each family that has all its parts, and a checkpoint of one."""

import torch

from gantx import checkpoint, models
from gantx.config import presets
from gantx.config.networks import GENERATORS
from gantx.models import interfaces

SETTINGS = {
    "transgan": {"latent_dim": 8, "base_dim": 32, "base_size": 2, "depths": [1, 1, 1], "heads": 2},
    "transgan2": {"latent_dim": 8, "dim": 32, "base_size": 2, "depths": [1, 1, 1], "heads": 2},
    "vitgan": {
        "resolution": 8, "patch_size": 2, "dim": 16, "depth": 1, "heads": 2, "mapping_depth": 2,
        "decoder_dim": 16,
    },
    "ganformer": {
        "resolution": 8, "components": 2, "latent_dim": 8, "mapping_layers": 3, "channel_base": 64,
        "channel_max": 8,
    },
    "stylegan2": {
        "resolution": 8, "latent_dim": 16, "mapping_layers": 2, "channel_base": 64, "channel_max": 8,
    },
    "implicit": {
        "resolution": 8, "latent_dim": 8, "style_dim": 16, "categories": [4, 2], "width": 8, "components": 3,
    },
}  # fmt: skip


NAMES = ("cat", "<b>dog</b> & \u202eco.")  # of the classes of a conditional network; a third label is none


def build(family, labels=0):
    """A generator whose every parameter, and average of styles, is away from where it starts."""
    torch.manual_seed(0)
    section = GENERATORS[family](**SETTINGS[family], classes=labels)
    generator = models.build(section).eval().requires_grad_(False)
    for parameter in generator.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    if isinstance(generator, interfaces.StyleBased):
        generator.w_avg.normal_()
    return generator


def save(folder, family, names=()):
    """Write it as a checkpoint of the run `folder`, trained on /somewhere/faces; returns the file.

    With `names` it is conditional, and has a label for no class too.
    """
    labels = len(names) + 1 if names else 0
    settings = presets.load("transgan-tiny", overrides=["data.source=/somewhere/faces"]).model_dump(
        mode="json"
    )
    settings["data"]["resolution"] = settings["discriminator"]["resolution"] = 8
    section = GENERATORS[family](**SETTINGS[family], classes=labels).model_dump(mode="json")
    if names:
        counts = range(1, len(names) + 1)
        settings["conditioning"] = {"classes": len(names), "names": names, "counts": counts, "dropout": 0.1}
        settings["discriminator"]["classes"] = labels
    settings = presets.validate({**settings, "name": f"small-{family}", "generator": section})
    path = folder / "checkpoints" / checkpoint.checkpoint_name(12000)
    averaged = {f"generator_ema.{name}": value for name, value in build(family, labels).state_dict().items()}
    trained = {name.replace("_ema", "", 1): value + 1 for name, value in averaged.items()}
    checkpoint.write(
        path,
        {**averaged, **trained},
        config=settings,
        progress={"images": 12000, "iteration": 12000 // settings.training.batch, "seconds": 1.0},
        data={"name": "faces", "images": 9, "digest": "d"},
    )
    return path
