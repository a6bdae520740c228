"""Steps can be replayed: recorded on the CPU and run again on the same storages, they train the same run."""

import contextlib
import json

import pytest
import torch
from helpers.recorded_operations import RecordedOperations
from helpers.small_families import small
from helpers.small_run import SMALL
from helpers.training_settings import PRESETS
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from gantx import checkpoint
from gantx.benchmarking.launches import LaunchCounter
from gantx.config import presets
from gantx.data.batches import Batches
from gantx.data.prepare import prepare
from gantx.errors import MissingError
from gantx.training import run, run_logger, steps
from gantx.training.state import TrainingState

CPU = torch.device("cpu")
LONG = ("training.kimg=0.028", "training.checkpoint_kimg=0.028")  # seven iterations of four images


def train(folder, settings, capture=None, monkeypatch=None):
    """The last checkpoint's tensors and the lines of metrics of a run, replayed if `capture` is given."""
    if capture is not None:
        monkeypatch.setattr(steps, "capture_for", lambda settings, device: capture)
    folder = run.start(settings, parent=folder, out=folder, device=CPU, command=["gantx"], log=print)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = {"seconds", "images_per_second", "memory_gb"}
    kept = [{key: value for key, value in line.items() if key not in timed} for line in lines]
    return load_file(checkpoint.latest_in(folder / "checkpoints")), kept


def same(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])] == []


def run_twice(tmp_path, monkeypatch, settings):
    plain, lines = train(tmp_path / "plain", settings)
    capture = RecordedOperations()
    replayed, lines_again = train(tmp_path / "replayed", settings, capture, monkeypatch)
    assert capture.replayed > capture.warmed_up > 0
    assert same(plain, replayed)
    assert lines == lines_again
    assert "not replayed" not in (tmp_path / "replayed" / "train.log").read_text()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_replayed_run_is_the_plain_run_to_the_bit(preset, tmp_path, monkeypatch):
    run_twice(tmp_path, monkeypatch, small(*PRESETS[preset], *LONG, "training.compile=off"))


def test_a_replayed_conditional_run_is_the_plain_run_to_the_bit(tmp_path, monkeypatch):
    more = ("training.compile=off", "conditioning={classes: auto, dropout: 0.2}")
    run_twice(tmp_path, monkeypatch, small(*PRESETS["transgan-s"], *LONG, *more))


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param("transgan-tiny", marks=pytest.mark.slow),
        pytest.param("vitgan-cifar10", marks=pytest.mark.slow),
        pytest.param("stylegan2-ffhq", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_run_can_be_replayed(preset, tmp_path, monkeypatch, quick_backend):
    run_twice(tmp_path, monkeypatch, small(*PRESETS[preset], *LONG, "training.compile=on"))
    assert quick_backend() > 0


def test_a_replayed_run_resumes_with_the_same_bits(tmp_path, monkeypatch):
    settings = presets.load(
        overrides=[*SMALL, "training.kimg=0.064", "training.attention_window=null"],
        settings={"data.source": "shapes"},
    )
    plain, _ = train(tmp_path / "plain", settings)
    half = settings.model_copy(update={"training": settings.training.model_copy(update={"kimg": 0.032})})
    train(tmp_path / "broken", half, RecordedOperations(), monkeypatch)
    longer = {"training.kimg": 0.064}
    run.resume(tmp_path / "broken", changes=longer, overrides=[], device=CPU, command=["gantx"], log=print)
    assert same(plain, load_file(checkpoint.latest_in(tmp_path / "broken" / "checkpoints")))


# --- what a step runs -------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Every operation with its numbers, and with which lasting storages it works."""

    def __init__(self, lasting=()):
        super().__init__()
        self.lasting = {tensor.untyped_storage().data_ptr(): place for place, tensor in enumerate(lasting)}
        self.seen = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        leaves, _ = tree_flatten((args, kwargs or {}))
        self.seen.append(
            (
                str(operation),
                *(
                    self.lasting.get(leaf.untyped_storage().data_ptr(), "made within")
                    if isinstance(leaf, torch.Tensor)
                    else str(leaf)
                    for leaf in leaves
                ),
            )
        )
        return operation(*args, **(kwargs or {}))


@contextlib.contextmanager
def steps_of(*settings):
    """State, steps and images of a run at its start."""
    settings = small(*settings)
    state = TrainingState(settings, CPU)
    state.set_attention_window(2 if settings.training.attention_window else None)
    prepared = prepare(settings.data, log=lambda line: None)
    batches = Batches(prepared, seed=0, mirror=True, device=CPU, resident="device")
    yield settings, state, steps.build_steps(settings, state, log=print), batches


def load(step, batches, iteration):
    positions = dict.fromkeys(step.phase.reals, iteration * step.phase.batch)
    step.load(batches, positions, seed=0, iteration=iteration)


@pytest.mark.parametrize("preset", ["transgan-s", "vitgan-cifar10", "stylegan2-ffhq", "conditional"])
def test_consecutive_steps_run_the_same_operations_on_the_same_storages(preset):
    conditional = (*PRESETS["stylegan2-ffhq"], "conditioning={classes: 18, dropout: 0.1}")
    with steps_of(*PRESETS.get(preset, conditional)) as (_, state, made, batches):
        lasting = [
            *(state.generator.weights, state.generator.gradient, state.generator.buffers),
            *(state.discriminator.weights, state.discriminator.gradient, state.discriminator.buffers),
            *(state.average.weights, state.path_length, *state.generator.moments.values()),
        ]
        for step in made.steps:
            load(step, batches, 0)
            step()  # makes the sums of its statistics
            runs = []
            for iteration in (1, 2):
                state.set_learning_rates(1 / (1 + iteration))
                load(step, batches, iteration)
                with Operations([*lasting, *step.inputs]) as operations:
                    step()
                runs.append(operations.seen)
            assert len(runs[0]) > 50
            assert runs[0] == runs[1]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_host_launches_little_outside_of_a_step(preset):
    with steps_of(*PRESETS[preset]) as (_, _, made, batches):
        for step in made.steps:
            load(step, batches, 0)  # orders the images of the epoch
            with LaunchCounter() as outside:
                step.phase.trained.set_learning_rate(0.5)
                load(step, batches, 1)
            assert 0 < outside.total <= 12, outside.launches


# --- an optimisation that fails is no failure of the run ----------------------------------------------------


class FailingCapture(RecordedOperations):
    def __call__(self, work):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")


class WrongCapture(RecordedOperations):
    def __call__(self, work):
        return lambda: None


@pytest.mark.parametrize(
    ("capture", "reason"),
    [(FailingCapture, "capturing failed (RuntimeError: CUDA error"), (WrongCapture, "gives other numbers (")],
)
def test_a_run_goes_on_without_replay(capture, reason, tmp_path, monkeypatch):
    quick = "ema={kind: constant, beta: 0.5}"  # an average that moves visibly
    settings = small(*PRESETS["transgan-tiny"], *LONG, quick, "training.compile=off")
    plain, lines = train(tmp_path / "plain", settings)
    found, lines_again = train(tmp_path / "failing", settings, capture(), monkeypatch)
    assert same(plain, found)
    assert lines == lines_again
    log = (tmp_path / "failing" / "train.log").read_text()
    assert log.count("is not replayed") == 4  # D, its penalties, G, the average
    assert reason in log
    assert "please report" in log


def test_a_run_goes_on_where_a_step_has_no_memory_beside_captured_ones(tmp_path, monkeypatch):
    """The weights have moved already, and move once."""
    settings = small(*PRESETS["transgan-tiny"], *LONG, "training.compile=off")
    plain, lines = train(tmp_path / "plain", settings)
    capture, run_phase = RecordedOperations(), steps.run_phase

    def limited(phase, *given):
        names = run_phase(phase, *given)
        if capture.captured and not capture.released and phase.name.startswith("g"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return names

    monkeypatch.setattr(steps, "run_phase", limited)
    found, lines_again = train(tmp_path / "crowded", settings, capture, monkeypatch)
    assert capture.released
    assert same(plain, found)
    assert lines == lines_again
    log = (tmp_path / "crowded" / "train.log").read_text()
    assert log.count("is not replayed: memory ran out") == 1


def test_a_picture_gets_the_memory_of_captured_steps(tmp_path, monkeypatch):
    settings = small(*PRESETS["transgan-tiny"], *LONG, "training.compile=off", "training.sample_kimg=0.012")
    plain, lines = train(tmp_path / "plain", settings)
    capture, save = RecordedOperations(), run_logger.imaging.save_images

    def limited(*given):
        if capture.captured and not capture.released:
            raise MissingError("too little memory for 64 images at once") from torch.OutOfMemoryError(
                "CUDA out of memory"
            )
        save(*given)

    monkeypatch.setattr(run_logger.imaging, "save_images", limited)
    found, lines_again = train(tmp_path / "crowded", settings, capture, monkeypatch)
    assert same(plain, found)
    assert lines == lines_again
    assert len(list((tmp_path / "crowded" / "samples").iterdir())) == 3
    log = (tmp_path / "crowded" / "train.log").read_text()
    assert log.count("memory ran out beside captured steps") == 1


def test_replay_that_was_asked_for_is_an_error_where_it_fails(tmp_path, monkeypatch):
    settings = small(*PRESETS["transgan-tiny"], *LONG, "training.compile=off", "training.cuda_graphs=on")
    with pytest.raises(MissingError, match=r"cannot be replayed: capturing failed .*training\.cuda_graphs"):
        train(tmp_path / "run", settings, FailingCapture(), monkeypatch)
