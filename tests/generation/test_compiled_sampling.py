"""A compiled generator gives the same images, with one graph whatever is asked for."""

import json

import numpy as np
import pytest
import torch
import torch._inductor.config
from helpers.recorded_operations import RecordedOperations
from helpers.small_families import GENERATORS, small
from helpers.small_run import SMALL
from helpers.styled_networks import save_styled, styled
from torch._dynamo.utils import counters
from typer.testing import CliRunner

import gantx
from gantx import models
from gantx.cli import app
from gantx.errors import MissingError
from gantx.generation import sampling
from gantx.generation.sampling import in_tiles
from gantx.generation.truncation import Truncation
from gantx.runtime.compile import compile_whole

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forgotten():
    """Graphs of other tests would count against the limit of recompilations."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def quick_backend(monkeypatch):
    """Compiles without generating code; tells how many graphs there were."""
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, *, options, **how: plain(f, **how, backend="aot_eager"))
    counters.clear()
    return lambda: counters["stats"]["unique_graphs"]


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    # Undoing a setattr of monkeypatch would delete the setting.
    with torch._inductor.config.patch({"cpp.cxx": (None, "/nowhere/g++")}):
        yield


def agree(found, expected):
    """Equal to 1e-5 of the largest value: rounding only."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def images_of(generator, **how):
    return list(sampling.generate(generator, range(20), batch=8, device=CPU, **how))


@pytest.mark.parametrize(
    "family",
    [pytest.param(each, marks=pytest.mark.slow) if each == "ganformer" else each for each in GENERATORS],
)
def test_one_graph_generates_all_batches_of_every_family(family, quick_backend):
    torch.manual_seed(0)
    generator = models.build(small(family, "transgan").generator).eval().requires_grad_(False)
    fast = sampling.compiled(generator)
    expected = images_of(generator)
    assert quick_backend() == 0
    found = images_of(fast, constant=True)
    assert [len(images) for images in found] == [8, 8, 4]
    agree(torch.cat(found), torch.cat(expected))
    assert quick_backend() == 1


@pytest.mark.parametrize("family", [pytest.param("stylegan2", marks=pytest.mark.slow), "vitgan"])
def test_every_truncation_shares_a_graph_and_so_do_latents_and_styles(family, quick_backend):
    generator = styled(family)
    fast = sampling.compiled(generator)
    ways = [None, Truncation(0.7), Truncation(0.3, 2)]
    for truncation in ways:
        (expected,) = sampling.generate(generator, range(5), batch=8, device=CPU, truncation=truncation)
        (found,) = sampling.generate(
            fast, range(5), batch=8, device=CPU, truncation=truncation, constant=True
        )
        agree(found, expected)
    assert quick_backend() == 1
    latents = torch.randn(5, *generator.latent_shape)
    for given in (latents, generator.mapping(latents)):
        for truncation in ways:
            how = {"batch": 8, "device": CPU, "truncation": truncation}
            (expected,) = sampling.from_latents(generator, given, **how)
            (found,) = sampling.from_latents(fast, given, **how, constant=True)
            agree(found, expected)
    # Noise at its stored value needs a graph of its own.
    assert quick_backend() == 1 + bool(generator.noise_spec(1))


def test_batches_of_one_size():
    short = list(in_tiles(range(40), 32))
    assert [(len(items), count) for items, count in short] == [(32, 32), (8, 8)]
    constant = list(in_tiles(range(40), 32, constant=True))
    assert [(len(items), count) for items, count in constant] == [(32, 32), (32, 8)]
    assert constant[1][0] == [*range(32, 40), *[39] * 24]


@pytest.mark.slow
def test_a_compiled_model_leaves_its_network_alone(tmp_path, quick_backend):
    file = save_styled(tmp_path, "ganformer")
    eager, model = gantx.load(file, device="cpu"), gantx.load(file, device="cpu", compile=True)
    assert (eager.compiled, model.compiled) == (False, True)
    model.attention(seed=3)
    list(model.interpolate([1, 5], frames=3))
    assert quick_backend() == 0
    for how in ({"n": 3}, {"seeds": [7, 2]}, {"n": 2, "truncation": 0.7}):
        found, expected = model.sample(**how), eager.sample(**how)
        assert found.shape == expected.shape
        assert (found.int() - expected.int()).abs().max() <= 1
    assert quick_backend() == 1


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_compiles_when_told(tmp_path, quick_backend):
    file = save_styled(tmp_path / "run", "vitgan")
    how = ("-n", 20, "--batch", 8, "--device", "cpu", "--dtype", "float32")
    assert run("sample", file, *how, "-o", tmp_path / "eager.npy").exit_code == 0
    assert quick_backend() == 0
    result = run("sample", file, *how, "-o", tmp_path / "compiled.npy", "--compile")
    assert result.exit_code == 0, result.output
    assert quick_backend() == 1
    assert "compiling" in result.stderr
    assert result.stdout.strip() == str(tmp_path / "compiled.npy")
    found, expected = (torch.from_numpy(np.load(tmp_path / f"{name}.npy")) for name in ("compiled", "eager"))
    assert found.shape == (20, 16, 16, 3)
    agree(found, expected)


def test_comparing_a_picture_compiles_nothing(tmp_path):
    result = run("sample", "--from", tmp_path / "grid.png", "--compile")
    assert result.exit_code == 2
    assert "name nothing else" in " ".join(result.stderr.split())


def test_the_command_says_which_option_needs_the_compiler(tmp_path, no_compiler):
    file = save_styled(tmp_path / "run", "vitgan")
    output = tmp_path / "a.npy"
    result = run("sample", file, "-n", 4, "--batch", 8, "-o", output, "--device", "cpu", "--compile")
    assert result.exit_code == 3, result.output
    said = " ".join(result.stderr.split())
    assert "a C++ compiler" in said
    assert "omit --compile" in said
    assert not output.exists()
    assert "Traceback" not in result.output


def test_bench_says_whether_it_compiled(quick_backend):
    preset = ("--preset", "transgan-tiny", "--device", "cpu", "-n", 12, "--batch", 8)
    settings = [setting for setting in SMALL if not setting.startswith(("name=", "objective."))]
    settings += ["generator.rgb_patch=1", "discriminator.patch_size=2"]
    documents = [json.loads(run("bench", "sample", *preset, "--json", *settings).stdout)]
    assert quick_backend() == 0
    documents.append(json.loads(run("bench", "sample", *preset, "--json", "--compile", *settings).stdout))
    assert quick_backend() == 1
    assert [document["compiled"] for document in documents] == [False, True]
    assert documents[1]["warm_up_seconds"] > documents[0]["warm_up_seconds"]
    for flag, how in (("--no-compile", "eager"), ("--compile", "compiled")):
        table = run("bench", "sample", *preset, flag, *settings).stdout
        assert table.startswith(f"transgan-tiny: batch 8, {how}\n")


def test_what_is_missing_is_named_and_what_to_do_without_it(no_compiler):
    fast = compile_whole(lambda x: x.sin() + 1, name="a sine", instead="take a table")
    with pytest.raises(MissingError, match=r"a C\+\+ compiler, which compiling a sine needs.*take a table"):
        fast(torch.zeros(4))


def test_other_errors_stay_what_they_are(quick_backend):
    fast = compile_whole(lambda x: x @ x, name="a product", instead="add")
    with pytest.raises(RuntimeError, match="same reduction dim"):
        fast(torch.zeros(2, 3))


def test_a_compiled_generator_is_captured_too(quick_backend, monkeypatch):
    generator = styled("stylegan2")
    fast = sampling.compiled(generator)
    how = {"batch": 8, "device": CPU, "constant": True, "truncation": Truncation(0.7)}
    expected = list(sampling.generate(fast, range(60), **how))
    capture, said = RecordedOperations(), []
    monkeypatch.setattr(sampling, "capture_on", lambda device: capture)
    found = list(sampling.generate(fast, range(60), **how, log=said.append))
    assert not said
    assert capture.replayed == 6
    for ours, theirs in zip(found, expected, strict=True):
        agree(ours, theirs)
    assert quick_backend() == 1
