"""All metrics of features against recorded values of other implementations."""

import itertools
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.feature_metrics import frechet_distance, kernel_distance, neighbour_scores
from helpers.golden_file import ROOT, GoldenFile, find_golden
from safetensors.torch import load_file

from gantx.evaluation.frechet import Gaussian, Moments
from gantx.evaluation.inception_score import inception_score, inception_scores
from gantx.evaluation.kernel_distance import kernel_distances, polynomial_kernel

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
    distance = frechet_distance(real, fake)
    close = {"rel": 1e-6, "abs": 1e-9} if full_rank else {"rel": 0, "abs": 1e-6}
    assert distance == pytest.approx(golden["fid/reference_f64_ddof1"], **close)
    if "fid/mpmath_60_digits_ddof1" in golden.values:
        assert distance == pytest.approx(float(golden["fid/mpmath_60_digits_ddof1"]), rel=1e-13)
    by_n = frechet_distance(real, fake, ddof=0)
    assert by_n == pytest.approx(golden["fid/reference_f64_ddof0_stylegan"], **close)
    moments = Moments.of_features(real), Moments.of_features(fake)
    first, second = (Gaussian.of_moments(side.mean, side.covariance()) for side in moments)
    assert first.distance(second) == pytest.approx(distance, rel=1e-9, abs=1e-9)
    squared = (moments[0].mean - moments[1].mean).square().sum()
    assert float(squared) == pytest.approx(golden["fid/mean_sq_term"], rel=1e-6, abs=1e-12)
    # Their means are float32, and their root is inexact where the covariances are singular.
    theirs = {"rel": 1e-5, "abs": 1e-9} if full_rank else {"rel": 0, "abs": 5e-3}
    for tool in ("cleanfid_fid_from_feats", "torch_fidelity"):
        assert distance == pytest.approx(golden[f"fid/{tool}"], **theirs)


def check_kernel(golden, real, fake):
    close = {"rel": 0, "abs": 1e-6}
    assert kernel_distance(real, fake) == pytest.approx(golden["kid/unbiased_all_samples"], **close)
    pairs = ((real, real), (fake, fake), (real, fake))
    means = [polynomial_kernel(x, y).mean(dtype=torch.float64) for x, y in pairs]
    biased = float(means[0] + means[1] - 2 * means[2])
    assert biased == pytest.approx(golden["kid/biased_all_samples"], **close)

    indices = zip(golden.tensors["kid_idx_real"].long(), golden.tensors["kid_idx_fake"].long(), strict=True)
    subsets = [kernel_distance(real[rows], fake[columns]) for rows, columns in indices]
    assert subsets == pytest.approx(golden["kid/subset_indices/per_subset"], **close)
    assert np.mean(subsets) == pytest.approx(golden["kid/subset_indices/mean"], **close)
    assert np.std(subsets) == pytest.approx(golden["kid/subset_indices/std_ddof0"], **close)

    call = golden["kid/cleanfid_kernel_distance/call"]
    assert call.startswith("np.random.seed")
    assert "kernel_distance(real, fake" in call
    seed, count, size = (int(number) for number in re.findall(r"\d+", call))
    found = kernel_distances(real, fake, subsets=count, size=size, seed=seed)
    assert float(found.mean()) == pytest.approx(golden["kid/cleanfid_kernel_distance/value"], **close)

    # torch-fidelity draws of the fake images first, and takes all subsets from one generator.
    call = golden["kid/torch_fidelity/call"]
    count, size, seed = (int(number) for number in re.findall(r"=(\d+)", call))
    rng = np.random.RandomState(seed)
    subsets = []
    for _ in range(count):
        columns = rng.choice(len(fake), size, replace=False)
        rows = rng.choice(len(real), size, replace=False)
        subsets.append(kernel_distance(real[rows], fake[columns]))
    # Its float32 sums lose that much where kernel values are large, as on the integer grid; ours do not.
    largest = max(float(polynomial_kernel(side, side).max()) for side in (real, fake))
    close = {"rel": 0, "abs": max(1e-6, largest * torch.finfo(torch.float32).eps)}
    assert np.mean(subsets) == pytest.approx(golden["kid/torch_fidelity/mean"], **close)
    assert np.std(subsets) == pytest.approx(golden["kid/torch_fidelity/std"], **close)


def check_neighbours(golden, path, real, fake, k):
    for closed, sources in (
        (True, ("closed_ball_reference",)),
        (False, ("open_ball_reference", "prdc_package_open_ball")),
    ):
        found = neighbour_scores(real, fake, pr_k=k, dc_k=k, pr_closed=closed, dc_closed=closed)
        for source in sources:
            expected = [
                golden[f"{path}/{source}/{name}"] for name in ("precision", "recall", "density", "coverage")
            ]
            assert found == pytest.approx(expected, rel=1e-12)
    precision, recall, *_ = neighbour_scores(real, fake, pr_k=k, dc_k=k)
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
            scores = inception_scores(logits, splits)
            assert scores.tolist() == pytest.approx(golden[f"{path}/per_split"], rel=1e-9)
            mean, deviation = inception_score(logits, splits)
            assert mean == pytest.approx(golden[f"{path}/no_bias_mean"], rel=1e-9)
            assert deviation == pytest.approx(golden[f"{path}/no_bias_std_ddof0"], rel=1e-6, abs=1e-12)
            corrected = float(scores.std()) if splits > 1 else 0
            assert corrected == pytest.approx(golden[f"{path}/no_bias_std_ddof1_studiogan"], rel=1e-6)
            theirs = golden[f"{path}/torch_fidelity_no_shuffle"]
            assert (mean, deviation) == pytest.approx(theirs, rel=1e-6, abs=1e-12)
            theirs = golden[f"{path}/torch_fidelity_shuffle_seed2020"]
            assert inception_score(shuffled, splits) == pytest.approx(theirs, rel=1e-6, abs=1e-12)
            mean, deviation = inception_score(logits + bias, splits)
            assert mean == pytest.approx(golden[f"{path}/with_bias_mean"], rel=1e-6)
            expected = golden[f"{path}/with_bias_std_ddof0"]
            assert deviation == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_metrics_agree_with_the_official_ganformer_code():
    with GoldenFile("gansformer/metrics") as golden:
        real, fake = golden["real"], golden["gen"]
        moments = Moments.of_features(real)
        torch.testing.assert_close(moments.mean, golden["real_mean"], rtol=0, atol=1e-6)
        torch.testing.assert_close(moments.covariance(ddof=0), golden["real_cov"], rtol=0, atol=1e-6)
        distance = frechet_distance(real, fake, ddof=0)
        assert distance == pytest.approx(float(golden["fid"]), rel=1e-6)
        # As many images as a subset has: each subset is all of them.
        found = kernel_distances(real, fake).mean()
        assert float(found) == pytest.approx(float(golden["kid_100x1000_capped"]), abs=1e-6)
        mean, deviation = inception_score(golden["probs"].log(), golden.config["isplits"])
        assert mean == pytest.approx(float(golden["is_mean"]), rel=1e-6)
        assert deviation == pytest.approx(float(golden["is_std"]), rel=1e-5)  # theirs is float32
        # Theirs are features of half precision.
        precision, recall, *_ = neighbour_scores(real.half(), fake.half())
        assert precision == pytest.approx(float(golden["precision"]), rel=1e-6)
        assert recall == pytest.approx(float(golden["recall"]), rel=1e-6)


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
        from gantx.evaluation import intervals
        from gantx.evaluation.frechet import Gaussian
        from gantx.evaluation.inception_score import inception_score
        from gantx.evaluation.neighbours import neighbours

        real, fake = torch.randn(100, 8), torch.randn(90, 8)
        assert Gaussian.of_features(real).distance(Gaussian.of_features(fake)) > 0
        assert Gaussian.of_features(real[:5]).distance(Gaussian.of_features(fake)) > 0
        assert intervals.kernel(real, fake, torch.zeros(3, dtype=torch.float64))
        assert inception_score(real)[0] >= 1
        assert all(float(values.double().mean()) > 0 for values in neighbours(real=real, fake=fake))
        assert intervals.frechet(torch.zeros(8), torch.eye(8), fake)
        """
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(ROOT), check=True, timeout=60)
