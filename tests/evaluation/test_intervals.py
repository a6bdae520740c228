import math

import pytest
import torch
from helpers.feature_metrics import kernel_distance

from gantx.evaluation import intervals
from gantx.evaluation.frechet import Gaussian, Moments
from gantx.evaluation.inception_score import inception_score
from gantx.evaluation.intervals import Interval
from gantx.evaluation.kernel_distance import kernel_distances
from gantx.evaluation.neighbours import neighbours

RUNS = 40


class Toy:
    """A normal reference of D features and a generator that misses its mean and scale; endless samples."""

    def __init__(self, dim, shift, scale):
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.covariance = torch.logspace(0, -1, dim, dtype=torch.float64).diag()
        self.shift, self.scale = shift / dim**0.5, scale
        self._rng = torch.Generator().manual_seed(0)

    def real(self, count):
        noise = torch.randn(count, len(self.mean), generator=self._rng)
        return noise * self.covariance.diag().sqrt().float()

    def fake(self, count):
        return self.real(count) * self.scale + self.shift

    def distance(self, fake):
        reference = Gaussian.of_moments(self.mean, self.covariance)
        return reference.distance(Gaussian.of_features(fake))

    @property
    def limit(self):
        spread = self.covariance.diag().sqrt() * (1 - self.scale)
        return float(self.shift**2 * len(self.mean) + spread.square().sum())


@pytest.fixture
def quick(monkeypatch):
    """Fewer resamples: the simulations below need many intervals of little precision."""
    monkeypatch.setattr(intervals, "_REPLICATES", 120)


def covered(found, truth):
    """The share of intervals that contain the truth."""
    return sum(low <= truth <= high for low, high in found) / len(found)


def mean_and_width(values):
    """Mean of simulated scores, and the width of an interval that contains 95 % of them."""
    values = torch.tensor(values, dtype=torch.float64)
    return float(values.mean()), 3.92 * float(values.std())


def mean_width(found):
    return sum(high - low for low, high in found) / len(found)


# --- do they contain the truth as often as they should? ---------------------------------------------------


@pytest.mark.parametrize(("dim", "count"), [(8, 150), (32, 60)], ids=["many images", "few images"])
def test_fid_intervals_contain_the_mean_score_at_this_number(dim, count):
    toy = Toy(dim, shift=0.6, scale=1.2)
    truth, width = mean_and_width([toy.distance(toy.fake(count)) for _ in range(300)])
    found = [
        intervals.frechet(toy.mean, toy.covariance, toy.fake(count), seed=run).at_count for run in range(RUNS)
    ]
    assert covered(found, truth) >= 0.85
    assert 0.8 < mean_width(found) / width < 1.6


def test_fid_extrapolates_to_infinitely_many_images():
    toy = Toy(24, shift=0.4, scale=1.1)
    found = [intervals.frechet(toy.mean, toy.covariance, toy.fake(120), seed=run) for run in range(RUNS)]
    biased = sum(sum(one.at_count) / 2 for one in found) / RUNS
    limit = sum(one.limit for one in found) / RUNS
    assert biased > 2 * toy.limit
    assert limit == pytest.approx(toy.limit, rel=0.2)
    assert covered([one.at_limit for one in found], toy.limit) >= 0.85


@pytest.mark.parametrize("shift", [0.0, 1.0], ids=["same distribution", "shifted"])
@pytest.mark.parametrize("rows", [5000, 90], ids=["all images", "some stand for all"])
def test_kid_intervals_contain_the_truth(shift, rows, quick, monkeypatch):
    monkeypatch.setattr(intervals, "_KERNEL_ROWS", rows)
    toy = Toy(8, shift, scale=1.0)
    truth = kernel_distance(toy.real(6000), toy.fake(6000)) if shift else 0.0

    def score():
        real, fake = toy.real(200), toy.fake(160)
        return real, fake, kernel_distances(real, fake, subsets=20, size=50)

    _, width = mean_and_width([float(score()[2].mean()) for _ in range(100)])
    found = [intervals.kernel(*score(), seed=run) for run in range(RUNS)]
    assert covered(found, truth) >= 0.85
    # Between equal distributions a bootstrap is known to overstate the spread.
    assert 0.75 < mean_width(found) / width < (1.5 if shift else 2.5)


def test_inception_score_intervals_contain_the_mean_score(quick):
    rng = torch.Generator().manual_seed(0)

    def logits():
        return 2 * torch.randn(300, 10, generator=rng)

    truth, width = mean_and_width([inception_score(logits(), 3)[0] for _ in range(200)])
    found = [intervals.inception_score(logits(), splits=3, seed=run) for run in range(RUNS)]
    assert covered(found, truth) >= 0.85
    assert 0.75 < mean_width(found) / width < 1.4


@pytest.mark.parametrize(
    ("name", "interval"),
    [
        ("precise", intervals.share),
        ("recalled", intervals.share),
        ("density", intervals.mean),
        ("covered", intervals.share),
    ],
)
def test_neighbour_intervals_contain_the_mean_score_against_the_same_other_set(name, interval, quick):
    toy = Toy(8, shift=1.0, scale=0.8)
    real, fake = toy.real(200), toy.fake(200)
    of_fakes = name in ("precise", "density")
    values = []
    for _ in range(150):
        sides = {"real": real, "fake": toy.fake(200)} if of_fakes else {"real": toy.real(200), "fake": fake}
        values.append(getattr(neighbours(**sides), name))
    truth, width = mean_and_width([float(value.double().mean()) for value in values])
    found = [interval(value) for value in values[:RUNS]]
    assert covered(found, truth) >= 0.85
    assert 0.75 < mean_width(found) / width < 1.3


# --- what they are made of --------------------------------------------------------------------------------


def test_an_interval_depends_on_its_seed_alone(quick):
    toy = Toy(6, shift=0.5, scale=1.1)
    real, fake = toy.real(60), toy.fake(50)
    distances = torch.rand(20, dtype=torch.float64)
    calls = {
        "frechet": lambda seed: intervals.frechet(toy.mean, toy.covariance, fake, seed=seed),
        "kernel": lambda seed: intervals.kernel(real, fake, distances, seed=seed),
        "inception_score": lambda seed: intervals.inception_score(fake, splits=2, seed=seed),
        "mean": lambda seed: intervals.mean(distances, seed=seed),
    }
    for name, call in calls.items():
        first = call(1)
        torch.manual_seed(99)
        torch.rand(3)
        assert call(1) == first, name
        assert call(2) != first, name


def test_fid_interval_is_about_the_score_itself():
    toy = Toy(16, shift=0.5, scale=1.1)
    for ddof in (0, 1):
        fake = toy.fake(100)
        low, high = intervals.frechet(toy.mean, toy.covariance, fake, ddof=ddof).at_count
        reference = Gaussian.of_moments(toy.mean, toy.covariance)
        assert (low + high) / 2 == pytest.approx(
            reference.distance(Gaussian.of_features(fake, ddof)), rel=1e-6
        )


def test_fid_interval_works_with_a_singular_reference():
    toy = Toy(64, shift=0.5, scale=1.1)
    few = Moments.of_features(toy.real(30))
    found = intervals.frechet(few.mean, few.covariance(), toy.fake(50))
    assert math.isfinite(found.at_count.high)
    assert found.at_count.low < found.at_count.high


def test_too_few_images_have_no_interval_and_few_no_limit():
    toy = Toy(32, shift=0.5, scale=1.1)
    assert intervals.frechet(toy.mean, toy.covariance, toy.fake(39)) is None
    found = intervals.frechet(toy.mean, toy.covariance, toy.fake(64))
    assert found.at_count.high > found.at_count.low
    assert (found.limit, found.at_limit) == (None, None)
    assert intervals.frechet(toy.mean, toy.covariance, toy.fake(66)).limit is not None
    distances = torch.zeros(20, dtype=torch.float64)
    assert intervals.kernel(toy.real(39), toy.fake(100), distances) is None
    assert intervals.kernel(toy.real(100), toy.fake(39), distances) is None
    assert intervals.kernel(toy.real(40), toy.fake(40), distances) is not None


def test_the_chance_of_the_subsets_widens_the_interval_of_kid(quick):
    toy = Toy(6, shift=0.5, scale=1.1)
    real, fake = toy.real(80), toy.fake(80)
    spread = torch.linspace(-1, 1, 20, dtype=torch.float64)
    certain = intervals.kernel(real, fake, torch.zeros(20, dtype=torch.float64))
    uncertain = intervals.kernel(real, fake, spread)
    assert uncertain.low < certain.low < certain.high < uncertain.high
    shifted = intervals.kernel(real, fake, spread + 5)
    assert shifted == pytest.approx((uncertain.low + 5, uncertain.high + 5))


def test_intervals_do_not_depend_on_the_size_of_blocks(quick, monkeypatch):
    toy = Toy(6, shift=0.5, scale=1.1)
    real, fake, distances = toy.real(80), toy.fake(70), torch.zeros(20, dtype=torch.float64)
    expected = intervals.kernel(real, fake, distances)
    monkeypatch.setattr(intervals, "_BLOCK", 500)
    assert intervals.kernel(real, fake, distances) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("true", "count", "expected"),
    [
        (0, 10, (0.0, 0.27754)),
        (10, 10, (0.72246, 1.0)),
        (5, 10, (0.23659, 0.76341)),
        (81, 263, (0.2553, 0.3662)),
    ],
)
def test_share_is_wilsons_interval(true, count, expected):
    indicators = torch.arange(count) < true
    assert intervals.share(indicators) == pytest.approx(expected, abs=5e-5)


def test_mean_of_many_values_has_the_interval_of_the_normal_distribution():
    values = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    low, high = intervals.mean(values)
    reach = 1.96 * float(values.std()) / 4000**0.5
    assert high - low == pytest.approx(2 * reach, rel=0.15)
    assert (low + high) / 2 == pytest.approx(float(values.mean()), abs=reach / 4)


def test_every_score_says_how_its_interval_came_about():
    assert set(intervals.METHODS) == {"fid", "kid", "is", "precision", "recall", "density", "coverage"}
    assert Interval._fields == ("low", "high")
