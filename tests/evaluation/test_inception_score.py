import pytest
import torch
from helpers.feature_metrics import features

from gantx.errors import DataError
from gantx.evaluation import feature_sets
from gantx.evaluation.inception_score import inception_score, inception_scores, score_of_split


def test_inception_score_of_extreme_classifiers():
    certain = torch.zeros(60, 12)
    certain[torch.arange(60), torch.arange(60) % 12] = 2000.0  # every other probability underflows
    assert inception_score(certain, 5) == pytest.approx((12, 0))
    assert inception_score(torch.zeros(60, 12), 5) == pytest.approx((1, 0))


def test_inception_score_of_weighted_rows_is_that_of_repeated_rows(monkeypatch):
    logits = features(9, 7, seed=0)
    weights = torch.tensor([[0.0, 2, 1, 0, 3, 1, 0, 1, 1], [1.0] * 9])
    repeated = logits.repeat_interleave(weights[0].long(), 0)
    expected = [float(inception_scores(rows, 1)) for rows in (repeated, logits)]
    monkeypatch.setattr(feature_sets, "_BLOCK", 14)
    assert score_of_split(logits, weights).tolist() == pytest.approx(expected, rel=1e-12)


def test_more_splits_than_images_are_refused():
    with pytest.raises(DataError, match="too few"):
        inception_score(torch.zeros(9, 4), 10)
