"""A dry run tells what fits and how long it takes, from steps that were tried."""

import pytest
import torch
from helpers.small_families import small

from gantx.runtime import devices
from gantx.training import microbatch, probing
from gantx.training.probing import Probe

CPU = torch.device("cpu")
GIB = 2**30


@pytest.fixture
def memory(monkeypatch):
    """A machine of 10 GiB where networks take one, and every sample that is computed at once another."""
    used = {"now": 0}
    rehearse = microbatch.rehearse

    def rehearsed(settings, state):
        used["now"] = GIB + GIB * (settings.training.micro_batch or settings.training.batch)
        return rehearse(settings, state)

    monkeypatch.setattr(probing, "rehearse", rehearsed)
    monkeypatch.setattr(devices, "forget_peak", lambda device: used.update(now=GIB))
    monkeypatch.setattr(devices, "memory_gb", lambda device: used["now"] / GIB)
    monkeypatch.setattr(devices, "free_memory", lambda device: 9 * GIB)
    return used


def probe(*overrides):
    return probing.probe(small("transgan", "transgan", *overrides), CPU, lambda text: None)


@pytest.mark.parametrize("family", ["transgan", "transgan2", "vitgan", "stylegan2", "ganformer"])
def test_every_family_is_tried(family, monkeypatch):
    monkeypatch.setattr(probing, "ITERATIONS", 2)
    path = "objective.path_length={weight: 2, every: 2, shrink: 2}"
    penalties = ("objective.r1={gamma: 1, every: 4}", *([path] if family == "ganformer" else []))
    figures = probing.probe(small(family, family, *penalties), CPU, lambda text: None)
    assert figures["fits"].startswith("whole batches, ")
    assert figures["speed"].endswith("images/s on cpu (fp32, 1 thread) in 2 iterations")
    assert float(figures["speed"].split()[0].replace(",", "")) > 0
    assert figures["time"].endswith("for 0.008 kimg, beside pictures, checkpoints and scores")


def test_whole_batches_are_measured_where_they_fit(memory):
    assert probe()["fits"] == "whole batches, 5.00 of 10.00 GiB on cpu at the peak"


def test_the_largest_that_fits_is_named_and_what_the_rest_would_take(memory):
    figures = probe("training.batch=32")
    assert figures["fits"] == (
        "8 samples at once, 9.00 of 10.00 GiB on cpu at the peak; whole batches would take about 33.00 GiB "
        "(training.micro_batch)"
    )
    assert ", 8 samples at once) in 20 iterations" in figures["speed"]


def test_the_micro_batch_of_the_run_is_timed(memory):
    assert "(fp32, 1 thread, 2 samples at once)" in probe("training.micro_batch=2")["speed"]


def test_a_run_that_cannot_fit_is_not_tried(monkeypatch):
    monkeypatch.setattr(devices, "free_memory", lambda device: 0)
    monkeypatch.setattr(probing, "TrainingState", None)
    figures = probe()
    assert figures.keys() == {"fits"}
    assert "not even one sample at once" in figures["fits"]
    assert "smaller preset" in figures["fits"]


@pytest.mark.parametrize(("held", "expected"), [(1, "2 samples at once"), (0, "not even one sample")])
def test_memory_that_runs_out_ends_the_climb(memory, monkeypatch, held, expected):
    """Whole batches, or anything at all, run out of memory although the line foretold that they fit."""
    rehearsed = probing.rehearse

    def limited(settings, state):
        if (settings.training.micro_batch or 4) > 2 * held:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rehearsed(settings, state)

    monkeypatch.setattr(probing, "rehearse", limited)
    figures = probe()
    assert figures["fits"].startswith(expected)
    assert ("speed" in figures) == bool(held)


def test_impatience_stops_at_the_smallest_and_foretells_the_rest(memory, monkeypatch):
    monkeypatch.setattr(probing, "PATIENCE", 0.0)
    figures = probe()
    assert figures["fits"] == "whole batches, about 5.00 of 10.00 GiB on cpu at the peak"
    assert figures["speed"].endswith("1 sample at once) in 1 iteration")


def test_lazy_steps_count_with_their_share(memory, monkeypatch):
    """Each rehearsed phase takes a second: four iterations of D, G and a penalty every four take nine."""
    monkeypatch.setattr(
        probing, "rehearse", lambda *_: dict.fromkeys(("discriminator", "r1_every_4", "generator"), 1.0)
    )
    monkeypatch.setattr(probing, "_update", lambda *_: 0.0)
    figures = probe("objective.loss=hinge", "objective.r1={gamma: 1, every: 4}", "training.kimg=4")
    assert figures["speed"].startswith(f"{4 / 2.25:.3g} images/s")
    assert figures["time"].startswith("37m30 ")  # 1000 iterations


def test_memory_beyond_what_was_tried_lies_on_a_line():
    found = Probe(CPU, {0: 100, 2: 120, 4: 160}, 400, (2, 4, 8, 16), 4, 20, 1.0)
    assert [found.expected(size) for size in found.sizes] == [120, 160, 240, 400]
    assert [found.fits(size) for size in found.sizes] == [True, True, True, False]


def test_the_process_is_as_before():
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    probe()
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
