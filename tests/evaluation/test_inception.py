"""Inception: the same numbers as the published forms, from either file; anything else refused."""

import warnings

import pytest
import torch
from helpers.random_inception import random_inception, write_state_dict, write_torchscript
from safetensors.torch import save_file

from gantx.errors import DataError, MissingError
from gantx.evaluation import inception_weights
from gantx.evaluation.inception import Inception
from gantx.evaluation.resizing import resize


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The network at random weights, and its two files."""
    folder = tmp_path_factory.mktemp("inception")
    network = random_inception()
    write_torchscript(network, folder / "any-name.pt")
    write_state_dict(network, folder / "other.pth")
    return network, folder / "any-name.pt", folder / "other.pth"


IMAGES = torch.randint(0, 256, (3, 3, 20, 24), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_it_has_the_size_of_the_published_network():
    with torch.device("meta"):
        network = Inception(centred=True)
    output = sum(parameter.numel() for parameter in network.output.parameters())
    channels = sum(p.numel() for name, p in network.named_parameters() if name.endswith("bias")) - 1008
    weights = sum(parameter.numel() for parameter in network.parameters()) - output - channels
    assert channels == 17_216
    # A published convolution has scale and shift of its own where ours has one bias.
    assert round((weights + 2 * channels + output) / 1e6, 2) == 23.85


def test_features_and_scores_of_the_torchscript_file(files):
    published, path, _ = files
    network = inception_weights.load(path, "legacy-tensorflow")
    with torch.no_grad():
        features, logits = network(resize(IMAGES, "legacy-tensorflow"))
        expected = published(IMAGES, return_features=True)
        probabilities = published(IMAGES, no_output_bias=True)
        biased = published(IMAGES)
    scale = expected.abs().max()
    assert (features - expected).abs().max() <= 1e-4 * scale
    torch.testing.assert_close(logits.softmax(1), probabilities, atol=1e-3, rtol=0)
    torch.testing.assert_close((logits + network.output.bias).softmax(1), biased, atol=1e-3, rtol=0)


def test_both_files_hold_the_same_network(files):
    _, torchscript, state_dict = files
    one, two = inception_weights.read(torchscript), inception_weights.read(state_dict)
    assert (one.carrier, two.carrier) == ("torchscript", "pytorch-fid")
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_pixels_are_scaled_as_each_tool_does(files):
    _, torchscript, state_dict = files
    centred = inception_weights.load(torchscript, "clean")
    plain = inception_weights.load(state_dict, "legacy-pytorch")
    assert (centred.centred, plain.centred) == (True, False)
    pixels = resize(IMAGES, "clean")
    with torch.no_grad():  # (x - 128) / 128 = 2 x' / 255 - 1
        torch.testing.assert_close(centred(pixels)[0], plain(pixels * 255 / 256)[0], rtol=1e-3, atol=0.2)


def test_the_names_of_the_published_files():
    ours, torchscript, pytorch = (
        inception_weights._our_names(), inception_weights._names(0), inception_weights._names(1)
    )  # fmt: skip
    assert len(ours) == len(set(torchscript)) == len(set(pytorch)) == 94
    assert {"conv_4", "mixed.tower_2.conv", "mixed_7.tower_1.conv_4", "mixed_9.tower_1_mixed_conv_1"} < set(
        torchscript
    )
    assert {"Mixed_5b.branch5x5_2", "Mixed_6e.branch7x7dbl_5", "Mixed_7c.branch3x3dbl_3b"} < set(pytorch)


def test_nothing_is_said_about_torchscript(files):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inception_weights.load(files[1], "clean")


def test_a_file_is_converted_once(files, monkeypatch):
    _, torchscript, _ = files
    first = inception_weights.load(torchscript, "clean")
    monkeypatch.setattr(inception_weights, "_from_torchscript", None)
    again = inception_weights.load(torchscript, "clean")
    assert torch.equal(first.output.weight, again.output.weight)
    (kept,) = (inception_weights.cache_folder() / "assets").glob("folded-*.safetensors")
    assert inception_weights.load(kept, "clean").centred
    whole = bytearray(kept.read_bytes())
    monkeypatch.undo()
    whole[-1000] ^= 64
    for damaged in (whole[:1000], whole):
        kept.write_bytes(damaged)
        assert torch.equal(inception_weights.load(torchscript, "clean").output.weight, first.output.weight)


def test_a_file_for_another_way_of_resizing_is_refused(files):
    _, torchscript, state_dict = files
    with pytest.raises(DataError, match="goes with pytorch-fid's"):
        inception_weights.load(torchscript, "legacy-pytorch")
    with pytest.raises(DataError, match="goes with NVIDIA's"):
        inception_weights.load(state_dict, "clean")


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('code was run')",)


def test_what_is_not_this_network_is_refused(files, tmp_path):
    with pytest.raises(MissingError, match="absent"):
        inception_weights.read(tmp_path / "absent.pt")
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "torchvision.pth")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save([Evil()], tmp_path / "evil.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pt").write_text("<html>not found</html>")
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    state = torch.load(files[2])
    state["Mixed_5b.branch1x1.conv.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "shape.pth")
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "linear.pt"))
    for name, complaint in (
        ("torchvision.pth", "torchvision"),
        ("other.pth", "is missing"),
        ("evil.pth", "neither"),
        ("list.pth", "contains a list"),
        ("text.pt", "neither"),
        ("other.safetensors", "not of Inception"),
        ("shape.pth", "blocks.0"),
        ("linear.pt", "does not contain Inception"),
    ):
        with pytest.raises(DataError, match=complaint):
            inception_weights.read(tmp_path / name)
