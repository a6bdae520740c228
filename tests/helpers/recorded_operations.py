"""What a CUDA graph does, without a GPU: the operations of some work, run again on the same storages."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What waits for the device, or has a shape that depends on values, cannot be captured.
WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
}
# Memory that gets its values from an operation that follows.
EMPTY = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.new_empty_strided.default,
}


class RecordedOperations:
    """Stands for `CudaGraphs`: captures work on the CPU.

    A replay runs every operation again with the tensors and the numbers that it had when it was recorded, and
    writes its results where they were. Whatever Python has changed meanwhile is not seen, be it a number or
    which tensor a name means, as with a graph.

    Attributes:
        captured: names of the operations of each capture, in order.
        warmed_up: how often work was warmed up.
        replayed: how often anything was replayed.
        released: whether all that was captured has been discarded.
    """

    def __init__(self):
        self.released = False
        self.captured = []
        self.warmed_up = self.replayed = 0

    def __call__(self, work):
        """Record `work`; all that it writes is afterwards as it was before."""
        recorder = Recorder()
        try:
            with recorder:
                work()
        finally:
            recorder.undo()
        self.captured.append([str(operation) for operation, *_ in recorder.steps])

        def replay():
            assert not self.released
            self.replayed += 1
            recorder.replay()

        return replay

    def warm_up(self, work):
        """Run `work`."""
        self.warmed_up += 1
        work()

    def release(self):
        """Discard what was captured."""
        self.released = True
        return bool(self.captured)


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.steps = []  # (operation, arguments, named arguments, results; None for what is no new memory)
        self._alive = []  # every result, so that no memory serves twice
        self._before = {}  # by address: a storage, and what it held

    @classmethod
    def ignore_compile_internals(cls):
        """Compiled work is recorded as it runs, if its backend runs operations; it is not compiled anew."""
        return True

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation in WAITING:
            raise RuntimeError(f"{operation} waits for the device: not permitted while work is captured")
        self._remember(operation, args, kwargs)
        given = {_address(tensor) for tensor in _tensors((args, kwargs))}
        result = operation(*args, **kwargs)
        self._alive.append(result)
        new = [None if _address(tensor) in given else tensor for tensor in _tensors(result)]
        views = not operation._schema.is_mutable and not any(tensor is not None for tensor in new)
        if not views and operation not in EMPTY:
            self.steps.append((operation, args, kwargs, new))
        return result

    def _remember(self, operation, args, kwargs):
        """Keep what an operation is about to write over."""
        for place, argument in enumerate(operation._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = kwargs[argument.name] if argument.name in kwargs else args[place : place + 1]
                for tensor in _tensors(written):
                    storage = tensor.untyped_storage()
                    if storage.data_ptr() not in self._before:
                        self._before[storage.data_ptr()] = (storage, storage.clone())

    def undo(self):
        for storage, before in self._before.values():
            storage.copy_(before)
        self._before.clear()

    @torch.no_grad()
    def replay(self):
        for operation, args, kwargs, results in self.steps:
            again = operation(*args, **kwargs)
            for result, values in zip(results, _tensors(again), strict=True):
                if result is not None:
                    result.copy_(values)


def _tensors(values):
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def _address(tensor):
    return tensor.untyped_storage().data_ptr()
