import numpy as np
import pytest
from helpers.feature_metrics import features, kernel_distance

from gantx.evaluation.kernel_distance import kernel_distances


def test_kernel_distances_are_one_call_of_clean_fid():
    from cleanfid.fid import kernel_distance

    real, fake = features(90, 12, seed=0), features(70, 12, seed=1, shift=0.1)
    np.random.seed(7)
    expected = kernel_distance(real.numpy(), fake.numpy(), num_subsets=9, max_subset_size=40)
    found = kernel_distances(real, fake, subsets=9, size=40, seed=7)
    assert found.shape == (9,)
    assert found.std() > 0
    assert float(found.mean()) == pytest.approx(expected, abs=1e-7)  # summed in float32 there


def test_kernel_distances_leave_numpys_generator_alone(monkeypatch):
    real, fake = features(20, 4, seed=0), features(20, 4, seed=1)
    np.random.seed(3)
    expected = np.random.random(5)
    np.random.seed(3)
    kernel_distances(real, fake, subsets=3, size=10, seed=7)
    assert np.array_equal(np.random.random(5), expected)

    def broken(*args, **kwargs):
        np.random.random(3)
        raise RuntimeError("broken")

    monkeypatch.setattr("cleanfid.fid.kernel_distance", broken)
    np.random.seed(3)
    with pytest.raises(RuntimeError):
        kernel_distances(real, fake, subsets=3, size=10, seed=7)
    assert np.array_equal(np.random.random(5), expected)


def test_the_kernel_is_that_of_the_definition():
    real, fake = features(50, 6, seed=0), features(40, 6, seed=1, shift=0.5)
    kernel = [(x.double() @ y.double().T / 6 + 1) ** 3 for x, y in ((real, real), (fake, fake), (real, fake))]
    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in kernel[:2]]
    expected = float(within[0] + within[1] - 2 * kernel[2].mean())
    assert kernel_distance(real, fake) == pytest.approx(expected, abs=1e-6)
