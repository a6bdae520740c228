"""Labels as numbers and as rows of weights."""

import pytest
import torch

from gantx.models.layers.conditioning import LabelEmbedding, one_hot


def test_rows_of_weights_stand_for_labels():
    embedding = LabelEmbedding(3, 4)
    labels = torch.tensor([2, 0])
    rows = one_hot(labels, 3)
    assert rows.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert torch.equal(embedding(rows), embedding(labels))
    between = embedding(torch.tensor([[0.5, 0.0, 0.5]]))
    assert not torch.equal(between, embedding(labels[:1]))
    with pytest.raises(ValueError, match="it needs labels"):
        embedding(None)
