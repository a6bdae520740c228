"""Steps that are captured once and replayed: on a GPU, one CUDA graph instead of thousands of launches.

A replayed function reads and writes tensors with fixed addresses, depends on no Python number that changes,
and does not synchronise with the device. If it cannot be captured, or if its replay computes other numbers,
the function is called without replay from then on, and a message gives the reason.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from gantx.errors import MissingError, first_line
from gantx.runtime import memory

TOLERANCE = 0.02  # relative difference of a tensor's change that is still rounding, in bf16

_TO_REPORT = (
    f"It runs without replay, slower; please report this line with torch {torch.__version__} and the name of "
    "the GPU"
)
_TO_SAVE_MEMORY = (
    "Everything that was captured is discarded and runs without replay, slower; a smaller "
    "training.micro_batch, or --batch of sample, leaves memory for it"
)

Work = Callable[[], None]
Log = Callable[[str], None]


class Capture(Protocol):
    """Records work without running it.

    Attributes:
        released: whether all that was captured has been discarded, and nothing is captured any more.
    """

    released: bool

    def __call__(self, work: Work) -> Callable[[], None]:
        """Record `work`; return a function that replays it."""

    def warm_up(self, work: Work) -> None:
        """Run `work` without recording, on the stream on which it will be captured."""

    def release(self) -> bool:
        """Discard all that was captured and free its memory; return whether there was anything."""


class CudaGraphs:
    """Captures work as CUDA graphs, which share one pool of memory: they never run at the same time.

    Args:
        device: a CUDA device.

    Attributes:
        released: see `Capture`.
    """

    def __init__(self, device: torch.device) -> None:
        self.released = False
        self._device = device
        self._stream = _capture_stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def __call__(self, work: Work) -> Callable[[], None]:
        """Capture `work`; other threads may use the device meanwhile."""
        if not self._graphs:
            self._pool = torch.cuda.graph_pool_handle()  # that of discarded graphs may be gone
        graph = torch.cuda.CUDAGraph()
        # cuBLAS keeps workspaces by stream. Those of a capture belong to its pool; nothing else may use them.
        _forget_workspaces()
        try:
            # A failed capture leaves its own stream as the current one; the outer block restores it.
            with (
                torch.cuda.stream(torch.cuda.current_stream(self._device)),
                torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                work()
        except BaseException:
            self._end_allocation()
            raise
        finally:
            _forget_workspaces()
        self._graphs.add(graph)
        return graph.replay

    def warm_up(self, work: Work) -> None:
        """Run `work` on the stream of the captures: libraries allocate, compilers compile."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def release(self) -> bool:
        """Discard all graphs; the memory of their pool can be allocated again."""
        self.released = True
        graphs = list(self._graphs)
        torch.cuda.synchronize(self._device)
        for graph in graphs:
            graph.reset()
        torch.cuda.empty_cache()
        return bool(graphs)

    def _end_allocation(self) -> None:
        """Let the allocator leave the pool of a failed capture.

        PyTorch 2.11 omits that where CUDA has ended the capture itself; then no memory can be freed any more.
        """
        with contextlib.suppress(RuntimeError, AttributeError):  # the usual case: it has left the pool
            torch._C._cuda_endAllocateToPool(self._device.index, self._pool)
            torch._C._cuda_releasePool(self._device.index, self._pool)
        self._pool = torch.cuda.graph_pool_handle()


@lru_cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all captures on a device: PyTorch has 32, and gives out again those that are in use."""
    return torch.cuda.Stream(device)


def _forget_workspaces() -> None:
    with contextlib.suppress(AttributeError):  # PyTorch without CUDA
        torch._C._cuda_clearCublasWorkspaces()


class Replay:
    """A function that first runs uncaptured, then is captured and compared with such a run, then replayed.

    Captured work keeps its memory. If none is left for a run beside it, all that was captured is discarded.

    Args:
        work: reads and writes tensors with fixed addresses.
        changes: the tensors that it writes, by their names in messages.
        capture: how it is captured; None for never.
        name: of the function in messages, such as "the discriminator's step".
        log: receives a sentence if the function continues without replay.
        required: raise an error instead.

    Raises:
        MissingError: when it is called, cannot be replayed, and that is `required`.
    """

    def __init__(
        self,
        work: Work,
        changes: dict[str, Tensor],
        *,
        capture: Capture | None,
        name: str,
        log: Log,
        required: bool = False,
    ) -> None:
        self._work = work
        self._changes = changes
        self._capture = capture
        self._name = name
        self._log = log
        self._required = required
        self._warm = self._given_up = False
        self._replay: Callable[[], None] | None = None

    def __call__(self) -> None:
        """Run or replay the function once."""
        capture = self._capture
        if capture is None or capture.released:
            self._work()
        elif self._replay is not None:
            self._replay()
        elif self._given_up:
            self._run_uncaptured(capture, self._work)
        elif not self._warm:
            self._warm = True
            self._run_uncaptured(capture, lambda: capture.warm_up(self._work))
        else:
            self._first_replay(capture)

    def forget(self) -> None:
        """Discard the capture, because the function has changed; it is captured again."""
        self._warm, self._replay = False, None

    def _run_uncaptured(self, capture: Capture, run: Work) -> dict[str, Tensor] | None:
        """Run the work beside all that was captured; return what it changes as it was before.

        None: memory ran out. The work has been run in the memory of all that was captured.
        """
        before: dict[str, Tensor] = {}
        try:
            before = _copies(self._changes)
            run()
            return before
        except RuntimeError as problem:
            if not memory.ran_out(problem) or (not capture.release() and before):
                raise
            reason = _line_of(problem)
        # Not inside the handler: the exception refers to the tensors of the run that failed.
        _restore(self._changes, before)
        del before
        self._give_up(f"memory ran out ({reason})", _TO_SAVE_MEMORY)
        self._work()
        return None

    def _first_replay(self, capture: Capture) -> None:
        # Uncaptured first: its memory is freed before the graph allocates its own.
        before = self._run_uncaptured(capture, self._work)
        if before is None:
            return
        plain: dict[str, Tensor] = {}
        problem: Exception | None = None
        try:
            plain = _copies(self._changes)
            replay = capture(self._work)
            _restore(self._changes, before)
            replay()
            differing = [
                name
                for name, replayed in self._changes.items()
                if not agrees(before[name], plain[name], replayed)
            ]
        except Exception as error:  # of CUDA, a library or a compiler: the run continues without replay
            problem = error.with_traceback(None)  # it refers to the tensors of the capture
        if problem is None and not differing:
            self._replay = replay
            return
        _restore(self._changes, plain)
        if problem is None:
            self._give_up(f"a replay gives other numbers ({', '.join(differing)})", _TO_REPORT)
        elif memory.ran_out(problem):
            capture.release()  # its pool keeps what it has grown by
            self._give_up(f"memory ran out ({_line_of(problem)})", _TO_SAVE_MEMORY, problem)
        else:
            self._give_up(f"capturing failed ({_line_of(problem)})", _TO_REPORT, problem)

    def _give_up(self, reason: str, consequence: str, problem: Exception | None = None) -> None:
        self._given_up = True
        if self._required:
            smaller = "choose a smaller training.micro_batch, or " if consequence is _TO_SAVE_MEMORY else ""
            raise MissingError(
                f"{self._name} cannot be replayed: {reason}; {smaller}leave training.cuda_graphs at auto to "
                "train without"
            ) from problem
        self._log(f"{self._name} is not replayed: {reason}. {consequence}")


@torch.no_grad()
def agrees(before: Tensor, plain: Tensor, replayed: Tensor) -> bool:
    """Whether two changes of a tensor are equal up to rounding; NaN only equals NaN."""
    if bool(((plain == replayed) | (plain.isnan() & replayed.isnan())).all()):
        return True  # the usual case, without copies in double precision
    before, plain, replayed = before.double(), plain.double(), replayed.double()
    change = torch.linalg.vector_norm(plain - before)
    apart = torch.linalg.vector_norm(replayed - plain)
    # A tensor that hardly changes may still differ in its last bit.
    allowed = TOLERANCE * change + 2e-7 * torch.linalg.vector_norm(plain)
    return bool(apart <= allowed)


@torch.no_grad()
def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


@torch.no_grad()
def _restore(tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        tensors[name].copy_(value)


def _line_of(problem: BaseException) -> str:
    line = first_line(problem)
    # Ending a failed capture fails as well, with a less helpful message than the first one.
    earlier = problem.__context__
    return line if earlier is None else f"{line}; before that {_line_of(earlier)}"
