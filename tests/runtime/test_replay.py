"""Work is warmed up, captured, compared with itself and replayed; whatever fails, the numbers are right."""

import contextlib
import itertools
import weakref

import pytest
import torch
from helpers.recorded_operations import RecordedOperations

from gantx.errors import MissingError
from gantx.runtime import replay
from gantx.runtime.replay import CudaGraphs, Replay, agrees


class Walk:
    """Work on two tensors, the one counted, the other accumulated; `step` is a number of Python's."""

    def __init__(self, capture, **how):
        self.count, self.total = torch.zeros(()), torch.zeros(3, dtype=torch.float64)
        self.input = torch.zeros(3, dtype=torch.float64)
        self.step = 1
        self.runs = 0
        self.said = []
        self.replay = Replay(
            self.work,
            {"count": self.count, "total": self.total},
            capture=capture,
            name="the walk",
            log=self.said.append,
            **how,
        )

    def work(self):
        self.runs += 1
        self.count += self.step
        self.total.add_(self.input.sin() * self.count)

    def go(self, times):
        """So many steps; what `count` was after each, and the total of all compared with a plain one."""
        counts, total = [], self.total.clone()
        for number in range(times):
            self.input.fill_(number)
            self.replay()
            counts.append(int(self.count))
            total += self.input.sin() * self.count
        assert torch.equal(total, self.total)
        return counts


def test_work_is_warmed_up_then_captured_then_replayed():
    capture = RecordedOperations()
    walk = Walk(capture)
    assert walk.go(6) == [1, 2, 3, 4, 5, 6]
    assert (capture.warmed_up, len(capture.captured), capture.replayed) == (1, 1, 5)
    assert walk.runs == 3, "warmed up, compared with, captured"
    assert not walk.said


def test_a_replay_does_not_see_what_python_changes_until_it_is_forgotten():
    """Else the stand-in would prove nothing."""
    capture = RecordedOperations()
    walk = Walk(capture)
    assert walk.go(3) == [1, 2, 3]
    walk.step = 10
    assert walk.go(2) == [4, 5]
    walk.replay.forget()
    assert walk.go(4) == [15, 25, 35, 45]
    assert (capture.warmed_up, len(capture.captured)) == (2, 2)
    walk.step = 100
    assert walk.go(1) == [55]


def test_without_a_capture_work_is_only_run():
    walk = Walk(None)
    assert walk.go(4) == [1, 2, 3, 4]
    assert walk.runs == 4


class Failing(RecordedOperations):
    """Fails to capture, halfway, as CUDA does where work waits for the device."""

    def __call__(self, work):
        def waits():
            work()
            try:
                torch.ones(1).item()
            finally:
                raise ValueError("the end of the capture fails too\nwith details")

        return super().__call__(waits)


class Wrong(RecordedOperations):
    """Replays something else."""

    def __init__(self, walk_of):
        super().__init__()
        self._walk_of = walk_of

    def __call__(self, work):
        right = super().__call__(work)

        def wrong():
            right()
            self._walk_of().total.mul_(1.1)

        return wrong


class Unplayable(RecordedOperations):
    """Captures, and then has no memory to replay in."""

    def __call__(self, work):
        super().__call__(work)

        def unplayable():
            raise torch.OutOfMemoryError("CUDA out of memory")

        return unplayable


def failing(kind):
    """A walk whose capture fails in some way, and its settings."""
    made = []
    capture = Wrong(lambda: made[0]) if kind is Wrong else kind()

    def walk(**how):
        made.append(Walk(capture, **how))
        return made[0]

    return walk


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Failing, "capturing failed (ValueError: the end of the capture fails too; before that RuntimeError: "
                  "aten._local_scalar_dense.default waits"),
        (Wrong, "a replay gives other numbers (total)"),
        (Unplayable, "memory ran out (OutOfMemoryError: CUDA out of memory)"),
    ],
)  # fmt: skip
class TestFailure:
    def test_the_work_goes_on_and_says_so_in_one_line(self, kind, reason):
        walk = failing(kind)()
        assert walk.go(5) == [1, 2, 3, 4, 5]
        (line,) = walk.said
        assert line.startswith(f"the walk is not replayed: {reason}")
        assert "\n" not in line
        assert ("training.micro_batch" if kind is Unplayable else f"torch {torch.__version__}") in line
        walk.step = 10
        assert walk.go(2) == [15, 25], "run, not replayed"

    def test_what_is_required_fails_and_says_what_to_do(self, kind, reason):
        walk = failing(kind)(required=True)
        with pytest.raises(MissingError, match=r"leave training\.cuda_graphs at auto") as problem:
            walk.go(5)
        assert f"the walk cannot be replayed: {reason}" in str(problem.value)
        assert not walk.said


@pytest.mark.parametrize("copies", [0, 1])
def test_no_memory_to_compare_costs_a_line(copies, monkeypatch):
    made = replay._copies

    def exhausted(tensors):
        nonlocal copies
        copies -= 1
        if copies < 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made(tensors)

    monkeypatch.setattr(replay, "_copies", exhausted)
    walk = Walk(RecordedOperations())
    assert walk.go(5) == [1, 2, 3, 4, 5]
    assert len(walk.said) == 1
    assert "OutOfMemoryError" in walk.said[0]


def test_changes_agree_up_to_rounding():
    before, plain = torch.zeros(1000), torch.randn(1000)
    assert agrees(before, plain, plain.clone())
    assert agrees(before, plain, plain * 1.001)
    assert not agrees(before, plain, plain * 1.1)
    assert not agrees(before, plain, before)
    # What counts is the change, not how large a number is that hardly moves.
    assert not agrees(before + 100, plain + 100, before + 100)
    assert agrees(before + 1e4, before + 1e4, before + 1e4 + 1e-3)


def test_numbers_that_are_none_agree_with_each_other_only():
    nan, zero = torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 0.0])
    assert agrees(zero, nan, nan.clone())
    assert not agrees(zero, nan, zero)
    assert not agrees(zero, zero + 1, nan)


def test_counters_and_pixels_agree_too():
    counters = torch.arange(4)
    assert agrees(counters, counters + 1, counters + 1)
    assert not agrees(counters, counters + 1, counters + 2)
    pixels = torch.arange(200, dtype=torch.uint8)
    assert agrees(pixels, pixels.flip(0), pixels.flip(0))
    assert not agrees(pixels, pixels.flip(0), pixels)


def test_the_stand_in_restores_what_it_records_and_refuses_to_wait():
    kept = torch.zeros(4)
    capture = RecordedOperations()
    again = capture(lambda: kept[1:3].add_(1))
    assert not kept.any()
    again()
    assert kept.tolist() == [0, 1, 1, 0]
    with pytest.raises(RuntimeError, match="waits for the device"):
        capture(lambda: kept.fill_(7).sum().item())
    assert kept.tolist() == [0, 1, 1, 0]


class Graph:
    """Stands for a graph of torch.cuda."""

    alive = True

    def replay(self):
        return "replayed"

    def reset(self):
        self.alive = False


class Streams:
    """Stands for streams and graphs of torch.cuda; like it, leaves a stream behind when a capture fails."""

    def __init__(self, monkeypatch):
        self.current = "usual"
        self.asked = []
        self.ended = []
        monkeypatch.setattr(replay, "_capture_stream", lambda device: "of captures")
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *of: self.ended.append(of), raising=False)
        pools = itertools.count()
        fakes = {
            "graph_pool_handle": lambda: (0, next(pools)),
            "current_stream": lambda device: self.current,
            "CUDAGraph": Graph,
            "synchronize": lambda device: None,
            "empty_cache": lambda: self.asked.append("memory"),
            "stream": self.stream,
            "graph": self.graph,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def end(self, device, pool):
        if not self.inside:
            raise RuntimeError("not recording to this pool")
        self.ended.append((device, pool))
        self.inside = False

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def graph(self, graph, **how):
        self.asked.append(how)
        self.inside = True
        before, self.current = self.current, how["stream"]
        yield
        self.inside = False
        self.current = before


def test_a_capture_that_fails_leaves_no_stream_behind(monkeypatch):
    streams = Streams(monkeypatch)
    graphs = CudaGraphs(torch.device("cuda:0"))
    inside = []
    kept = graphs(lambda: inside.append(streams.current))
    assert kept() == "replayed"
    assert not streams.ended
    with pytest.raises(ValueError, match="no"):
        graphs(lambda: (_ for _ in ()).throw(ValueError("no")).__next__())
    assert streams.current == "usual"
    (first, second), (stream,) = streams.asked, inside
    assert first == second, "all captures share a stream and a pool"
    assert first["stream"] is stream is not None
    # What PyTorch 2.11 forgets, and the pool of a failed capture is not used again.
    assert streams.ended == [(0, first["pool"])] * 2
    again = graphs(lambda: None)
    assert streams.asked[-1]["pool"] not in (first["pool"], None)
    del kept, again


def test_the_pool_of_discarded_graphs_is_not_used_again(monkeypatch):
    streams = Streams(monkeypatch)
    graphs = CudaGraphs(torch.device("cuda:0"))
    kept = graphs(lambda: None)
    del kept
    graphs(lambda: None)
    assert streams.asked[0]["pool"] != streams.asked[1]["pool"]


def test_graphs_are_released_before_their_memory(monkeypatch):
    streams = Streams(monkeypatch)
    graphs = CudaGraphs(torch.device("cuda:0"))
    assert not graphs.release()
    graphs = CudaGraphs(torch.device("cuda:0"))
    kept = graphs(lambda: None)
    graphs(lambda: None)  # discarded at once
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: streams.asked.append(kept.__self__.alive))
    assert graphs.release()
    assert graphs.released
    assert streams.asked[-1] is False


class Crowded(Walk):
    """Work whose memory does not suffice beside what other work has captured."""

    fails_in_run = 1
    graph = None

    def work(self):
        assert self.graph is None or self.graph() is None, "what the failed run allocated is alive"
        if self.runs + 1 >= self.fails_in_run and not self.free():
            self.count += self.step
            activations = torch.zeros(1000)
            self.graph = weakref.ref(activations)
            raise torch.OutOfMemoryError("CUDA out of memory")
        super().work()

    def free(self):
        return self.replay._capture is None or self.replay._capture.released


@pytest.mark.parametrize("fails_in_run", [1, 2], ids=["warm-up", "before it is captured"])
class TestNoMemoryBesideOtherCaptures:
    def test_all_captures_are_released_and_the_numbers_are_right(self, fails_in_run):
        capture = RecordedOperations()
        other, crowded = Walk(capture), Crowded(capture)
        crowded.fails_in_run = fails_in_run
        assert other.go(3) == [1, 2, 3]
        assert crowded.go(4) == [1, 2, 3, 4]
        assert other.go(3) == [4, 5, 6]
        assert len(capture.captured) == 1
        assert not other.said
        (line,) = crowded.said
        assert line.startswith("the walk is not replayed: memory ran out (OutOfMemoryError: CUDA")
        assert "training.micro_batch" in line

    def test_what_is_required_fails(self, fails_in_run):
        capture = RecordedOperations()
        other, crowded = Walk(capture), Crowded(capture, required=True)
        crowded.fails_in_run = fails_in_run
        other.go(3)
        with pytest.raises(MissingError, match=r"memory ran out .*leave training\.cuda_graphs at auto"):
            crowded.go(4)

    def test_without_other_captures_it_is_the_error_of_the_run(self, fails_in_run):
        crowded = Crowded(RecordedOperations())
        crowded.fails_in_run = fails_in_run
        with pytest.raises(torch.OutOfMemoryError):
            crowded.go(4)
        assert not crowded.said


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestOnAGpu:
    def test_work_is_captured_and_replayed(self):
        device = torch.device("cuda", torch.cuda.current_device())
        count, said = torch.zeros(1000, device=device), []
        counting = Replay(
            lambda: count.add_(1),
            {"count": count},
            capture=CudaGraphs(device),
            name="counting",
            log=said.append,
        )
        for number in range(1, 8):
            counting()
            assert (count == number).all()
        assert not said

    def test_work_that_waits_for_the_device_goes_on(self):
        device = torch.device("cuda", torch.cuda.current_device())
        count, said = torch.zeros(1000, device=device), []

        def work():
            count.add_(1 if float(count[0]) < 1e9 else 0)

        stream = torch.cuda.current_stream(device)
        counting = Replay(
            work, {"count": count}, capture=CudaGraphs(device), name="counting", log=said.append
        )
        for number in range(1, 8):
            counting()
            assert (count == number).all()
        assert len(said) == 1
        assert torch.cuda.current_stream(device) == stream
        # Another capture succeeds afterwards.
        doubling = Replay(
            lambda: count.mul_(2),
            {"count": count},
            capture=CudaGraphs(device),
            name="doubling",
            log=said.append,
        )
        for _ in range(4):
            doubling()
        assert (count == 7 * 16).all()
        assert len(said) == 1
