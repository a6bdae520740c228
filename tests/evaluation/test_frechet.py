import math

import numpy as np
import pytest
import torch
from helpers.feature_metrics import features, frechet_distance

from gantx.errors import DataError
from gantx.evaluation.frechet import Gaussian, Moments

# --- moments ----------------------------------------------------------------------------------------------


def test_moments_are_those_of_all_features_however_they_arrive():
    x = features(200, 24, seed=0, shift=300.0)
    whole = Moments.of_features(x)
    expected = np.cov(x.double().numpy(), rowvar=False)
    np.testing.assert_allclose(whole.covariance().numpy(), expected, atol=1e-13)

    left, right = Moments(24), Moments(24)
    for start in range(0, 120, 7):
        left.add(x[start : min(start + 7, 120)])
    right.add(x[120:])
    right.add(x[:0])
    assert left.count == 120
    assert right.count == 80
    rest = whole.without(right)
    torch.testing.assert_close(rest.mean, left.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(rest.scatter, left.scatter, rtol=0, atol=1e-9)


def test_moments_take_half_precision_exactly():
    x = features(50, 6, seed=3).half()
    of_half, of_double = Moments.of_features(x), Moments.of_features(x.double())
    assert torch.equal(of_half.scatter, of_double.scatter)


@pytest.mark.parametrize(("count", "ddof"), [(0, 0), (1, 1)])
def test_too_few_images_have_no_covariance(count, ddof):
    moments = Moments.of_features(features(count, 4, seed=0))
    with pytest.raises(DataError, match="too few"):
        moments.covariance(ddof)


# --- Fréchet distance -------------------------------------------------------------------------------------


def of_spectra(a, b, seed=0):
    """Two covariances of one random basis, and the distance that these eigenvalues give them."""
    dim = len(a)
    basis, _ = torch.linalg.qr(features(dim, dim, seed).double())
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    covariances = [basis * spectrum @ basis.T for spectrum in (a, b)]
    return *[(c + c.T) / 2 for c in covariances], float((a.sqrt() - b.sqrt()).square().sum())


@pytest.mark.parametrize(
    ("a", "b"),
    [
        pytest.param(torch.logspace(0, 2, 40), torch.logspace(2, 0, 40), id="well conditioned"),
        pytest.param(torch.logspace(2, -13, 40), torch.logspace(1, 0, 40), id="one ill conditioned"),
        pytest.param(torch.logspace(2, -13, 40), torch.logspace(-13, 2, 40), id="both ill conditioned"),
        pytest.param(torch.arange(40.0), torch.arange(40.0).flip(0), id="singular"),
        pytest.param(torch.zeros(40), torch.ones(40), id="all images alike"),
    ],
)
def test_frechet_distance_of_known_covariances(a, b):
    first, second, expected = of_spectra(a, b)
    mean, shift = torch.ones(40), torch.full((40,), 0.5)
    one, other = Gaussian.of_moments(mean, first), Gaussian.of_moments(mean + shift, second)
    distance = one.distance(other)
    assert distance == pytest.approx(expected + 10, rel=1e-8)
    assert other.distance(one) == pytest.approx(distance, rel=1e-12)


def reference_frechet(a, b):
    """By the singular values of the product of all centred features."""
    a, b = a.double(), b.double()
    mean = (a.mean(0) - b.mean(0)).square().sum()
    a, b = (a - a.mean(0)) / (len(a) - 1) ** 0.5, (b - b.mean(0)) / (len(b) - 1) ** 0.5
    return float(mean + a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum())


@pytest.mark.parametrize(
    ("first", "second"), [(20, 30), (20, 200), (200, 20), (64, 65), (65, 64), (66, 200), (2, 2)]
)
def test_frechet_distance_of_any_number_of_images(first, second):
    a, b = features(first, 64, seed=1), features(second, 64, seed=2, shift=0.1, scale=1.5)
    assert frechet_distance(a, b) == pytest.approx(reference_frechet(a, b), rel=1e-11)


def test_features_that_never_vary_do_no_harm():
    a, b = features(100, 16, seed=1), features(90, 16, seed=2, scale=2.0)
    a[:, 3], b[:, 3] = 0.5, 0.5
    a[:, 7] = 1.0
    assert frechet_distance(a, b) == pytest.approx(reference_frechet(a, b), rel=1e-11)


@pytest.mark.parametrize("count", [20, 100])
def test_frechet_distance_of_a_set_to_itself_is_zero_and_not_negative(count):
    a = features(count, 32, seed=4)
    distance = frechet_distance(a, a)
    assert 0 <= distance < 1e-10


def test_an_unusable_side_is_explained():
    good = features(10, 4, seed=0)
    mean, covariance = torch.zeros(4), torch.eye(4)
    with pytest.raises(DataError, match="not finite"):
        frechet_distance(good, good.clone().index_fill_(0, torch.tensor(3), math.nan))
    with pytest.raises(DataError, match="too few"):
        frechet_distance(good, good[:1])
    with pytest.raises(DataError, match="same feature network"):
        frechet_distance(good, good[:, :3])
    with pytest.raises(DataError, match="not finite"):
        Gaussian.of_moments(mean, covariance * math.inf)
    with pytest.raises(DataError, match="does not belong"):
        Gaussian.of_moments(mean, torch.eye(5))
    with pytest.raises(DataError, match="eigenvalue"):
        Gaussian.of_moments(mean, torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.5])))


def test_a_covariance_stored_in_float32_is_one_still():
    x = features(30, 64, seed=5)
    moments = Moments.of_features(x)
    rounded = Gaussian.of_moments(moments.mean.float(), moments.covariance().float())
    assert rounded.distance(Gaussian.of_features(x)) < 1e-3
