"""What a GPU does at once counts once."""

import pytest
import torch

from gantx.benchmarking.host_gaps import busy_seconds, covered


@pytest.mark.parametrize(
    ("spans", "length"),
    [
        ([], 0),
        ([(1, 2)], 1),
        ([(5, 6), (0, 2)], 3),
        ([(0, 2), (1, 3)], 3),
        ([(0, 10), (1, 2), (3, 4), (9, 11)], 11),
        ([(0, 1), (1, 2), (0, 1)], 2),
    ],
)
def test_overlaps_count_once(spans, length):
    assert covered(spans) == length


def test_a_cpu_is_not_asked_and_nothing_is_run_for_it():
    assert busy_seconds(lambda: pytest.fail("ran"), torch.device("cpu")) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_busy_while_it_computes_only():
    device = torch.device("cuda", torch.cuda.current_device())
    a = torch.randn(2048, 2048, device=device)
    few, many = (busy_seconds(lambda n=n: [a @ a for _ in range(n)], device) for n in (10, 40))
    assert 2 < many / few < 8
