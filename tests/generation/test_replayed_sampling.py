"""Images by a replayed graph are those without, whatever becomes of the graph; on the CPU by a stand-in."""

import copy
import gc
import weakref

import pytest
import torch
from helpers.recorded_operations import RecordedOperations
from helpers.small_families import GENERATORS, small
from helpers.styled_networks import SECTIONS, save_styled, styled
from typer.testing import CliRunner

import gantx
from gantx import models
from gantx.cli import app
from gantx.generation import sampling
from gantx.generation.sampling import REPLAYED_FROM, BatchRunner, capture_on
from gantx.generation.truncation import Truncation
from gantx.runtime import devices

CPU = torch.device("cpu")
SEEDS = [*range(100, 160), 3]  # 8 batches of 8, the last of them short


@pytest.fixture
def capture(monkeypatch):
    """Work is captured on the CPU."""
    made = RecordedOperations()
    monkeypatch.setattr(sampling, "capture_on", lambda device: made)
    return made


def generator_of(family):
    """With noise that counts, where there is any."""
    if family in SECTIONS:
        return styled(family)
    torch.manual_seed(0)
    return models.build(small(family, "transgan").generator).eval().requires_grad_(False)


def generate(generator, seeds=SEEDS, **how):
    return list(sampling.generate(generator, seeds, batch=8, device=CPU, **how))


def plainly(monkeypatch, work):
    with monkeypatch.context() as here:
        here.setattr(sampling, "capture_on", lambda device: None)
        return work()


def equal(found, expected):
    return [len(images) for images in found] == [len(images) for images in expected] and all(
        torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("family", GENERATORS)
def test_replayed_images_of_every_family_are_the_same_to_the_last_bit(family, capture, monkeypatch):
    generator, said = generator_of(family), []
    assert (family in ("stylegan2", "ganformer")) == bool(generator.noise_spec(1))
    ways = [{}, {"ratio": 0.5}]
    if family in SECTIONS:
        ways += [{"truncation": Truncation(0.7)}, {"truncation": Truncation(0.3, 2)}]
    for done, how in enumerate(ways, 1):
        found = generate(generator, log=said.append, **how)
        assert equal(found, plainly(monkeypatch, lambda how=how: generate(generator, **how)))
        assert [len(images) for images in found] == [8] * 7 + [5]
        assert (len(capture.captured), capture.replayed) == (done, 6 * done)
    assert not said


@pytest.mark.parametrize("family", SECTIONS)
def test_so_are_images_of_latents_and_of_styles(family, capture, monkeypatch):
    generator = styled(family)
    latents = torch.randn(50, *generator.latent_shape)
    for given in (latents, generator.mapping(latents)):
        for truncation in (None, Truncation(0.7, 1)):

            def generate(given=given, truncation=truncation):
                how = {"batch": 8, "device": CPU, "truncation": truncation}
                return list(sampling.from_latents(generator, given, **how))

            before = given.clone()
            assert equal(generate(), plainly(monkeypatch, generate))
            assert torch.equal(given, before)
    assert len(capture.captured) == 4


def test_quantised_images_are_not_written_over(capture, monkeypatch):
    generator = styled("stylegan2")

    def generate():
        return list(sampling.sample(generator, SEEDS, batch=8, device=CPU, ratio=0.5))

    assert equal(generate(), plainly(monkeypatch, generate))
    assert capture.replayed == 6


def test_a_generator_whose_weights_move_is_captured_anew(capture, monkeypatch):
    generator = styled("vitgan")
    first = generate(generator)
    for parameter in generator.parameters():
        parameter.mul_(1.1)
    second = generate(generator)
    assert not equal(first, second)
    assert equal(second, plainly(monkeypatch, lambda: generate(generator)))


def test_a_few_batches_are_not_worth_it(capture):
    generator = styled("vitgan")
    sizes = []
    forward = generator.synthesis
    generator.synthesis = lambda ws, noise=None: sizes.append(len(ws)) or forward(ws, noise)
    few = REPLAYED_FROM - 1
    assert len(torch.cat(generate(generator, range(8 * few - 7)))) == 8 * few - 7
    list(sampling.generate(generator, range(50), batch=50, device=CPU))
    assert not capture.captured
    assert sizes == [8] * few + [56]


def test_on_the_cpu_nothing_is_captured():
    assert capture_on(CPU) is None
    runner = BatchRunner(lambda draws: draws["z"], CPU, batches=1000)
    assert not runner.replays
    draws = {"z": torch.zeros(8)}
    assert runner(draws) is draws["z"], "nothing is copied"


class Uncapturable(RecordedOperations):
    def __call__(self, work):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nwith details")


class Wrong(RecordedOperations):
    """Replays the first images, whatever is asked for."""

    def __call__(self, work):
        work()
        return lambda: None


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Uncapturable, "capturing failed (RuntimeError: CUDA error: operation not permitted when stream is "
                       "capturing)"),
        (Wrong, "a replay gives other numbers (images)"),
    ],
)  # fmt: skip
def test_a_graph_that_fails_costs_a_line_and_no_image(kind, reason, monkeypatch, caplog):
    generator, said = styled("ganformer"), []
    expected = plainly(monkeypatch, lambda: generate(generator))
    monkeypatch.setattr(sampling, "capture_on", lambda device: kind())
    assert equal(generate(generator, log=said.append), expected)
    (line,) = said
    assert line.startswith(f"sampling is not replayed: {reason}. ")
    assert not caplog.messages
    assert equal(generate(generator), expected)
    assert caplog.messages == [line], "who does not say where gets it from the logger"


def test_a_generator_that_waits_for_the_device_still_generates(capture, monkeypatch):
    generator, said = styled("vitgan"), []
    forward = generator.synthesis
    generator.synthesis = lambda ws, noise=None: forward(ws, noise) * (1 if ws.sum().item() < 1e9 else 0)
    found = generate(generator, log=said.append)
    assert equal(found, plainly(monkeypatch, lambda: generate(generator)))
    assert len(said) == 1
    assert "capturing failed" in said[0]


def test_the_command_says_it_and_generates(tmp_path, monkeypatch):
    file = save_styled(tmp_path / "run", "vitgan")

    def run(output, *more):
        arguments = ["sample", file, "-n", 50, "--batch", 8, "-o", output, "--device", "cpu", *more]
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    assert run(tmp_path / "plain.npy").exit_code == 0
    monkeypatch.setattr(sampling, "capture_on", lambda device: Uncapturable())
    result = run(tmp_path / "fallen.npy")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("sampling is not replayed: capturing failed") == 1
    assert result.stdout.strip() == str(tmp_path / "fallen.npy")
    monkeypatch.setattr(sampling, "capture_on", lambda device: RecordedOperations())
    result = run(tmp_path / "replayed.npy")
    assert result.exit_code == 0, result.output
    assert not result.stderr
    images = [(tmp_path / f"{name}.npy").read_bytes() for name in ("plain", "fallen", "replayed")]
    assert images[0] == images[1] == images[2]


def test_a_model_replays_too(tmp_path, capture, monkeypatch):
    model = gantx.load(save_styled(tmp_path, "stylegan2"), device="cpu")
    how = {"seeds": range(48), "batch": 8, "truncation": 0.7}
    found = model.sample(**how)
    assert capture.replayed == 4
    assert torch.equal(found, plainly(monkeypatch, lambda: model.sample(**how)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("family", GENERATORS)
def test_a_gpu_replays(family, compiling, monkeypatch):
    device = devices.pick_device("cuda")
    generator = copy.deepcopy(generator_of(family)).to(device)
    if compiling:
        torch.compiler.reset()
        generator = sampling.compiled(generator)
    ways = [{}] + [{"truncation": Truncation(0.7)}] * (family in SECTIONS)
    for how in ways:
        how |= {"batch": 64, "device": device, "constant": True}
        said = []
        found = list(sampling.generate(generator, range(1000), log=said.append, **how))
        plain = plainly(monkeypatch, lambda how=how: list(sampling.generate(generator, range(1000), **how)))
        assert not said
        assert len(found) == len(plain) > REPLAYED_FROM
        for ours, theirs in zip(found, plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def test_the_graph_is_freed_without_the_garbage_collector(capture):
    runner = BatchRunner(lambda draws: draws["z"] * 2, CPU, batches=REPLAYED_FROM)
    for _ in range(4):
        runner({"z": torch.ones(2)})
    assert capture.replayed
    alive = weakref.ref(runner)
    gc.disable()
    try:
        del runner
        assert alive() is None
    finally:
        gc.enable()
