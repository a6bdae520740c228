"""Scores of single classes: of the right images, by name, and with a warning where there are few."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gantx.data.prepare import Prepared
from gantx.errors import DataError, UsageError
from gantx.evaluation import reference
from gantx.evaluation.feature_scores import FeatureScores
from gantx.evaluation.features import open_features
from gantx.evaluation.per_class import Measured, RealClass, numbers_in, real_classes, score_classes
from gantx.evaluation.protocols import named

CPU = torch.device("cpu")
NAMES = ("cat", "dog", "eel")


@pytest.fixture(scope="module")
def network():
    return open_features("random", resize="clean", weights=None, device=CPU, allow_unverified=False)


def reals(labels, names=NAMES):
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 3, 8, 8), np.uint8)
    return Prepared(pixels, np.array(labels, np.int64), names, "fingerprint", "digest", "reals", ())


def statistics(prepared, network, label):
    protocol = named("clean-50k")
    stamp = reference.describe(prepared, network, protocol, split="train", mirrored=False, label=label)
    return reference.reference_for(prepared, network, stamp, device=CPU, progress=lambda done, total: None)


def test_classes_are_matched_by_name_or_else_by_number():
    prepared = reals([0, 1, 2, 1])
    assert numbers_in(prepared, ["eel", "cow", "cat"], "reals") == [2, None, 0]
    assert numbers_in(prepared, ["0", "1", "2"], "reals") == [0, 1, 2]
    with pytest.raises(UsageError, match="reals has images of cat, dog, eel, but not of cow"):
        numbers_in(prepared, ["cow"], "reals")
    unlabelled = dataclasses.replace(prepared, labels=None, class_names=())
    with pytest.raises(DataError, match="reals has no labels"):
        numbers_in(unlabelled, NAMES, "reals")


def test_statistics_of_a_class_are_those_of_its_images_alone_and_cached_apart(network):
    prepared = reals([0, 1, 0, 1, 1, 0, 2])
    found, cached = statistics(prepared, network, 1)
    assert (found.count, cached) == (3, False)
    torch.testing.assert_close(found.features, network(torch.from_numpy(prepared.images[[1, 3, 4]])).features)
    again, cached = statistics(prepared, network, 1)
    assert cached
    assert torch.equal(again.covariance, found.covariance)  # not stored: larger than so few features
    torch.testing.assert_close(again.covariance, found.features.double().T.cov())
    assert statistics(prepared, network, 0)[1] is False
    other = dataclasses.replace(prepared, labels=prepared.labels[::-1].copy())
    assert statistics(other, network, 1)[1] is False


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 5000), (2, 8)])
def test_features_without_a_covariance_are_those_of_all_images_or_damaged(shape, tmp_path):
    tensors = {"mean": torch.zeros(shape[1], dtype=torch.float64), "features": torch.zeros(shape)}
    save_file(tensors, tmp_path / "s.safetensors", {"format": reference.FORMAT, "count": "3", "stamp": "{}"})
    with pytest.raises(DataError, match="no covariance"):
        reference.read(tmp_path / "s.safetensors")


def test_each_class_has_the_scores_of_its_own_images(network):
    prepared = reals([0] * 9 + [1] * 8 + [2])
    labels = torch.arange(24) % 3
    measured = Measured(labels, torch.randn(24, network.dim), None)
    real = real_classes(
        prepared, NAMES, "reals", lambda label, _: lambda: statistics(prepared, network, label)[0]
    )
    computed = FeatureScores(("fid", "pr"), named("clean-50k"), network, with_intervals=False)
    results, warnings = score_classes(real, measured, ["fid", "pr"], computed, {"n_gen": 24})
    assert [(of_class.name, of_class.n_gen, of_class.n_ref) for of_class in results] == [
        ("cat", 8, 9),
        ("dog", 8, 8),
        ("eel", 8, 1),
    ]
    alone = computed.of(measured.features[labels == 1], real[1].reference())
    assert results[1].scores == tuple(alone)
    assert [score.name for score in alone] == ["fd_rand", "kd_rand", "precision_rand", "recall_rand"]
    assert [score.value for score in results[2].scores] == [None] * 4
    assert "1 images, but at least 2 are needed" in results[2].scores[0].note
    assert len({of_class.protocol_hash for of_class in results}) == 3
    assert "cat, dog, eel have fewer than 100 real images: their scores are mostly noise" in warnings
    assert any("go by KID" in warning for warning in warnings)


def test_of_shapes_the_share_that_shows_the_class_is_told():
    real = [RealClass("red circle", 0, 5), RealClass("blue circle", 2, 5), RealClass("void", None, 0)]
    measured = Measured(torch.tensor([0, 0, 0, 0, 1]), None, torch.tensor([0, 2, 0, -1, -1]))
    (red, blue, void), warnings = score_classes(real, measured, ["modes"], None, {})
    assert {score.name: score.value for score in red.scores} == {"confident": 0.75, "as_asked": 2 / 3}
    assert [score.value for score in blue.scores] == [0, None]
    assert [score.value for score in void.scores] == [None, None]
    assert warnings == ["there are no real images of the class void"]
