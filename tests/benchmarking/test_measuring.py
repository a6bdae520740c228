"""What `gantx bench` measures: the loop as it trains, the way to a file, the way to features."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.small_run import SMALL

from gantx.benchmarking import sampling, scoring, training
from gantx.benchmarking.machine import measuring
from gantx.config import presets
from gantx.errors import MissingError, UsageError
from gantx.training import steps

CPU = torch.device("cpu")


def small(*overrides):
    return presets.load(overrides=[*SMALL, *overrides])


def quiet(line):
    pass


@pytest.fixture(scope="module")
def trained():
    """Figures of the small run, and what the process looked like around it."""
    threads = torch.get_num_threads()
    strict = torch.are_deterministic_algorithms_enabled()
    said = []
    figures = training.measure(small(), CPU, steps=1, log=said.append)
    assert torch.get_num_threads() == threads
    assert torch.are_deterministic_algorithms_enabled() == strict
    return figures, said


def test_training_counts_whole_periods_of_lazy_steps(trained):
    figures, said = trained
    assert figures.iterations == 6  # G every second iteration, R1 every third
    assert any("6 iterations" in line for line in said)
    assert figures.images_per_second == pytest.approx(8000 / figures.iteration_milliseconds)


def test_training_measures_every_stage_of_the_recipe(trained):
    figures, _ = trained
    assert [(phase.name, phase.every, phase.batch) for phase in figures.stages] == [
        ("discriminator", 1, 8),
        ("r1_every_3", 3, 8),
        ("generator", 2, 8),
    ]
    assert all(phase.milliseconds > 0 for phase in figures.stages)


def test_shares_of_the_ceiling_follow_from_times_and_operations(trained):
    figures, _ = trained
    for phase in figures.stages:
        assert phase.teraflops == pytest.approx(phase.gflop / phase.milliseconds)
        assert phase.share_of_ceiling == pytest.approx(phase.teraflops / figures.ceiling_teraflops)
    needed = sum(phase.gflop / phase.every for phase in figures.stages)
    assert figures.teraflops == pytest.approx(needed / figures.iteration_milliseconds)
    assert figures.share_of_ceiling == pytest.approx(figures.teraflops / figures.ceiling_teraflops)


def test_a_cpu_says_nothing_of_gaps_and_does_not_compile_on_its_own(trained):
    figures, _ = trained
    assert figures.idle_share is None
    assert figures.compiled is False
    assert figures.machine.device == "cpu"
    assert figures.machine.threads == 1


@pytest.mark.parametrize("wanted", ["on", "off"])
def test_the_stages_that_run_are_compiled_if_asked(monkeypatch, wanted):
    run = []

    def compiled(phases, settings, *, log, required, working):
        assert required  # what is not compiled must not be told as compiled
        assert settings.training.compile is (wanted == "on")
        return [
            dataclasses.replace(phase, update_state=lambda updates: run.append("compiled"))
            for phase in phases
        ]

    monkeypatch.setattr(steps, "compiled", compiled)
    figures = training.measure(small(f"training.compile={wanted}"), CPU, steps=1, log=quiet)
    assert figures.compiled is (wanted == "on")
    assert run


def test_the_attention_window_is_open(monkeypatch):
    windows = []
    iterate = training.Trainer.iterate

    def looking(run, count):
        spans = iterate(run, count)
        windows.append(run._state.generator.network.attention_window)
        return spans

    monkeypatch.setattr(training.Trainer, "iterate", looking)
    training.measure(small(), CPU, steps=1, log=quiet)
    assert windows
    assert set(windows) == {None}


def test_generation_goes_all_the_way_to_a_file(monkeypatch):
    files = []
    save = sampling.imaging.save_images

    def saved(path, *arguments):
        save(path, *arguments)
        files.append(np.load(path, mmap_mode="r").shape)

    monkeypatch.setattr(sampling.imaging, "save_images", saved)
    figures = sampling.measure(small(), CPU, batch=8, number=20, log=quiet)
    assert files[-1] == (20, 8, 8, 3)
    assert figures.number == 20
    assert figures.file_images_per_second == pytest.approx(20 / figures.file_seconds)
    share = figures.file_images_per_second / figures.generator_images_per_second
    assert figures.share_of_generator == pytest.approx(share)


def test_a_conditional_generator_is_measured_with_its_classes():
    small_one = ["conditioning.classes=3", "generator.width=8", "evaluation.features=random"]
    settings = presets.load("implicit-tiny", overrides=small_one)
    assert sampling.measure(settings, CPU, batch=8, number=20, log=quiet).file_images_per_second > 0
    assert scoring.measure(settings, CPU, batch=8, log=quiet).generator_images_per_second > 0


def test_generation_takes_the_batch_of_sampling_unless_told():
    assert sampling.measure(small(), CPU, batch=None, number=8, log=quiet).batch == 64


def test_scoring_with_the_random_network_resizes_nothing():
    settings = small("evaluation.features=random", "evaluation.num=100")
    figures = scoring.measure(settings, CPU, batch=8, log=quiet)
    assert figures.resizing_images_per_second is None
    rates = (figures.generator_images_per_second, figures.features_images_per_second)
    assert 1 / figures.images_per_second == pytest.approx(sum(1 / rate for rate in rates))
    assert figures.seconds == pytest.approx(100 / figures.images_per_second)


def test_scoring_with_inception_needs_no_file():
    figures = scoring.measure(small("evaluation.num=100"), CPU, batch=1, log=quiet)
    assert figures.features == "inception"
    assert figures.features_images_per_second < figures.resizing_images_per_second


def test_an_unknown_feature_network_is_the_users_error():
    with pytest.raises(UsageError, match="no features 'vgg'"):
        scoring.measure(small("evaluation.features=vgg"), CPU, batch=1, log=quiet)


def test_too_little_memory_is_told_in_a_sentence():
    with pytest.raises(MissingError, match=r"batches of 64.*--batch"), measuring(CPU, 1, 64):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
