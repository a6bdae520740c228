"""Feature networks: Inception against clean-fid, and the random one."""

import numpy as np
import pytest
import torch
from helpers.feature_metrics import frechet_distance
from helpers.random_inception import random_inception, write_state_dict, write_torchscript
from PIL import Image

from gantx.errors import DataError, MissingError, UsageError
from gantx.evaluation.cleanfid_engine import open_cleanfid
from gantx.evaluation.features import open_features

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    network = random_inception()
    write_torchscript(network, folder / "inception.pt")
    write_state_dict(network, folder / "inception.pth")
    return folder


def opened(weights, resize="clean", opener=open_features):
    file = weights / ("inception.pth" if resize == "legacy-pytorch" else "inception.pt")
    return opener("inception", resize=resize, weights=file, device=CPU, allow_unverified=True)


def images(count, size, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, 3, size, size), np.uint8))


@pytest.mark.parametrize("resize", ["clean", pytest.param("legacy-tensorflow", marks=pytest.mark.slow)])
def test_features_are_those_of_clean_fid(weights, resize):
    ours, theirs = opened(weights, resize), opened(weights, resize, open_cleanfid)
    assert ours.digest == theirs.digest
    assert not ours.verified
    one, two = (
        torch.cat([network(images(6, 32, seed)).features for seed in (0, 1)]) for network in (ours, theirs)
    )
    assert (one - two).abs().max() <= 1e-4 * two.abs().max()
    distances = [frechet_distance(x[:6], x[6:]) for x in (one, two)]
    assert distances[0] == pytest.approx(distances[1], rel=1e-5)


def test_features_of_a_folder_are_those_of_clean_fid(weights, tmp_path):
    from cleanfid.fid import get_folder_features

    from gantx.evaluation.image_sets import open_images
    from gantx.evaluation.inception_weights import open_torchscript

    pixels = images(5, 48)
    for index, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{index}.png")
    theirs = get_folder_features(
        str(tmp_path), open_torchscript(weights / "inception.pt"), num_workers=0, device=CPU, verbose=False
    )
    network = opened(weights)
    ours = torch.cat([network(batch).features for batch in open_images(tmp_path).batches(range(5), 2)])
    assert (ours - torch.from_numpy(theirs)).abs().max() <= 1e-4 * np.abs(theirs).max()


def test_both_sorts_of_input_and_all_batches_give_the_same(weights):
    network = opened(weights, "legacy-pytorch")
    pixels = images(3, 24)
    whole = network(pixels)
    assert whole.features.shape == (3, 2048)
    assert whole.logits.shape == (3, 1008)
    torch.testing.assert_close(network(pixels.float()).features, whole.features, rtol=0, atol=0)
    single = torch.cat([network(image[None]).features for image in pixels])
    torch.testing.assert_close(single, whole.features, rtol=1e-4, atol=1e-2)


def test_the_random_network_needs_nothing_and_tells_sets_apart():
    network = open_features("random", resize="clean", weights=None, device=CPU, allow_unverified=False)
    again = open_features("random", resize="clean", weights=None, device=CPU, allow_unverified=False)
    assert network.digest == again.digest
    # The same on every machine and with every torch, or its scores would not be comparable.
    assert network.digest == "63564021afa7c0e78176d8ad7632c80b3d6f5b3d3a2f103db7cf4bfdac3f3962"
    assert network.name == "random"
    for size in (8, 32, 70):
        assert network(images(4, size)).features.shape == (4, network.dim)
    noise, more, dark = images(300, 32), images(300, 32, 1), images(300, 32, 2) // 2
    features = [network(x).features for x in (noise, more, dark)]
    near, far = (frechet_distance(features[0], x) for x in features[1:])
    assert far > 20 * near


def test_wrong_choices_are_explained(tmp_path):
    for choice, weights, kind, complaint in (
        ("vgg", None, UsageError, "inception, random"),
        ("net.pt2", None, UsageError, r"torch\.onnx\.export\(network.*'net\.onnx'"),
        ("net.pt", None, UsageError, r"torch\.onnx\.export"),
        ("random", tmp_path, UsageError, "omit one of them"),
        ("absent.onnx", None, MissingError, r"absent\.onnx"),
        ("inception", None, MissingError, "gantx assets fetch inception"),
        ("inception", tmp_path / "absent.pt", MissingError, r"absent\.pt"),
    ):
        with pytest.raises(kind, match=complaint):
            open_features(choice, resize="clean", weights=weights, device=CPU, allow_unverified=False)
    with pytest.raises(UsageError, match="--engine"):
        open_cleanfid("random", resize="clean", weights=None, device=CPU, allow_unverified=False)


def test_other_weights_are_refused_unless_that_is_allowed(weights):
    with pytest.raises(DataError, match="--allow-unverified-weights"):
        open_features(
            "inception", resize="clean", weights=weights / "inception.pt", device=CPU, allow_unverified=False
        )
