"""What is said when memory runs out."""

import errno

import numpy as np
import pytest
import torch

from gantx.errors import MissingError
from gantx.runtime import memory


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(1 << 60, dtype=torch.uint8),
        lambda: torch.empty(1 << 62, dtype=torch.float64),
        lambda: np.empty(1 << 60, np.uint8),
        lambda: bytearray(1 << 60),
    ],
)
def test_an_allocation_that_is_too_large_is_explained(allocate):
    with pytest.raises(MissingError, match="choose less"), memory.explained("choose less"):
        allocate()


def test_it_knows_running_out_from_other_errors():
    assert memory.ran_out(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"))
    assert memory.ran_out(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED in `cublasCreate`"))
    assert memory.ran_out(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert memory.ran_out(ImportError("libtorch_cuda.so: failed to map segment from shared object"))
    assert not memory.ran_out(OSError(errno.ENOSPC, "No space left on device"))
    assert not memory.ran_out(ValueError("out of memory"))
    with pytest.raises(RuntimeError, match="shapes"), memory.explained("choose less"):
        raise RuntimeError("shapes differ")


def test_what_cannot_fit_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(memory, "free_on_host", lambda: 10**9)
    memory.require(10**9, "a grid", "ask for less")
    with pytest.raises(
        MissingError, match=r"a grid takes 2.0 GB of memory but 1.0 GB are free: ask for less"
    ):
        memory.require(2 * 10**9, "a grid", "ask for less")
    monkeypatch.setattr(memory, "free_on_host", lambda: None)
    memory.require(10**18, "a grid", "ask for less")
