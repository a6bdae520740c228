"""The Inception of FID at random weights, in the two forms it is published in.

Batch statistics are those of a run over random images, as they would be after training: features then have a
healthy size however deep they come from.
"""

import warnings
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantx.evaluation import inception_weights
from gantx.evaluation.inception import Convolution, Inception


class Unit(nn.Module):
    """A convolution and its batch statistics, under the names of the TorchScript file."""

    def __init__(self, like: Convolution):
        super().__init__()
        self.weight = nn.Parameter(like.weight.detach().clone())
        self.beta = nn.Parameter(like.bias.detach().clone())
        self.mean = nn.Parameter(torch.zeros_like(like.bias))
        self.var = nn.Parameter(torch.ones_like(like.bias))
        self.stride: tuple[int, int] = like.stride
        self.padding: tuple[int, int] = like.padding

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, None, self.stride, self.padding)
        return F.relu(F.batch_norm(x, self.mean, self.var, None, self.beta, False, 0.0, 1e-3))


def _sequence(units, pool=None):
    steps = nn.Sequential()
    if pool is not None:
        steps.add_module("pool", pool)
    for name, unit in units:
        steps.add_module(name, unit)
    return steps


class Wide(nn.Module):
    """A block whose branches are towers."""

    def __init__(self, units, pool, *, direct, pooled):
        super().__init__()
        towers = {}
        for name, unit in units.items():
            tower, _, rest = name.rpartition(".")
            towers.setdefault(tower, []).append((rest, unit))
        self.conv = towers[""][0][1] if direct else nn.Identity()
        self.direct = direct
        self.tower = _sequence(towers["tower"])
        self.tower_1 = _sequence(towers["tower_1"]) if "tower_1" in towers else nn.Identity()
        self.second = "tower_1" in towers
        self.pooled = pooled
        self.tower_2 = _sequence(towers["tower_2"], pool) if pooled else nn.Identity()
        self.pool = nn.Identity() if pooled else pool

    def forward(self, x: Tensor) -> Tensor:
        found = [self.conv(x)] if self.direct else []
        found.append(self.tower(x))
        if self.second:
            found.append(self.tower_1(x))
        found.append(self.tower_2(x) if self.pooled else self.pool(x))
        return torch.cat(found, 1)


class Last(nn.Module):
    """A block of the 8x8 grid."""

    def __init__(self, units, pool):
        super().__init__()
        self.conv = units["conv"]
        self.tower_conv = units["tower_conv"]
        self.tower_mixed_conv = units["tower_mixed_conv"]
        self.tower_mixed_conv_1 = units["tower_mixed_conv_1"]
        self.tower_1_conv = units["tower_1_conv"]
        self.tower_1_conv_1 = units["tower_1_conv_1"]
        self.tower_1_mixed_conv = units["tower_1_mixed_conv"]
        self.tower_1_mixed_conv_1 = units["tower_1_mixed_conv_1"]
        self.tower_2_pool = pool
        self.tower_2_conv = units["tower_2_conv"]

    def forward(self, x: Tensor) -> Tensor:
        a = self.tower_conv(x)
        b = self.tower_1_conv_1(self.tower_1_conv(x))
        found = [self.conv(x), self.tower_mixed_conv(a), self.tower_mixed_conv_1(a)]
        found += [self.tower_1_mixed_conv(b), self.tower_1_mixed_conv_1(b)]
        found.append(self.tower_2_conv(self.tower_2_pool(x)))
        return torch.cat(found, 1)


class Published(nn.Module):
    """The module in the TorchScript file."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers
        self.output = nn.Linear(2048, 1008)

    def forward(
        self,
        img: Tensor,
        return_features: bool = False,
        use_fp16: bool = False,
        no_output_bias: bool = False,
    ) -> Tensor:
        shift = torch.tensor([[1.0, 0.0, 1 / img.shape[3] - 1 / 299], [0.0, 1.0, 1 / img.shape[2] - 1 / 299]])
        grid = F.affine_grid(shift[None].repeat(len(img), 1, 1), [len(img), 3, 299, 299], align_corners=False)
        x = F.grid_sample(img.float(), grid, "bilinear", "border", False)
        features = self.layers((x - 128) / 128).flatten(1)
        if return_features:
            return features
        bias = None if no_output_bias else self.output.bias
        return F.linear(features, self.output.weight, bias).softmax(1)


def random_inception(seed=0):
    """The network at random weights, as `Published`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ours = Inception(centred=True)
        units = {}
        convolutions = [module for module in ours.modules() if isinstance(module, Convolution)]
        for name, like in zip(inception_weights._names(0), convolutions, strict=True):
            nn.init.kaiming_normal_(like.weight, nonlinearity="relu")
            nn.init.normal_(like.bias, 0, 0.3)
            units[name] = Unit(like)
        network = Published(_layers(units))
        images = torch.rand(8, 3, 299, 299) * 2 - 1
        with torch.no_grad(), mock.patch.object(Unit, "forward", _calibrate):
            network.layers(F.avg_pool2d(images, 9, 1, 4) * 3)
    return network.eval()


def _calibrate(unit, x):
    x = F.conv2d(x, unit.weight, None, unit.stride, unit.padding)
    unit.mean.data, unit.var.data = x.mean((0, 2, 3)), x.var((0, 2, 3)) + 1e-3
    return F.relu(F.batch_norm(x, unit.mean, unit.var, None, unit.beta, False, 0.0, 1e-3))


def _layers(units):
    def block(name):
        return {
            full.partition(".")[2]: unit for full, unit in units.items() if full.partition(".")[0] == name
        }

    average = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    layers = nn.Sequential()
    for name in ("conv", "conv_1", "conv_2", "pool0", "conv_3", "conv_4", "pool1"):
        layers.add_module(name, nn.MaxPool2d(3, 2) if name.startswith("pool") else units[name])
    for index in range(9):
        name = f"mixed_{index}" if index else "mixed"
        reduces = index in (3, 8)
        pool = nn.MaxPool2d(3, 2) if reduces else average
        layers.add_module(name, Wide(block(name), pool, direct=index != 8, pooled=not reduces))
    layers.add_module("mixed_9", Last(block("mixed_9"), average))
    layers.add_module("mixed_10", Last(block("mixed_10"), nn.MaxPool2d(3, 1, 1)))
    layers.add_module("pool2", nn.AvgPool2d(8))
    return layers


def write_torchscript(network, path):
    """Write `network` as NVIDIA's file is made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is out of date, which is why gantx converts it
        torch.jit.script(network).save(str(path))


def write_state_dict(network, path):
    """Write the weights of `network` under the names of pytorch-fid."""
    state = {}
    units = dict(network.layers.named_modules())
    for ours, theirs in zip(inception_weights._names(0), inception_weights._names(1), strict=True):
        unit = units[ours]
        state[f"{theirs}.conv.weight"] = unit.weight.detach()
        state[f"{theirs}.bn.weight"] = torch.ones_like(unit.beta)
        state[f"{theirs}.bn.bias"] = unit.beta.detach()
        state[f"{theirs}.bn.running_mean"] = unit.mean.detach()
        state[f"{theirs}.bn.running_var"] = unit.var.detach()
    state["fc.weight"], state["fc.bias"] = network.output.weight.detach(), network.output.bias.detach()
    torch.save(state, path)
