"""Compiling without code generation."""

import pytest
import torch
from torch._dynamo.utils import counters


@pytest.fixture
def quick_backend(monkeypatch):
    """Runs compile without code generation, and tell how many graphs they had."""
    plain = torch.compile

    def quick(function, *, options, **how):
        kept = {"guard_filter_fn": options["guard_filter_fn"]}
        return plain(function, **how, options=kept, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", quick)
    counters.clear()
    return lambda: counters["stats"]["unique_graphs"]
