"""Convolutions by products of points give what direct sums give, with derivatives of both orders."""

import pytest
import torch

from gantx.models.layers import convolution
from gantx.models.layers.convolution import DoublingConvolution, HalvingConvolution, SameConvolution

CASES = [(SameConvolution, 32), (SameConvolution, 64), (HalvingConvolution, 64), (DoublingConvolution, 32)]


def by_points_and_directly(layer, monkeypatch, compute):
    """What `compute` gives on the two ways."""
    found = [compute(layer)]
    with monkeypatch.context() as patch:
        patch.setattr(convolution, "by_points", lambda x, weight: False)
        found.append(compute(layer))
    return found


def close(one, other, limit=1e-4):
    torch.testing.assert_close(one, other, rtol=0, atol=limit * float(other.abs().max()))


@pytest.mark.parametrize(("kind", "side"), CASES)
def test_values_and_gradients_of_both_orders_are_those_of_the_direct_sum(kind, side, monkeypatch):
    channels = convolution.CHANNELS
    layer = kind(channels, channels, side)
    assert any("analysis" in name for name, _ in layer.named_buffers()), "this size goes by points"
    torch.manual_seed(0)
    x = torch.randn(1, channels, side, side)
    weight = (torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5).requires_grad_()

    def compute(layer):
        def total(images):
            return layer(images, weight).square().mean()

        slope = torch.func.grad(total)(x)  # as a gradient penalty takes it ...
        (second,) = torch.autograd.grad(slope.square().sum(), weight)  # ... and as it is differentiated
        (first,) = torch.autograd.grad(total(x), weight)
        return layer(x, weight).detach(), slope.detach(), first, second

    for mine, direct in zip(*by_points_and_directly(layer, monkeypatch, compute), strict=True):
        close(mine, direct)


@pytest.mark.parametrize(("kind", "side"), CASES)
def test_images_a_few_at_a_time_are_images_all_at_once(kind, side, monkeypatch):
    channels = convolution.CHANNELS
    layer = kind(channels, channels, side)
    torch.manual_seed(0)
    x = torch.randn(3, channels, side, side, requires_grad=True)
    weight = (torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5).requires_grad_()

    def compute():
        made = layer(x, weight)
        return made.detach(), *torch.autograd.grad(made.square().mean(), (x, weight))

    whole = compute()
    monkeypatch.setattr(convolution, "IMAGES", 2)
    for mine, other in zip(compute(), whole, strict=True):
        close(mine, other, 1e-5)


def test_derivatives_of_every_order_of_features_and_kernel_at_once(monkeypatch):
    channels = convolution.CHANNELS
    layer = SameConvolution(channels, channels, 32)
    torch.manual_seed(0)
    x = torch.randn(1, channels, 32, 32, requires_grad=True)
    weight = (torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5).requires_grad_()

    def compute(layer):
        total = layer(x, weight).square().mean()
        firsts = torch.autograd.grad(total, (x, weight), create_graph=True)
        seconds = torch.autograd.grad(sum(f.square().sum() for f in firsts), (x, weight), create_graph=True)
        thirds = torch.autograd.grad(sum(s.square().sum() for s in seconds), (x, weight))
        return *(each.detach() for each in (*firsts, *seconds)), *thirds

    for mine, direct in zip(*by_points_and_directly(layer, monkeypatch, compute), strict=True):
        close(mine, direct)


@pytest.mark.parametrize(("kind", "side"), CASES)
def test_points_are_not_kept_for_the_way_back(kind, side):
    channels = convolution.CHANNELS
    layer = kind(channels, channels, side)
    x = torch.randn(1, channels, side, side, requires_grad=True)
    weight = torch.randn(channels, channels, 3, 3, requires_grad=True)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x, weight)
    constants = sum(buffer.numel() for _, buffer in layer.named_buffers())
    assert 0 < sum(kept.values()) <= x.numel() + weight.numel() + constants


@pytest.mark.parametrize(("kind", "side"), CASES)
def test_small_layers_half_precision_and_autocast_take_the_direct_way(kind, side):
    assert not list(kind(8, 8, side).named_buffers()) or not any(
        "analysis" in name for name, _ in kind(8, 8, side).named_buffers()
    )
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3)
    assert convolution.by_points(x, weight)
    assert not convolution.by_points(x.bfloat16(), weight.bfloat16())
    assert not convolution.by_points(x.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not convolution.by_points(x, weight)


def test_constants_are_not_saved():
    layer = SameConvolution(convolution.CHANNELS, convolution.CHANNELS, 32)
    assert layer.state_dict() == {}
