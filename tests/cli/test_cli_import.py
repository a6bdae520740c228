"""`gantx import` as a user types it."""

import torch
from golden_file import find_golden
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
