"""What a dry run shows: sizes of every preset against the released code, memory, and figures of steps."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from helpers.small_families import small

from gantx import models
from gantx.config import presets
from gantx.runtime import devices
from gantx.training import dry_run
from gantx.training.dry_run import Measurements, PeakMeter, peak_bytes
from gantx.training.optimized_network import OptimizedNetwork
from gantx.training.phases import phases

CPU = torch.device("cpu")
MIB, GIB = 2**20, 2**30

# Parameters and GFLOP (forward, one image) of the released networks: G, D, G, D.
RELEASED = {
    "transgan-s": (34_368_939, 12_458_497, 1.61, 1.66),
    "transgan-m": (49_861_859, 12_458_497, 2.71, 1.66),
    "transgan-l": (86_902_611, 12_458_497, 5.76, 1.66),
    "transgan-xl": (133_594_563, 12_458_497, 10.89, 1.66),
    "transgan-xl-released": (133_594_563, 12_458_497, 10.89, 1.66),
    "transgan-stl10": (150_062_931, 12_489_217, 14.56, 3.82),
    "transgan-celeba64": (132_927_219, 12_532_225, 12.99, 7.09),
}

# Parameters of version 2, G and D; CelebA-HQ's G without 20 strengths that the released code never uses.
RELEASED_2 = {
    "transgan2-cifar10": (83_312_495, 10_210_400),
    "transgan2-stl10": (168_466_623, 10_341_536),
    "transgan2-celebahq256": (212_903_275 - 20, 13_334_593),
    "transgan2-church256": (205_291_952, 17_754_569),
}


@pytest.fixture(params=[name for name in presets.preset_names() if name.startswith("transgan-")])
def preset(request):
    return presets.load(request.param)


def networks(preset):
    with torch.device("meta"):
        return models.build(preset.generator), models.build(preset.discriminator)


def test_parameters_of_every_preset(preset):
    generator, discriminator = networks(preset)
    if preset.name == "transgan-tiny":  # no paper: a count made by hand, block by block
        block = 2 * 2 * 96 + 4 * 96**2 + 96 + 8 * 96**2 + 5 * 96  # two norms, qkv and out, MLP
        small = 2 * 2 * 24 + 4 * 24**2 + 24 + 8 * 24**2 + 5 * 24
        tokens = 65 * 64 * 96
        positions = 64 * 96 + 256 * 24
        assert dry_run.parameter_count(generator) == tokens + positions + 2 * block + small + 25 * 12
        rest = 193 * 96 + 96 + 17 * 96 + 2 * 96 + 97  # patches, class token, positions, norm, head
        assert dry_run.parameter_count(discriminator) == 3 * block + rest
        return
    of_generator, of_discriminator, _, _ = RELEASED[preset.name]
    never_called = 2 * preset.generator.base_dim  # a BatchNorm that the released G builds and never calls
    dim = preset.generator.base_dim // 4
    entry = 3 * dim + dim if preset.generator.super_resolution else 0  # ours: how small images come in
    assert dry_run.parameter_count(generator) == of_generator - never_called + entry
    assert dry_run.parameter_count(discriminator) == of_discriminator


@pytest.mark.parametrize("name", RELEASED_2)
def test_parameters_of_version_2(name):
    generator, discriminator = networks(presets.load(name))
    assert (dry_run.parameter_count(generator), dry_run.parameter_count(discriminator)) == RELEASED_2[name]


def test_arithmetic_of_every_preset(preset):
    if preset.name not in RELEASED:
        pytest.skip("no released network to compare with")
    generator, discriminator = networks(preset)
    _, _, generating, discriminating = RELEASED[preset.name]
    assert dry_run.forward_gflop(generator, (1, *generator.latent_shape)) == pytest.approx(
        generating, abs=0.006
    )
    side, dim = preset.data.resolution, preset.discriminator.dim
    # Our last block works for the class token alone: no attention, projection and MLP for the patches.
    patches = (side // preset.discriminator.patch_size) ** 2
    spared = patches * (2 + 16) * dim**2 + 4 * patches * (patches + 1) * dim
    ours = dry_run.forward_gflop(discriminator, (1, 3, side, side))
    assert ours == pytest.approx(discriminating - spared / 1e9, abs=0.006)


def test_steps_are_counted_and_the_window_is_scaled():
    figures = dry_run.sizes(presets.load("transgan-s", overrides=["training.kimg=800"]))
    assert figures["length"] == "800 kimg = 12,500 D steps of 64 images"
    assert figures["generator steps"] == "2,500 of 128 images"
    assert figures["attention window"].startswith("4 until 11 kimg, 6 until 16 kimg")


@pytest.mark.parametrize("family", ["transgan", "transgan2", "vitgan", "stylegan2", "ganformer"])
def test_sizes_of_every_family(family):
    settings = presets.load(
        overrides=[f"generator={{family: {family}}}", f"discriminator={{family: {family}, resolution: 32}}"]
        if family in ("transgan", "transgan2")
        else [
            f"generator={{family: {family}, resolution: 32}}",
            f"discriminator={{family: {family}, resolution: 32}}",
        ]
    )
    figures = dry_run.sizes(settings)
    assert "GiB throughout" in figures["memory"]
    assert "GFLOP" in figures["discriminator"]


ALONE = "discriminator.group_size=1"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), "whole batches"),
        (
            ("training.micro_batch=auto",),
            "auto: on a GPU the largest that fits, found when the run starts; elsewhere whole batches",
        ),
        (
            ("training.micro_batch=2",),
            "2 samples; the spread across a batch that D sees: taken from each micro-batch",
        ),
        (
            ("training.micro_batch=2", "objective.loss=wgangp-eps", ALONE),
            "2 samples; the drift of the loss: taken from each micro-batch",
        ),
        (("training.micro_batch=2", "objective.loss=hinge", ALONE), "2 samples"),
    ],
)
def test_what_micro_batches_do_to_losses(overrides, expected):
    loss = () if any("loss" in text for text in overrides) else ("objective.loss=hinge",)
    assert dry_run.micro_batch_figure(small("stylegan2", "stylegan2", *loss, *overrides)) == expected


# --- memory, estimated on the meta device -----------------------------------------------------------------


def test_tensors_alive_at_the_same_time_are_counted():
    with PeakMeter() as meter:
        a = torch.empty(MIB, device="meta")  # 4 MiB
        b = a + 1
        del a
        c = b * 2
        assert meter.alive == 8 * MIB
        del b, c
    assert meter.peak == 8 * MIB
    assert meter.alive == 0


def test_tensors_made_earlier_are_not_counted():
    weight = torch.empty(MIB, device="meta")
    with PeakMeter() as meter:
        weight.t().add_(1)
    assert meter.peak == 0


def test_what_autograd_keeps_is_alive_and_views_cost_nothing():
    x = torch.empty(MIB, device="meta", requires_grad=True)
    with PeakMeter() as meter:
        y = x.exp().view(-1, 2).sin().sum()  # exp and sin save the same tensor
        assert 4 * MIB <= meter.alive < 5 * MIB
        y.backward()
        del y
        assert meter.alive == 4 * MIB  # the gradient of x
        x.grad = None
    assert meter.alive == 0
    assert 8 * MIB <= meter.peak < 17 * MIB


def peaks_of(*overrides):
    settings = presets.load("transgan-tiny", overrides=overrides)
    with torch.device("meta"):
        networks = models.build(settings.generator), models.build(settings.discriminator)
    optimizers = (settings.optimizer.generator, settings.optimizer.discriminator)
    optimized = [OptimizedNetwork(network, adam) for network, adam in zip(networks, optimizers, strict=True)]
    return {
        phase.name: peak_bytes(phase, settings.data.image_shape) for phase in phases(settings, *optimized)
    }


def test_settings_that_save_memory_save_it_where_they_should():
    wgan = [
        "objective.r1=null",
        "objective.r2=null",
        "objective.loss=wgangp",
        "objective.gradient_penalty={}",
    ]
    plain, halves = peaks_of(), peaks_of("training.micro_batch=8")
    for name in plain:
        # The gradients of the weights stay; the rest halves.
        assert halves[name][0] < plain[name][0]
    assert peaks_of("training.recompute=true")["generator"][0] < 0.8 * plain["generator"][0]
    whole = peaks_of(*wgan)["discriminator"]
    first, penalty = peaks_of(*wgan, "training.penalty_micro_batch=2")["discriminator"]
    assert penalty < first < whole[0]
    assert peaks_of("training.batch=32")["generator"][0] == pytest.approx(2 * plain["generator"][0], rel=0.15)


# --- figures of steps that are tried ----------------------------------------------------------------------


class FakeState:
    """Stands for TrainingState where steps are fakes."""

    def __init__(self, settings, device):
        self.device = device
        self.generator = self.discriminator = self.path_length = None


@pytest.fixture
def steps(monkeypatch):
    """Fake steps: each phase takes a second, and updates take none.

    The machine has 10 GiB. Networks take one, and every sample that is computed at once another.
    """
    intervals = {"discriminator": 1, "r1_every_4": 4, "generator": 1}

    def peak_of(settings, state):
        return GIB + GIB * (settings.training.micro_batch or settings.training.batch)

    def rehearse(settings, state):
        return dict.fromkeys(intervals, 1.0).items()

    fake_phases = [SimpleNamespace(name=name, interval=interval) for name, interval in intervals.items()]
    monkeypatch.setattr(dry_run, "TrainingState", FakeState)
    monkeypatch.setattr(dry_run, "phases", lambda *_: fake_phases)
    monkeypatch.setattr(dry_run, "rehearse", rehearse)
    monkeypatch.setattr(dry_run, "peak_of", peak_of)
    monkeypatch.setattr(dry_run, "_update_seconds", lambda *_: 0.0)
    monkeypatch.setattr(dry_run, "_estimated_peak", lambda settings: 0)
    monkeypatch.setattr(devices, "moment", lambda device: 0.0)
    monkeypatch.setattr(devices, "forget_peak", lambda device: None)
    monkeypatch.setattr(devices, "peak_memory", lambda device: GIB)
    monkeypatch.setattr(devices, "free_memory", lambda device: 9 * GIB)


def measured(*overrides):
    return dry_run.measured(small("transgan", "transgan", *overrides), CPU, lambda text: None)


@pytest.mark.parametrize("family", ["transgan", "transgan2", "vitgan", "stylegan2", "ganformer"])
def test_every_family_is_tried(family, monkeypatch):
    monkeypatch.setattr(dry_run, "ITERATIONS", 2)
    path = "objective.path_length={weight: 2, every: 2, shrink: 2}"
    penalties = ("objective.r1={gamma: 1, every: 4}", *([path] if family == "ganformer" else []))
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    figures = dry_run.measured(small(family, family, *penalties), CPU, lambda text: None)
    assert figures["fits"].startswith("whole batches, ")
    assert figures["speed"].endswith("images/s on cpu (fp32, 1 thread) in 2 iterations")
    assert float(figures["speed"].split()[0].replace(",", "")) > 0
    assert figures["time"].endswith("for 0.008 kimg, beside pictures, checkpoints and scores")
    assert torch.get_num_threads() == threads
    assert torch.are_deterministic_algorithms_enabled() == deterministic


def test_whole_batches_are_measured_if_they_fit(steps):
    assert measured()["fits"] == "whole batches, 5.00 of 10.00 GiB on cpu at the peak"


def test_the_largest_micro_batch_that_fits_is_named_and_the_memory_of_whole_batches(steps):
    figures = measured("training.batch=32")
    assert figures["fits"] == (
        "8 samples at once, 9.00 of 10.00 GiB on cpu at the peak; whole batches would take about 33.00 GiB "
        "(training.micro_batch)"
    )
    assert ", 8 samples at once) in 20 iterations" in figures["speed"]


def test_the_micro_batch_of_the_run_is_timed(steps):
    assert "(fp32, 1 thread, 2 samples at once)" in measured("training.micro_batch=2")["speed"]


def test_a_run_that_cannot_fit_is_not_tried(monkeypatch):
    monkeypatch.setattr(devices, "free_memory", lambda device: 0)
    monkeypatch.setattr(dry_run, "TrainingState", None)
    figures = measured()
    assert figures.keys() == {"fits"}
    assert "not even one sample at once" in figures["fits"]
    assert "smaller preset" in figures["fits"]


@pytest.mark.parametrize(("largest", "expected"), [(2, "2 samples at once"), (0, "not even one sample")])
def test_running_out_of_memory_ends_the_search(steps, monkeypatch, largest, expected):
    """Larger micro-batches run out of memory although the extrapolation said that they fit."""
    peak_of = dry_run.peak_of

    def limited(settings, state):
        if (settings.training.micro_batch or 4) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return peak_of(settings, state)

    monkeypatch.setattr(dry_run, "peak_of", limited)
    figures = measured()
    assert figures["fits"].startswith(expected)
    assert ("speed" in figures) == (largest > 0)


def test_without_patience_the_smallest_is_tried_once_and_the_rest_extrapolated(steps, monkeypatch):
    moments = itertools.count()
    monkeypatch.setattr(devices, "moment", lambda device: float(next(moments)))
    monkeypatch.setattr(dry_run, "PATIENCE", 0.0)
    figures = measured()
    assert figures["fits"] == "whole batches, about 5.00 of 10.00 GiB on cpu at the peak"
    assert figures["speed"].endswith("1 sample at once) in 1 iteration")


def test_lazy_phases_count_with_their_share(steps):
    """Each phase takes a second: four iterations of D, G and a penalty every four take nine."""
    figures = measured("objective.loss=hinge", "objective.r1={gamma: 1, every: 4}", "training.kimg=4")
    assert figures["speed"].startswith(f"{4 / 2.25:.3g} images/s")
    assert figures["time"].startswith("37m30 ")  # 1000 iterations


def test_memory_of_larger_micro_batches_is_extrapolated_linearly():
    results = Measurements(CPU, {0: 100, 2: 120, 4: 160}, 400, (2, 4, 8, 16), 4, 20, 1.0)
    assert [results.expected(size) for size in results.sizes] == [120, 160, 240, 400]
    assert [results.fits(size) for size in results.sizes] == [True, True, True, False]
