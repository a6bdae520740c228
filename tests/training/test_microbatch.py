"""A micro-batch of `auto` is the largest that fits, and finding it changes nothing."""

from types import SimpleNamespace

import pytest
import torch
from helpers.small_families import small
from safetensors.torch import load_file

from gantx import checkpoint
from gantx.config import presets
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
    microbatch.rehearse(settings, state)
    for name, value in untouched.tensors().items():
        assert torch.equal(state.tensors()[name], value), name
    assert state.tensors().keys() == untouched.tensors().keys()
    assert not state.generator.gradient.any()
    assert not state.discriminator.gradient.any()


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
