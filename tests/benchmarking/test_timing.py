"""Times are those of the work, one for each call."""

import time

import pytest
import torch

from gantx.benchmarking.timing import Stopwatch, durations

CPU = torch.device("cpu")


def test_every_call_has_its_own_time():
    sleeps = iter([0.0, 0.03, 0.0])
    seconds = durations(lambda: time.sleep(next(sleeps)), CPU, 3)
    assert len(seconds) == 3
    assert seconds[1] >= 0.03 > seconds[0]


def test_spans_lie_between_marks():
    watch = Stopwatch(CPU)
    assert watch.spans() == []
    watch.mark()
    assert watch.spans() == []
    time.sleep(0.01)
    watch.mark()
    (span,) = watch.spans()
    assert span >= 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_timed_by_its_own_clock():
    device = torch.device("cuda", torch.cuda.current_device())
    a = torch.randn(4096, 4096, device=device)
    seconds = durations(lambda: a @ a, device, 5)
    assert min(seconds) > 1e-4  # the host hands over a product in microseconds
