"""A micro-batch of `auto` is the largest that fits, and finding it changes nothing."""

from types import SimpleNamespace

import pytest
import torch
from helpers.small_families import small
from safetensors.torch import load_file

from gantx import checkpoint
from gantx.config import presets
from gantx.runtime import devices
from gantx.training import microbatch, run
from gantx.training.state import TrainingState

CPU = torch.device("cpu")
AUTO = "training.micro_batch=auto"


@pytest.mark.parametrize(
    ("batch", "of_generator", "memory", "expected"),
    [
        (16, 16, 100, None),  # whole batches
        (16, 16, 8, 8),
        (16, 16, 7, 4),
        (16, 32, 20, 16),  # D in one piece, G in two
        (16, 32, 16, 16),
        (12, 12, 5, 3),  # 6 is the half of 12, then 3
        (24, 16, 3, 2),  # divides both
    ],
)
def test_the_largest_that_fits(batch, of_generator, memory, expected):
    settings = small(
        "transgan", "transgan", AUTO, f"training.batch={batch}", f"training.generator_batch={of_generator}"
    )

    def fits(tried):
        return (tried.training.micro_batch or max(batch, of_generator)) <= memory

    assert microbatch.largest(settings, fits).training.micro_batch == expected


def test_too_little_memory_for_one_sample():
    assert microbatch.largest(small("transgan", "transgan", AUTO), lambda tried: False) is None


def test_micro_batches_that_do_not_divide_the_batch_of_path_lengths_are_passed_over():
    penalty = "objective.path_length={weight: 2, every: 2, shrink: 4}"
    settings = small("stylegan2", "stylegan2", AUTO, "training.batch=24", penalty)  # path lengths: 6
    fitting_sizes = []

    def fits(tried):
        fitting_sizes.append(tried.training.micro_batch)
        return False

    assert microbatch.largest(settings, fits) is None
    assert fitting_sizes == [None, 12, 6, 3, 1]


@pytest.mark.parametrize("family", ["transgan2", pytest.param("ganformer", marks=pytest.mark.slow)])
def test_a_rehearsal_leaves_no_trace(family):
    settings = small(family, family, "objective.r1={gamma: 1, every: 4}")
    state, untouched = TrainingState(settings, CPU), TrainingState(settings, CPU)
    assert all(seconds > 0 for _, seconds in microbatch.rehearse(settings, state))
    for name, value in untouched.tensors().items():
        assert torch.equal(state.tensors()[name], value), name
    assert state.tensors().keys() == untouched.tensors().keys()
    assert not state.generator.gradient.any()
    assert not state.discriminator.gradient.any()


def gpu(monkeypatch, usable, by_phase):
    """A GPU with so many bytes, of which a run keeps 100 and each phase takes some for each sample."""
    peak = {"now": 100}

    def rehearse(tried, state):
        for name, of_a_sample in by_phase.items():
            peak["now"] = 100 + of_a_sample * (tried.training.micro_batch or tried.training.batch)
            yield name, 1.0

    if by_phase:
        monkeypatch.setattr(microbatch, "rehearse", rehearse)
    monkeypatch.setattr(devices, "peak_memory", lambda device: peak["now"] if by_phase else 0)
    monkeypatch.setattr(devices, "forget_peak", lambda device: peak.update(now=100))
    monkeypatch.setattr(devices, "free_unused", lambda device: None)
    monkeypatch.setattr(devices, "free_memory", lambda device: usable - 100)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    return SimpleNamespace(device=torch.device("cuda:0"))


@pytest.mark.parametrize(("graphs", "expected"), [("off", 100 + 4 * 50), ("on", 100 + 4 * (50 + 30))])
def test_with_cuda_graphs_the_two_largest_phases_take_memory_together(graphs, expected, monkeypatch):
    settings = small("transgan", "transgan", f"training.cuda_graphs={graphs}")
    state = gpu(monkeypatch, 1000, {"discriminator": 50, "penalty": 20, "generator": 30})
    assert microbatch.peak_of(settings, state) == expected


@pytest.mark.parametrize(("graphs", "expected"), [("off", None), ("on", 2)])
def test_a_tenth_of_the_memory_stays_free(graphs, expected, monkeypatch):
    settings = small("transgan", "transgan", AUTO, f"training.cuda_graphs={graphs}")
    state = gpu(monkeypatch, 340, {"discriminator": 50, "generator": 50})  # 300, with graphs 500
    resolved = microbatch.resolve_micro_batch(settings, state, print)
    assert resolved.training.micro_batch == expected


def test_memory_that_runs_out_in_any_step_is_noticed(monkeypatch):
    """Steps of more than two samples do not fit here, as if this were a GPU."""
    settings = small("transgan", "transgan", AUTO)
    state = TrainingState(settings, CPU)
    network = state.discriminator.network
    forward = network.forward

    def limited(images, *rest, **named):
        if len(images) > 2 * 2:  # D sees reals and fakes at once
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(images, *rest, **named)

    rehearse = microbatch.rehearse
    monkeypatch.setattr(network, "forward", limited)
    monkeypatch.setattr(microbatch, "rehearse", lambda tried, elsewhere: rehearse(tried, state))
    gpu(monkeypatch, usable=1, by_phase={})
    said = []
    fitted = microbatch.resolve_micro_batch(
        settings, SimpleNamespace(device=torch.device("cuda:0")), said.append
    )
    assert fitted.training.micro_batch == 2
    assert said == [
        "trying which micro-batch fits into the memory of cuda:0",
        "micro-batch: 2, what fits into the memory of cuda:0",
    ]


def test_a_run_on_a_cpu_takes_whole_batches_and_resumes(tmp_path):
    settings = small("transgan", "transgan", AUTO)
    folder = run.start(
        settings, parent=tmp_path, out=tmp_path / "run", device=CPU, command=["gantx"], log=print
    )
    header = checkpoint.read_header(checkpoint.latest_in(folder / "checkpoints"))
    assert header.config.training.micro_batch is None
    assert presets.load(files=[folder / "config.yaml"]).training.micro_batch is None
    run.resume(
        folder, changes={"training.kimg": 0.016}, overrides=[], device=CPU, command=["gantx"], log=print
    )
    assert load_file(checkpoint.latest_in(folder / "checkpoints"))
