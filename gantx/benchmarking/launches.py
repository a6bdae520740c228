"""Number of kernels that some work would launch on a GPU."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Memory without values.
EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
# An operation on lists of tensors processes them in chunks; the size of a chunk, and the largest number of
# chunks and (by number of lists) of tensors of one launch (ATen/native/cuda/MultiTensorApply.cuh).
CHUNK, CHUNKS, TENSORS = 65536, 320, {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}


class LaunchCounter(TorchDispatchMode):
    """Counts the operations within a `with` that would start a kernel on a GPU, wherever they run.

    Views, empty tensors and profiler annotations launch no kernel, operations on lists of tensors as many as
    CUDA needs for their sizes, all others one.

    Attributes:
        launches: by name of the operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled functions run unchanged."""
        return True

    @property
    def total(self) -> int:
        """Launches so far."""
        return self.launches.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count it."""
        kwargs = kwargs or {}
        if (number := launches_of(func, args, kwargs)) > 0:
            self.launches[func.overloadpacket.__name__] += number
        return func(*args, **kwargs)


def launches_of(operation: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    """Launches of one operation on these arguments."""
    name = operation.overloadpacket.__name__
    if name in EMPTY or operation.namespace == "profiler" or is_view(operation):
        return 0
    lists = [list(given) for given in (*args, *kwargs.values()) if is_list_of_tensors(given)]
    if name.startswith(("_foreach_", "_fused_")) and lists:
        return _of_lists(lists)
    written = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
    if operation._schema.is_mutable and all(tensor.numel() == 0 for tensor in written[:1]):
        return 0
    return 1


def is_view(operation: OpOverload) -> bool:
    """Whether an operation returns a view of its input."""
    returned = [value.alias_info for value in operation._schema.returns]
    aliased = bool(returned) and all(alias is not None and not alias.is_write for alias in returned)
    return aliased or operation.overloadpacket.__name__ == "_unsafe_view"


def is_list_of_tensors(given: Any) -> bool:
    """Whether an argument is a list of tensors."""
    return isinstance(given, list | tuple) and bool(given) and isinstance(given[0], Tensor)


def _of_lists(lists: list[list[Tensor]]) -> int:
    first = lists[0]
    together = sum(len(tensors) == len(first) for tensors in lists)
    most = TENSORS[min(together, max(TENSORS))]
    chunks = sum(-(-tensor.numel() // CHUNK) for tensor in first)
    return max(math.ceil(len(first) / most), math.ceil(chunks / CHUNKS), 1)
