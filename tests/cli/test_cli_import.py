"""`gantx import` as a user types it."""

import pickle

import torch
from helpers.golden_file import GoldenFile, find_golden
from typer.testing import CliRunner

from gantx.cli import app

OVERRIDES = (
    "data.resolution=8", "generator.latent_dim=8", "generator.dim=64", "generator.base_size=2",
    "generator.depths=[1,1,1]", "discriminator.resolution=8", "discriminator.dim=32",
    "discriminator.depths=[1,1]",
)  # fmt: skip


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_import_check_and_sample(tmp_path):
    file = find_golden("transgan/checkpoint_v2_cifar_tiny.pth")
    expected = find_golden("transgan/checkpoint_v2_cifar_tiny.safetensors")
    output = tmp_path / "c.safetensors"
    command = ("import", file, "--preset", "transgan2-cifar10", *OVERRIDES, "--check", expected, "-o", output)
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert [line.split(":")[0] for line in result.stdout.splitlines()[:3]] == [
        "output.gen",
        "output.avg_gen",
        "output.dis",
    ]
    assert "generator_ema" in result.stderr
    assert "missing" in result.stderr
    assert run(*command).exit_code == 2  # it is there already
    assert run("sample", output, "-n", "4", "-o", tmp_path / "grid.png", "--device", "cpu").exit_code == 0
    told = run("info", output)
    assert told.exit_code == 0
    assert "imported from checkpoint_v2_cifar_tiny.pth" in told.stdout


def test_a_failed_check_writes_nothing(tmp_path):
    file = find_golden("transgan/checkpoint_v2_cifar_tiny.pth")
    expected = find_golden("transgan/checkpoint_v2_cifar_tiny.safetensors")
    output = tmp_path / "c.safetensors"
    result = run(
        "import", file, "--preset", "transgan2-cifar10", *OVERRIDES, "generator.normalize_latent=true",
        "--check", expected, "-o", output,
    )  # fmt: skip
    assert result.exit_code == 1
    assert "nothing was written" in result.stderr
    assert not output.exists()


GANFORMER = """
data: {resolution: 16}
generator: {family: ganformer, resolution: 16, components: 4, latent_dim: 8, attention: kmeans,
            channel_base: 128, channel_max: 8}
discriminator: {family: stylegan2, resolution: 16, channel_base: 128, channel_max: 8}
"""


def test_import_a_snapshot_of_ganformer(tmp_path):
    (tmp_path / "small.yaml").write_text(GANFORMER)
    file = find_golden("gansformer/snapshot_duplex_16.pkl")
    output = tmp_path / "c.safetensors"
    command = ("import", file, "--config", tmp_path / "small.yaml")
    result = run(*command, "-o", output, "--keys")
    assert result.exit_code == 0, result.output
    assert "discriminator\tb16.fromrgb.weight\tfrom_rgb.weight\n" in result.stdout
    assert "generator_ema" in result.stderr
    assert run("sample", output, "-n", "2", "-o", tmp_path / "grid.png", "--device", "cpu").exit_code == 0

    other = run(*command, "generator.components=3", "-o", tmp_path / "other.safetensors")
    assert other.exit_code == 4
    assert "add generator.components=4" in other.stderr
    assert not (tmp_path / "other.safetensors").exists()


def test_import_a_generator_of_vitgan_says_what_it_estimates(tmp_path):
    torch.save(GoldenFile("vitgan/g_inr").prefix("state."), tmp_path / "gen_ema.pt")
    overrides = (
        "data.resolution=32", "generator={family: vitgan, residual: released, attention: released,"
        " activation: silu, spectral_norm: released, norm_eps: 0.001, decoder_noise: true, dim: 48, depth: 2,"
        " decoder_dim: 64}",
    )  # fmt: skip
    output = tmp_path / "c.safetensors"
    command = ("import", tmp_path / "gen_ema.pt", "--preset", "transgan-s", *overrides)
    result = run(*command, "-o", output, "--keys")
    assert result.exit_code == 0, result.output
    assert "generator_ema: 8 × spectral norm at the start, estimated" in result.stderr
    assert "generator_ema\t-\tw_avg: mean of" in result.stdout
    assert run("sample", output, "-n", "2", "-o", tmp_path / "grid.png", "--device", "cpu").exit_code == 0


def test_a_pickle_that_names_foreign_functions_is_refused(tmp_path):
    (tmp_path / "small.yaml").write_text(GANFORMER)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(print))
    result = run("import", tmp_path / "evil.pkl", "--config", tmp_path / "small.yaml", "--keys")
    assert result.exit_code == 4
    assert "builtins.print" in result.stderr
    assert "it is not opened" in " ".join(result.stderr.split())


def test_wrong_usage(tmp_path):
    torch.save({}, tmp_path / "x.pth")
    for arguments, complaint in (
        ((), "add --preset"),
        (("--preset", "transgan2-cifar10"), "nothing to do"),
        (("--preset", "transgan2-cifar", "-o", "c.safetensors"), "did you mean 'transgan2-cifar10'"),
        (("--preset", "transgan2-cifar10", "-o", "c.pth"), "a checkpoint is a .safetensors file"),
    ):
        result = run("import", tmp_path / "x.pth", *arguments)
        assert result.exit_code == 2
        assert complaint in result.stderr
