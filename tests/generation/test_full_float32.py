"""Whatever the caller allows, images are computed in full float32, as the pictures of training are."""

import pytest
import torch
from helpers.styled_networks import styled

from gantx.generation import attention_visualization, interpolation, projection, sampling, style_mixing

CPU = torch.device("cpu")


def sample(generator):
    list(sampling.sample(generator, range(2), batch=8, device=CPU))


def from_latents(generator):
    list(sampling.from_latents(generator, torch.zeros(1, *generator.latent_shape), batch=8, device=CPU))


def walk(generator):
    plan = interpolation.plan(generator, [0, 1], 2)
    list(interpolation.generate(generator, plan, batch=8, device=CPU))


def mix(generator):
    style_mixing.table(generator, [0], [1], layers=[0], batch=8, device=CPU)


def project(generator):
    target = torch.zeros(sampling.cropped_shape(generator, 1.0), dtype=torch.uint8)
    projection.project(generator, target, device=CPU, space="z", steps=1, starts=1)


def attend(generator):
    view = attention_visualization.completed(generator, attention_visualization.View())
    attention_visualization.pictures(generator, 0, view, CPU)


@pytest.mark.parametrize("command", [sample, from_latents, walk, mix, project, attend])
def test_shortened_float32_is_off(command):
    generator = styled("ganformer")
    found = set()

    def remember(*_):
        found.add((torch.backends.cudnn.conv.fp32_precision, torch.is_autocast_enabled("cpu")))

    for module in generator.modules():
        module.register_forward_hook(remember)
    before = torch.backends.cudnn.conv.fp32_precision
    with torch.autocast("cpu", dtype=torch.bfloat16):
        command(generator)
    assert found == {("ieee", False)}
    assert torch.backends.cudnn.conv.fp32_precision == before
