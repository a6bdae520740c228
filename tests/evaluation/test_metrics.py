import itertools
import json
import math
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.golden_file import ROOT, GoldenFile, find_golden
from safetensors.torch import load_file

from gantx.errors import DataError
from gantx.evaluation import metrics
from gantx.evaluation.metrics import Gaussian, Moments

CASES = (
    "feat16_mp",
    "feat64_unequal",
    "feat2048_rank_deficient",
    "identical",
    "ties_integer_grid",
    "mode_collapse",
)


class GoldenValues:
    """The recorded values of a case, by path; leaving the `with` fails when one was never asked for."""

    def __init__(self, case):
        recorded = json.loads(find_golden("metrics/golden.json").read_text())["cases"][case]
        self.tensors = {}
        for name in recorded["files"]:
            self.tensors |= load_file(find_golden(f"metrics/{name}"))
        self.values = dict(self._flat(recorded["values"], ""))
        self._unused = set(self.values)

    def _flat(self, value, path):
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from self._flat(inner, f"{path}/{key}" if path else key)
        else:
            yield path, value

    def __enter__(self):
        return self

    def __exit__(self, kind, problem, trace):
        if kind is None:
            assert not self._unused, f"never compared: {sorted(self._unused)}"

    def __getitem__(self, path):
        self._unused.discard(path)
        return self.values[path]


def features(count, dim, seed, shift=0.0, scale=1.0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) * scale + shift


# --- against recorded values ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_golden_values_of_features(case):
    with GoldenValues(case) as golden:
        real, fake = golden.tensors["real"], golden.tensors["fake"]
        check_frechet(golden, real, fake, full_rank=min(len(real), len(fake)) > real.shape[1])
        check_kernel(golden, real, fake)
        for k in (3, 5):
            check_neighbours(golden, f"prdc/k{k}", real, fake, k)
        assert golden["cmmd_on_l2_normalised"] >= 0  # gantx has no CMMD


def check_frechet(golden, real, fake, full_rank):
    distance = metrics.frechet_distance_of_features(real, fake)
    close = {"rel": 1e-6, "abs": 1e-9} if full_rank else {"rel": 0, "abs": 1e-6}
    assert distance == pytest.approx(golden["fid/reference_f64_ddof1"], **close)
    if "fid/mpmath_60_digits_ddof1" in golden.values:
        assert distance == pytest.approx(float(golden["fid/mpmath_60_digits_ddof1"]), rel=1e-13)
    by_n = metrics.frechet_distance_of_features(real, fake, ddof=0)
    assert by_n == pytest.approx(golden["fid/reference_f64_ddof0_stylegan"], **close)
    moments = Moments.of_features(real), Moments.of_features(fake)
    of_moments = [value for side in moments for value in (side.mean, side.covariance())]
    assert metrics.frechet_distance(*of_moments) == pytest.approx(distance, rel=1e-9, abs=1e-9)
    squared = (moments[0].mean - moments[1].mean).square().sum()
    assert float(squared) == pytest.approx(golden["fid/mean_sq_term"], rel=1e-6, abs=1e-12)
    # Their means are float32, and their root is inexact where the covariances are singular.
    theirs = {"rel": 1e-5, "abs": 1e-9} if full_rank else {"rel": 0, "abs": 5e-3}
    for tool in ("cleanfid_fid_from_feats", "torch_fidelity"):
        assert distance == pytest.approx(golden[f"fid/{tool}"], **theirs)


def check_kernel(golden, real, fake):
    close = {"rel": 0, "abs": 1e-6}
    assert metrics.kernel_distance(real, fake) == pytest.approx(golden["kid/unbiased_all_samples"], **close)
    pairs = ((real, real), (fake, fake), (real, fake))
    means = [metrics.polynomial_kernel(x, y).mean(dtype=torch.float64) for x, y in pairs]
    biased = float(means[0] + means[1] - 2 * means[2])
    assert biased == pytest.approx(golden["kid/biased_all_samples"], **close)

    indices = zip(golden.tensors["kid_idx_real"].long(), golden.tensors["kid_idx_fake"].long(), strict=True)
    subsets = [metrics.kernel_distance(real[rows], fake[columns]) for rows, columns in indices]
    assert subsets == pytest.approx(golden["kid/subset_indices/per_subset"], **close)
    assert np.mean(subsets) == pytest.approx(golden["kid/subset_indices/mean"], **close)
    assert np.std(subsets) == pytest.approx(golden["kid/subset_indices/std_ddof0"], **close)

    call = golden["kid/cleanfid_kernel_distance/call"]
    assert call.startswith("np.random.seed")
    assert "kernel_distance(real, fake" in call
    seed, count, size = (int(number) for number in re.findall(r"\d+", call))
    found = metrics.kernel_distances(real, fake, subsets=count, size=size, seed=seed)
    assert float(found.mean()) == pytest.approx(golden["kid/cleanfid_kernel_distance/value"], **close)

    # torch-fidelity draws of the fake images first, and takes all subsets from one generator.
    call = golden["kid/torch_fidelity/call"]
    count, size, seed = (int(number) for number in re.findall(r"=(\d+)", call))
    dice = np.random.RandomState(seed)
    subsets = []
    for _ in range(count):
        columns = dice.choice(len(fake), size, replace=False)
        rows = dice.choice(len(real), size, replace=False)
        subsets.append(metrics.kernel_distance(real[rows], fake[columns]))
    # Its float32 sums lose that much where kernel values are large, as on the integer grid; ours do not.
    largest = max(float(metrics.polynomial_kernel(side, side).max()) for side in (real, fake))
    close = {"rel": 0, "abs": max(1e-6, largest * torch.finfo(torch.float32).eps)}
    assert np.mean(subsets) == pytest.approx(golden["kid/torch_fidelity/mean"], **close)
    assert np.std(subsets) == pytest.approx(golden["kid/torch_fidelity/std"], **close)


def check_neighbours(golden, path, real, fake, k):
    for closed, sources in (
        (True, ("closed_ball_reference",)),
        (False, ("open_ball_reference", "prdc_package_open_ball")),
    ):
        found = [
            *metrics.precision_recall(real=real, fake=fake, k=k, closed=closed),
            *metrics.density_coverage(real=real, fake=fake, k=k, closed=closed),
        ]
        for source in sources:
            expected = [
                golden[f"{path}/{source}/{name}"] for name in ("precision", "recall", "density", "coverage")
            ]
            assert found == pytest.approx(expected, rel=1e-12)
    precision, recall = metrics.precision_recall(real=real, fake=fake, k=k)
    theirs = [golden[f"{path}/torch_fidelity_closed_ball/{name}"] for name in ("precision", "recall")]
    assert [precision, recall] == pytest.approx(theirs, rel=1e-6)  # theirs are float32
    f_score = golden[f"{path}/torch_fidelity_closed_ball/f_score"]
    assert 2 * precision * recall / (precision + recall) == pytest.approx(f_score, rel=1e-6)


def test_golden_inception_scores():
    with GoldenValues("inception_score") as golden:
        logits, bias = golden.tensors["logits_no_bias"], golden.tensors["bias"]
        shuffled = logits[torch.from_numpy(np.random.RandomState(2020).permutation(len(logits)))]
        for splits in (1, 3, 10):
            path = f"splits{splits}"
            scores = metrics.inception_scores(logits, splits)
            assert scores.tolist() == pytest.approx(golden[f"{path}/per_split"], rel=1e-9)
            mean, deviation = metrics.inception_score(logits, splits)
            assert mean == pytest.approx(golden[f"{path}/no_bias_mean"], rel=1e-9)
            assert deviation == pytest.approx(golden[f"{path}/no_bias_std_ddof0"], rel=1e-6, abs=1e-12)
            corrected = float(scores.std()) if splits > 1 else 0
            assert corrected == pytest.approx(golden[f"{path}/no_bias_std_ddof1_studiogan"], rel=1e-6)
            theirs = golden[f"{path}/torch_fidelity_no_shuffle"]
            assert (mean, deviation) == pytest.approx(theirs, rel=1e-6, abs=1e-12)
            theirs = golden[f"{path}/torch_fidelity_shuffle_seed2020"]
            assert metrics.inception_score(shuffled, splits) == pytest.approx(theirs, rel=1e-6, abs=1e-12)
            mean, deviation = metrics.inception_score(logits + bias, splits)
            assert mean == pytest.approx(golden[f"{path}/with_bias_mean"], rel=1e-6)
            expected = golden[f"{path}/with_bias_std_ddof0"]
            assert deviation == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_golden_streaming():
    with GoldenValues("streaming") as golden:
        x, cuts = golden.tensors["x"], golden.tensors["cuts"].tolist()
        moments = Moments(x.shape[1])
        for start, end in itertools.pairwise(cuts):
            moments.add(x[start:end])
        assert golden["note"]  # how to cut
        assert float(moments.mean.sum()) == pytest.approx(golden["mean_sum"], rel=1e-14)
        covariance = moments.covariance()
        assert float(covariance.trace()) == pytest.approx(golden["cov_ddof1_trace"], rel=1e-13)
        assert float(covariance.norm()) == pytest.approx(golden["cov_ddof1_fro"], rel=1e-13)
        expected = np.cov(x.double().numpy(), rowvar=False)
        np.testing.assert_allclose(covariance.numpy(), expected, rtol=0, atol=1e-13)


def test_metrics_agree_with_the_official_ganformer_code():
    with GoldenFile("gansformer/metrics") as golden:
        real, fake = golden["real"], golden["gen"]
        moments = Moments.of_features(real)
        torch.testing.assert_close(moments.mean, golden["real_mean"], rtol=0, atol=1e-6)
        torch.testing.assert_close(moments.covariance(ddof=0), golden["real_cov"], rtol=0, atol=1e-6)
        distance = metrics.frechet_distance_of_features(real, fake, ddof=0)
        assert distance == pytest.approx(float(golden["fid"]), rel=1e-6)
        # As many images as a subset holds: each subset is all of them.
        found = metrics.kernel_distances(real, fake).mean()
        assert float(found) == pytest.approx(float(golden["kid_100x1000_capped"]), abs=1e-6)
        mean, deviation = metrics.inception_score(golden["probs"].log(), golden.config["isplits"])
        assert mean == pytest.approx(float(golden["is_mean"]), rel=1e-6)
        assert deviation == pytest.approx(float(golden["is_std"]), rel=1e-5)  # theirs is float32
        # Theirs are features of half precision.
        precision, recall = metrics.precision_recall(real=real.half(), fake=fake.half())
        assert precision == pytest.approx(float(golden["precision"]), rel=1e-6)
        assert recall == pytest.approx(float(golden["recall"]), rel=1e-6)


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
    for merged in (left.merge(right), right.merge(left), Moments(24).merge(whole), whole.merge(Moments(24))):
        assert merged.count == 200
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-14, atol=0)
        torch.testing.assert_close(merged.scatter, whole.scatter, rtol=0, atol=1e-10)
    assert left.count == 120
    assert right.count == 80
    rest = whole.without(right)
    torch.testing.assert_close(rest.mean, left.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(rest.scatter, left.scatter, rtol=0, atol=1e-9)


def test_moments_travel_as_tensors():
    moments = Moments.of_features(features(30, 5, seed=1))
    state = moments.state()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    again = Moments.of_state(state)
    again.add(features(30, 5, seed=2))
    assert moments.count == 30
    assert again.count == 60
    moments.add(features(30, 5, seed=2))
    assert torch.equal(moments.scatter, again.scatter)
    assert torch.equal(moments.mean, again.mean)


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
    distance = metrics.frechet_distance(mean, first, mean + shift, second)
    assert distance == pytest.approx(expected + 10, rel=1e-8)
    assert metrics.frechet_distance(mean + shift, second, mean, first) == pytest.approx(distance, rel=1e-12)


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
    assert metrics.frechet_distance_of_features(a, b) == pytest.approx(reference_frechet(a, b), rel=1e-11)


def test_features_that_never_vary_do_no_harm():
    a, b = features(100, 16, seed=1), features(90, 16, seed=2, scale=2.0)
    a[:, 3], b[:, 3] = 0.5, 0.5
    a[:, 7] = 1.0
    assert metrics.frechet_distance_of_features(a, b) == pytest.approx(reference_frechet(a, b), rel=1e-11)


@pytest.mark.parametrize("count", [20, 100])
def test_frechet_distance_of_a_set_to_itself_is_zero_and_not_negative(count):
    a = features(count, 32, seed=4)
    distance = metrics.frechet_distance_of_features(a, a)
    assert 0 <= distance < 1e-10


def test_an_unusable_side_is_explained():
    good = features(10, 4, seed=0)
    mean, covariance = torch.zeros(4), torch.eye(4)
    with pytest.raises(DataError, match="not finite"):
        metrics.frechet_distance_of_features(good, good.clone().index_fill_(0, torch.tensor(3), math.nan))
    with pytest.raises(DataError, match="too few"):
        metrics.frechet_distance_of_features(good, good[:1])
    with pytest.raises(DataError, match="same feature network"):
        metrics.frechet_distance_of_features(good, good[:, :3])
    with pytest.raises(DataError, match="not finite"):
        metrics.frechet_distance(mean, covariance, mean, covariance * math.inf)
    with pytest.raises(DataError, match="does not belong"):
        metrics.frechet_distance(mean, covariance, mean, torch.eye(5))
    with pytest.raises(DataError, match="eigenvalue"):
        metrics.frechet_distance(mean, covariance, mean, torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.5])))


def test_a_covariance_stored_in_float32_is_one_still():
    x = features(30, 64, seed=5)
    moments = Moments.of_features(x)
    rounded = Gaussian.of_moments(moments.mean.float(), moments.covariance().float())
    assert rounded.distance(Gaussian.of_features(x)) < 1e-3


# --- kernel distance --------------------------------------------------------------------------------------


def test_kernel_distances_are_one_call_of_clean_fid():
    from cleanfid.fid import kernel_distance

    real, fake = features(90, 12, seed=0), features(70, 12, seed=1, shift=0.1)
    np.random.seed(7)
    expected = kernel_distance(real.numpy(), fake.numpy(), num_subsets=9, max_subset_size=40)
    found = metrics.kernel_distances(real, fake, subsets=9, size=40, seed=7)
    assert found.shape == (9,)
    assert found.std() > 0
    assert float(found.mean()) == pytest.approx(expected, abs=1e-7)  # summed in float32 there


def test_kernel_distances_leave_numpys_generator_alone(monkeypatch):
    real, fake = features(20, 4, seed=0), features(20, 4, seed=1)
    np.random.seed(3)
    expected = np.random.random(5)
    np.random.seed(3)
    metrics.kernel_distances(real, fake, subsets=3, size=10, seed=7)
    assert np.array_equal(np.random.random(5), expected)

    def broken(*args, **kwargs):
        np.random.random(3)
        raise RuntimeError("broken")

    monkeypatch.setattr("cleanfid.fid.kernel_distance", broken)
    np.random.seed(3)
    with pytest.raises(RuntimeError):
        metrics.kernel_distances(real, fake, subsets=3, size=10, seed=7)
    assert np.array_equal(np.random.random(5), expected)


def test_kernel_distance_in_blocks_is_that_of_the_definition(monkeypatch):
    real, fake = features(50, 6, seed=0), features(40, 6, seed=1, shift=0.5)
    kernel = [(x.double() @ y.double().T / 6 + 1) ** 3 for x, y in ((real, real), (fake, fake), (real, fake))]
    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in kernel[:2]]
    monkeypatch.setattr(metrics, "_BLOCK", 170)
    expected = float(within[0] + within[1] - 2 * kernel[2].mean())
    assert metrics.kernel_distance(real, fake) == pytest.approx(expected, abs=1e-6)


def test_relaxed_products_of_training_do_not_reach_the_metrics():
    real, fake = features(200, 64, seed=0), features(200, 64, seed=1)
    expected = metrics.kernel_distance(real, fake), metrics.precision_recall(real=real, fake=fake)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = metrics.kernel_distance(real, fake), metrics.precision_recall(real=real, fake=fake)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert found == expected


# --- Inception Score --------------------------------------------------------------------------------------


def test_inception_score_of_extreme_classifiers():
    certain = torch.zeros(60, 12)
    certain[torch.arange(60), torch.arange(60) % 12] = 2000.0  # every other probability underflows
    assert metrics.inception_score(certain, 5) == pytest.approx((12, 0))
    assert metrics.inception_score(torch.zeros(60, 12), 5) == pytest.approx((1, 0))


def test_inception_score_of_weighted_rows_is_that_of_repeated_rows(monkeypatch):
    logits = features(9, 7, seed=0)
    weights = torch.tensor([[0.0, 2, 1, 0, 3, 1, 0, 1, 1], [1.0] * 9])
    repeated = logits.repeat_interleave(weights[0].long(), 0)
    expected = [float(metrics.inception_scores(rows, 1)) for rows in (repeated, logits)]
    monkeypatch.setattr(metrics, "_BLOCK", 14)
    assert metrics.score_of_split(logits, weights).tolist() == pytest.approx(expected, rel=1e-12)


def test_more_splits_than_images_are_refused():
    with pytest.raises(DataError, match="too few"):
        metrics.inception_score(torch.zeros(9, 4), 10)


# --- neighbours -------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(metrics, "_BLOCK", 2000)  # several blocks
    real, fake = SETS[name]
    found = metrics.neighbours(real=real, fake=fake, pr_k=3, dc_k=5, pr_closed=closed, dc_closed=closed)
    expected = reference_neighbours(real, fake, 3, closed), reference_neighbours(real, fake, 5, closed)
    assert torch.equal(found.precise, expected[0][0])
    assert torch.equal(found.recalled, expected[0][1])
    assert torch.equal(found.density, expected[1][2])
    assert torch.equal(found.covered, expected[1][3])


def test_defaults_are_those_of_the_authors():
    real, fake = SETS["integers"]
    found = metrics.neighbours(real=real, fake=fake)
    precision, recall = metrics.precision_recall(real=real, fake=fake)
    density, coverage = metrics.density_coverage(real=real, fake=fake)
    closed, opened = reference_neighbours(real, fake, 3, True), reference_neighbours(real, fake, 5, False)
    expected = [float(closed[0].double().mean()), float(closed[1].double().mean())]
    expected += [float(opened[2].mean()), float(opened[3].double().mean())]
    assert [precision, recall, density, coverage] == pytest.approx(expected)
    assert [float(part.double().mean()) for part in found] == pytest.approx(expected)


def test_the_sides_cannot_be_swapped_by_accident():
    real, fake = SETS["overlapping"]
    for function in (metrics.precision_recall, metrics.density_coverage, metrics.neighbours):
        with pytest.raises(TypeError):
            function(real, fake)
    swapped = metrics.precision_recall(real=fake, fake=real)
    assert swapped == metrics.precision_recall(real=real, fake=fake)[::-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_bounds_of_distances_hold(dtype, scale):
    others = features(40, 300, seed=0, scale=scale)
    rows = torch.cat([others[:20], others[:20] * (1 + 1e-6), features(20, 300, seed=1, scale=scale)])
    low, high = metrics._DistanceBounds(others, dtype).of(rows)
    exact = (rows.double()[:, None] - others.double()).square().sum(2)
    assert bool((low <= exact).all() and (exact <= high).all())
    assert float((high - low).max()) < 1e-3 * float(exact.max())


@pytest.mark.parametrize(("real", "fake"), [(5, 50), (50, 5)])
def test_too_few_images_have_no_neighbours(real, fake):
    with pytest.raises(DataError, match="too few"):
        metrics.density_coverage(real=features(real, 4, seed=0), fake=features(fake, 4, seed=1), k=5)


# --- what is imported -------------------------------------------------------------------------------------


def test_scipy_and_clean_fid_are_not_needed_but_for_kid():
    code = textwrap.dedent(
        """
        import sys

        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("scipy", "cleanfid", "torchvision"):
                    raise ImportError(f"{name} is blocked")

        sys.meta_path.insert(0, Blocked())
        import torch
        from gantx.evaluation import intervals, metrics

        real, fake = torch.randn(100, 8), torch.randn(90, 8)
        assert metrics.frechet_distance_of_features(real, fake) > 0
        assert metrics.frechet_distance_of_features(real[:5], fake) > 0
        assert metrics.kernel_distance(real, fake) < 1
        assert metrics.inception_score(real)[0] >= 1
        assert metrics.precision_recall(real=real, fake=fake)[0] > 0
        assert metrics.density_coverage(real=real, fake=fake)[0] > 0
        assert intervals.frechet(torch.zeros(8), torch.eye(8), fake)
        """
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(ROOT), check=True, timeout=60)
