"""A GPU that is not there: tensors of the CPU that count as those of `cuda:0`, and are refused beside others.

Everything computes on the CPU, with the same numbers, but every function of torch that would fail on a GPU,
because it is given tensors of two devices or because NumPy cannot see the memory, fails here too. So code
that places a tensor wrongly is found without a GPU. What runs below Python is not seen: kernels, streams,
races, and the backward pass.
"""

import contextlib
import threading
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map

from gantx.runtime import replay
from helpers.recorded_operations import Recorder

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)

Tensor = torch.Tensor
_FREE = {
    torch._has_compatible_shallow_copy_type,
    Tensor.copy_,
    Tensor.data.__set__,
    Tensor.grad.__set__,
    Tensor.set_,
}
_INDEXED = {Tensor.__getitem__, Tensor.__setitem__, Tensor.index_put_, Tensor.index_put}
# A scalar of the CPU may be an operand on a GPU, but not one of the tensors that are put together.
_TOGETHER = {torch.cat, torch.stack, torch.concat}
_TO_HOST = {Tensor.numpy, Tensor.__array__, torch._C.TensorBase.numpy}
_PLAIN = {Tensor.tolist, Tensor.item, Tensor.__repr__, Tensor.__bool__, Tensor.__float__, Tensor.__int__}
_WAITING = {*_PLAIN, Tensor.cpu, torch.equal, Tensor.nonzero, torch.nonzero, torch.unique, Tensor.equal} - {
    Tensor.__repr__
}


class MixedDevicesError(RuntimeError):
    """A function was given tensors of two devices."""


class PretendedCuda(TorchFunctionMode):
    """Knows which storages are on the GPU, and applies the rules of CUDA to every function of torch.

    Attributes:
        functions: how many functions had tensors of the GPU.
        waits: how many of them make the host wait for it.
    """

    def __init__(self):
        super().__init__()
        self.functions = self.waits = 0
        self._on_gpu = {}  # by its address: a weak reference, which keeps the address from being used again
        self._lock = threading.Lock()

    def device_of(self, tensor):
        """`cuda:0` or the real device of a tensor."""
        storage = _storage(tensor)
        if storage is None:
            return tensor.device
        known = self._on_gpu.get(storage._cdata)
        return CUDA if known is not None and not known.expired() else tensor.device

    def put(self, values):
        """Let the tensors in `values` be on the GPU from now on."""
        for tensor in _tensors(values):
            storage = _storage(tensor)
            if storage is not None and storage.device == CPU:
                with self._lock:
                    self._on_gpu[storage._cdata] = StorageWeakRef(storage)
        return values

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        tensors = _tensors((args, kwargs))
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if function == Tensor.device.__get__:
            return self.device_of(first)
        if function == Tensor.is_cuda.__get__:
            return self.device_of(first) == CUDA
        if function == Tensor.is_cpu.__get__:
            return self.device_of(first) == CPU
        if function is Tensor.get_device:
            return 0 if self.device_of(first) == CUDA else -1
        if function == Tensor.grad.__get__:
            gradient = function(*args)
            return self.put(gradient) if self.device_of(first) == CUDA else gradient
        if function is Tensor.pin_memory:
            return self._on_cpu(first, "pin_memory").clone()
        if function is Tensor.is_pinned:
            return False
        if function in _WAITING and any(self.device_of(tensor) == CUDA for tensor in tensors):
            self.waits += 1
        if function is Tensor.cpu:
            return function(first).clone() if self.device_of(first) == CUDA else first
        if function in (Tensor.to, Tensor.cuda):
            return self._moved(function, args, kwargs)
        if function in _TO_HOST and self.device_of(first) == CUDA:
            raise TypeError("can't convert cuda:0 device type tensor to numpy: use Tensor.cpu() first")
        if function in _PLAIN:
            return function(*args, **kwargs)

        if isinstance(function, torch._ops.OpOverload):  # of a captured backward pass, begun by autograd
            result = function(*args, **kwargs)
            return self.put(result) if any(self.device_of(tensor) == CUDA for tensor in tensors) else result

        kwargs.pop("pin_memory", None)
        generator = kwargs.get("generator")
        made_on = _device(kwargs.pop("device", None))
        devices = {self.device_of(tensor) for tensor in self._operands(function, args, kwargs)}
        if len(devices) > 1:
            described = ", ".join(f"{list(t.shape)} on {self.device_of(t)}" for t in tensors)
            raise MixedDevicesError(f"{resolve_name(function) or name}: tensors of two devices ({described})")
        on_gpu = devices == {CUDA}
        if made_on is not None:
            kwargs["device"] = made_on if made_on.type != "cuda" else CPU
            on_gpu = made_on.type == "cuda"
        if generator is not None and (generator.device.type == "cuda") != on_gpu:
            raise MixedDevicesError(f"{name}: a generator of {generator.device} for another device")
        self.functions += on_gpu
        result = function(*args, **kwargs)
        if made_on is not None and not on_gpu and any(self.device_of(t) == CUDA for t in _tensors(result)):
            return tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, result)
        if on_gpu and made_on is not None and not {CUDA} <= devices:
            result = tree_map(lambda v: _apart(v, tensors), result)
        return self.put(result) if on_gpu else result

    def _operands(self, function, args, kwargs):
        """The tensors of a call that have to be on one device."""
        if function in _FREE:
            return []
        tensors = _tensors((args[:1] if function in _INDEXED else args, kwargs))
        if function in _INDEXED and len(args) > 1:
            index = _tensors(args[1:2])
            if self.device_of(args[0]) == CPU:  # an index of the GPU cannot index the CPU
                tensors += index
        if len(tensors) == 1 or function in _TOGETHER:
            return tensors
        scalars = [tensor for tensor in tensors if tensor.ndim == 0 and self.device_of(tensor) == CPU]
        return [tensor for tensor in tensors if not any(tensor is each for each in scalars)] or scalars

    def _moved(self, function, args, kwargs):
        tensor, *others = args
        wanted = [CUDA] if function is Tensor.cuda else []
        rest = []
        for value in others:
            if isinstance(value, bool | None):  # non_blocking, copy: there is nothing to wait for
                continue
            (wanted if isinstance(value, str | torch.device) else rest).append(value)
        wanted += [kwargs.pop("device")] if kwargs.get("device") is not None else []
        wanted += [self.device_of(value) for value in rest if isinstance(value, Tensor)]
        here = self.device_of(tensor)
        there = _device(wanted[0]) if wanted else here
        rest = [value.dtype if isinstance(value, Tensor) else value for value in rest]
        if there.type == "meta":
            return Tensor.to(tensor, there, *rest, **kwargs)
        kwargs.pop("non_blocking", None)
        result = Tensor.to(tensor, *rest, **kwargs) if rest or kwargs else tensor
        self.waits += here == CUDA and there == CPU
        if here.type != there.type and result is tensor:
            result = tensor.clone()
        return self.put(result) if there.type == "cuda" else result

    def _on_cpu(self, tensor, name):
        if self.device_of(tensor) == CUDA:
            raise RuntimeError(f"{name}: only dense CPU tensors can be pinned")
        return tensor


class _Generator(torch.Generator):
    def __new__(cls, device="cpu"):
        made = super().__new__(cls, device="cpu")
        made.of = _device(device)
        return made

    @property
    def device(self):
        return self.of


class _Stream:
    def __init__(self, *args, **kwargs):
        pass

    def wait_stream(self, stream):
        assert isinstance(stream, _Stream)

    def wait_event(self, event):
        assert isinstance(event, _Event)

    def synchronize(self):
        pass


class _Graph:
    """What was captured; `torch.cuda.graph` puts it here."""

    recorder = None

    def replay(self):
        self.recorder.replay()

    def reset(self):
        self.recorder = None


@contextlib.contextmanager
def _captured(graph, pool=None, stream=None, capture_error_mode="global"):
    graph.recorder = Recorder()
    try:
        with graph.recorder:
            yield
    finally:
        graph.recorder.undo()


class _Event:
    def __init__(self, enable_timing=False, blocking=False):
        self.recorded = False

    def record(self, stream=None):
        self.recorded = True

    def synchronize(self):
        assert self.recorded

    def query(self):
        return True

    def elapsed_time(self, later):
        return 1.0


@contextlib.contextmanager
def pretended_cuda():
    """Within the block there is a GPU, `cuda:0`.

    Yields:
        PretendedCuda: to ask where a tensor is.
    """
    mode = PretendedCuda()
    thread_run = threading.Thread.run

    def run_in_mode(thread):
        with mode:
            thread_run(thread)

    stand_ins = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: _require_index(device),
        "get_device_name": lambda device=None: "a GPU that is not there",
        "is_bf16_supported": lambda including_emulation=True: True,
        "Stream": _Stream,
        "Event": _Event,
        "CUDAGraph": _Graph,
        "graph": _captured,
        "is_current_stream_capturing": lambda: False,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": lambda device=None: _Stream(),
        "graph_pool_handle": lambda: None,
        "synchronize": lambda device=None: None,
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 2**30,
        "memory_reserved": lambda device=None: 0,
        "max_memory_reserved": lambda device=None: 2**30,
        "reset_peak_memory_stats": lambda device=None: None,
        "mem_get_info": lambda device=None: (2**36, 2**36),
        "empty_cache": lambda: None,
        "get_rng_state": lambda device=None: torch.empty(0, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "_lazy_init": lambda: None,
    }
    with contextlib.ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        stack.enter_context(mock.patch.object(Tensor, "record_stream", _require_stream))
        stack.enter_context(mock.patch.object(replay, "_capture_stream", return_value=_Stream()))
        # The check of PyTorch's optimisers asks the driver, not torch.cuda.
        stack.enter_context(mock.patch.object(torch.accelerator, "current_accelerator", return_value=None))
        stack.enter_context(mock.patch.object(torch, "Generator", _Generator))
        stack.enter_context(mock.patch.object(threading.Thread, "run", run_in_mode))
        stack.enter_context(mode)
        yield mode


def _require_stream(tensor, stream):
    assert isinstance(stream, _Stream)


def _require_index(device):
    # As torch.cuda.set_device does.
    if torch.device(device).index is None:
        raise ValueError(f"Expected a torch.device with a specified index or an integer, but got: {device}")


def _device(given):
    if given is None:
        return None
    device = torch.device("cuda", given) if isinstance(given, int) else torch.device(given)
    return CUDA if device.type == "cuda" else device


def _tensors(values):
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _apart(value, given):
    """A tensor with memory of its own: what was made for the GPU is not a view of the CPU's."""
    if not isinstance(value, Tensor):
        return value
    shared = any(_storage(value) is not None and _same(value, each) for each in given)
    return value.clone() if shared else value


def _same(one, other):
    mine, its = _storage(one), _storage(other)
    return mine is not None and its is not None and mine._cdata == its._cdata


def _storage(tensor):
    """The memory of a tensor, also inside `torch.func`; None if it has none."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.untyped_storage() if torch._C._has_storage(tensor) else None
