"""Official files: read without running their code, converted under the right configuration, checked."""

import pytest
import torch
from helpers.golden_file import find_golden
from safetensors.torch import load_file, save_file

from gantx import checkpoint
from gantx.config import presets
from gantx.config.networks import GENERATORS
from gantx.errors import CheckFailed, CheckpointError, DataError, MissingError, UsageError
from gantx.generation import sampling
from gantx.importing import files

CPU = torch.device("cpu")
TINY = {
    "v1": (
        "transgan-xl-released",
        "generator={latent_dim: 8, base_dim: 64, base_size: 2, depths: [1,2,2]}",
        "discriminator={resolution: 8, dim: 32, depth: 1}",
    ),
    "v2_cifar": (
        "transgan2-cifar10",
        "generator={latent_dim: 8, dim: 64, base_size: 2, depths: [1,1,1]}",
        "discriminator={resolution: 8, dim: 32, depths: [1,1]}",
    ),
}


def tiny(version):
    """The file, what it must give, and its configuration."""
    preset, *overrides = TINY[version]
    settings = presets.load(preset, overrides=["data.resolution=8", *overrides])
    name = f"transgan/checkpoint_{version}_tiny"
    return find_golden(f"{name}.pth"), find_golden(f"{name}.safetensors"), settings


@pytest.mark.parametrize("version", TINY)
def test_an_official_checkpoint_generates_and_discriminates_as_before(version, tmp_path):
    path, expected, settings = tiny(version)
    conversion = files.convert(path, settings)
    differences = files.compare(conversion, expected)
    assert [difference.name for difference in differences] == ["output.gen", "output.avg_gen", "output.dis"]
    files.require_close(differences, expected)
    assert {"gen_optimizer", "dis_optimizer"} <= set(conversion.skipped)

    files.write(tmp_path / "c.safetensors", conversion, settings)
    generator, header = sampling.open_generator(tmp_path / "c.safetensors", CPU)
    recorded = load_file(expected)
    torch.testing.assert_close(
        generator(recorded["input.z"]), recorded["output.avg_gen"], rtol=1e-4, atol=1e-5
    )
    assert header.data["imported_from"]["file"] == path.name
    assert len(header.data["imported_from"]["sha256"]) == 64
    assert header.config == settings


def test_another_size_is_answered_with_the_overrides_that_fit():
    path, _, _ = tiny("v2_cifar")
    with pytest.raises(
        CheckpointError, match=r"add generator\.latent_dim=8 generator\.dim=64 .*depths=\[1,1,1\]"
    ):
        files.convert(path, presets.load("transgan2-cifar10"))


def test_a_wrong_setting_that_tensors_do_not_tell_is_found_by_the_check():
    path, expected, settings = tiny("v2_cifar")
    wrong = settings.model_copy(
        update={"generator": settings.generator.model_copy(update={"normalize_latent": True})}
    )
    conversion = files.convert(path, wrong)
    with pytest.raises(CheckFailed, match=r"output\.gen differs"):
        files.require_close(files.compare(conversion, expected), expected)


def test_a_bare_generator(tmp_path):
    path, _, settings = tiny("v2_cifar")
    state = torch.load(path, weights_only=True)["avg_gen_state_dict"]
    torch.save(state, tmp_path / "bare.pth")
    conversion = files.convert(tmp_path / "bare.pth", settings)
    assert set(conversion.parts) == {"generator", "generator_ema"}
    files.write(tmp_path / "c.safetensors", conversion, settings)
    assert sampling.open_generator(tmp_path / "c.safetensors", CPU)[1].digests.keys() == {
        "generator",
        "generator_ema",
    }


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_malicious_file_is_refused_without_running_it(tmp_path):
    victim = tmp_path / "created"
    torch.save({"gen_state_dict": Evil(victim)}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="could run code"):
        files.convert(tmp_path / "evil.pth", presets.load("transgan2-cifar10"))
    assert not victim.exists()


def test_files_of_other_kinds(tmp_path):
    settings = presets.load("transgan2-cifar10")
    (tmp_path / "text.pth").write_text("<html>")
    torch.save([1], tmp_path / "list.pth")
    torch.save({"gen_state_dict": 3}, tmp_path / "number.pth")
    torch.save({"gen_state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    for name, complaint in (
        ("text.pth", "not a readable|could run code"),
        ("list.pth", "contains a list"),
        ("number.pth", "not a dictionary of tensors"),
        ("other.pth", "no TransGAN v2 generator"),
    ):
        with pytest.raises(CheckpointError, match=complaint):
            files.convert(tmp_path / name, settings)
    with pytest.raises(MissingError):
        files.convert(tmp_path / "absent.pth", settings)
    with pytest.raises(MissingError, match="is a folder"):
        files.convert(tmp_path, settings)


def test_every_family_of_a_paper_is_known():
    assert files.ADAPTERS.keys() == GENERATORS.keys() - {"implicit"}  # which is our own


def test_there_is_nothing_to_import_for_a_family_of_our_own(tmp_path):
    with pytest.raises(UsageError, match="no official checkpoint of the family implicit"):
        files.convert(tmp_path / "any.pth", presets.load("implicit-tiny"))


def test_recorded_outputs_of_other_kinds(tmp_path):
    path, _, settings = tiny("v2_cifar")
    conversion = files.convert(path, settings)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("text")
    for name in ("other.safetensors", "text.safetensors"):
        with pytest.raises(DataError, match=name):
            files.compare(conversion, tmp_path / name)
    with pytest.raises(MissingError):
        files.compare(conversion, tmp_path / "absent.safetensors")
    for shape in ((2, 5), (0, 8), (4, 8)):
        sized = {"input.z": torch.zeros(shape), "output.gen": torch.zeros(2, 3, 8, 8)}
        save_file(sized, tmp_path / "size.safetensors")
        with pytest.raises(DataError, match=r"input\.z"):
            files.compare(conversion, tmp_path / "size.safetensors")


def test_the_checkpoint_says_where_it_is_from(tmp_path):
    path, _, settings = tiny("v1")
    files.write(tmp_path / "c.safetensors", files.convert(path, settings), settings)
    header = checkpoint.read_header(tmp_path / "c.safetensors")
    assert header.images == 0
    assert header.data["imported_from"]["epoch"] == torch.load(path, weights_only=True)["epoch"]
