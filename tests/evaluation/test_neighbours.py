import pytest
import torch
from helpers.feature_metrics import features, neighbour_scores

from gantx.errors import DataError
from gantx.evaluation import feature_sets
from gantx.evaluation.neighbours import _DistanceBounds, neighbours


def reference_neighbours(real, fake, k, closed):
    """All four numbers per image from all distances at once."""
    real, fake = real.double(), fake.double()

    def distances(x, y):
        return (x[:, None] - y).square().sum(2).sqrt()

    def radii(x):
        own = distances(x, x)
        own.fill_diagonal_(torch.inf)
        return own.sort(1).values[:, k - 1]

    between = distances(real, fake)
    by_real, by_fake = (
        (between <= limit) if closed else (between < limit) for limit in (radii(real)[:, None], radii(fake))
    )
    return by_real.any(0), by_fake.any(1), by_real.double().sum(0) / k, by_real.any(1)


def duplicated():
    real = features(60, 8, seed=0)
    real[10:20] = real[0]
    fake = torch.cat([real[5:30], features(15, 8, seed=1)])
    return real, fake


def collapsed():
    """A generator with three pictures, the copies of which differ by less than float32 can tell apart."""
    modes = features(3, 64, seed=2, scale=10.0)
    fake = modes.repeat(20, 1) + features(60, 64, seed=3, scale=1e-4)
    return features(80, 64, seed=4, scale=10.0), fake


def dead():
    return features(50, 16, seed=0), torch.ones(40, 16)


SETS = {
    "overlapping": (features(150, 16, seed=0), features(120, 16, seed=1, shift=0.3)),
    "far from zero": (features(80, 16, seed=0, shift=1000.0), features(70, 16, seed=1, shift=1000.2)),
    "wide features": (features(60, 700, seed=0), features(50, 700, seed=1)),
    "integers": tuple(features(n, 3, seed=n, scale=2.0).round() for n in (90, 70)),
    "duplicates": duplicated(),
    "collapsed": collapsed(),
    "one picture": dead(),
    "all inside": (features(60, 64, seed=0), features(30, 64, seed=1, scale=0.01)),
    "double": (features(50, 8, seed=0).double() / 3 + 1e6, features(50, 8, seed=1).double() / 3 + 1e6),
}


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("name", SETS)
def test_neighbours_agree_with_all_distances(name, closed, monkeypatch):
    monkeypatch.setattr(feature_sets, "_BLOCK", 2000)  # several blocks
    real, fake = SETS[name]
    found = neighbours(real=real, fake=fake, pr_k=3, dc_k=5, pr_closed=closed, dc_closed=closed)
    expected = reference_neighbours(real, fake, 3, closed), reference_neighbours(real, fake, 5, closed)
    assert torch.equal(found.precise, expected[0][0])
    assert torch.equal(found.recalled, expected[0][1])
    assert torch.equal(found.density, expected[1][2])
    assert torch.equal(found.covered, expected[1][3])


def test_defaults_are_those_of_the_authors():
    real, fake = SETS["integers"]
    found = neighbour_scores(real, fake)
    closed, opened = reference_neighbours(real, fake, 3, True), reference_neighbours(real, fake, 5, False)
    expected = [float(closed[0].double().mean()), float(closed[1].double().mean())]
    expected += [float(opened[2].mean()), float(opened[3].double().mean())]
    assert found == pytest.approx(expected)


def test_the_sides_cannot_be_swapped_by_accident():
    real, fake = SETS["overlapping"]
    with pytest.raises(TypeError):
        neighbours(real, fake)
    precision, recall, *_ = neighbour_scores(real, fake)
    assert neighbour_scores(fake, real)[:2] == [recall, precision]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_bounds_contain_the_distances(dtype, scale):
    others = features(40, 300, seed=0, scale=scale)
    rows = torch.cat([others[:20], others[:20] * (1 + 1e-6), features(20, 300, seed=1, scale=scale)])
    low, high = _DistanceBounds(others, dtype).of(rows)
    exact = (rows.double()[:, None] - others.double()).square().sum(2)
    assert bool((low <= exact).all() and (exact <= high).all())
    assert float((high - low).max()) < 1e-3 * float(exact.max())


@pytest.mark.parametrize(("real", "fake"), [(5, 50), (50, 5)])
def test_too_few_images_have_no_neighbours(real, fake):
    with pytest.raises(DataError, match="too few"):
        neighbours(real=features(real, 4, seed=0), fake=features(fake, 4, seed=1), dc_k=5)


def test_relaxed_products_of_training_do_not_reach_the_metrics():
    real, fake = features(200, 64, seed=0), features(200, 64, seed=1)
    expected = neighbour_scores(real, fake)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = neighbour_scores(real, fake)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert found == expected
