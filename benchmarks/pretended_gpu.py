"""What `torch.compile` would run on an H100, compiled on a machine that has no GPU.

A loss is traced on the CPU by Dynamo and AOTAutograd just as Inductor asks them to; its forward and backward
graphs are moved to a pretended `cuda:0`; Inductor writes their code, and Triton compiles every kernel for
compute capability 9.0. Nothing is executed, neither here nor on a GPU: outputs are whatever lies in memory.

What this finds: graph breaks, operations that cannot be lowered, kernels that Triton refuses, and how many
launches a step takes. What it cannot find: wrong numbers, missing eager kernels, memory, speed, the matrix
products that Inductor pads after timing them. It is only as true as the trace: code that asks for the device
is traced as the CPU sees it, but for attention and the layout of convolutions, which are those of CUDA.

It patches private parts of PyTorch and Triton for the rest of the process: give it a process of its own.
Needs the Linux builds of PyTorch for CUDA with Triton, which brings `ptxas` along; no NVIDIA driver. A kernel
takes about 0.5 s on one core.
"""

from __future__ import annotations

import contextlib
import importlib.util
import platform
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from gantx.models.layers import attention as attention_layer

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 << 30,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 << 20,
    gcnArchName="",
)
GPU = torch.device("cuda", 0)
# Which library computes a convolution, and how its outputs lie in memory.
CONVOLUTION = ("_select_conv_backend", "_conv_determine_backend_memory_format")
KERNEL = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str='cuda'\)", re.S)
LAUNCH = re.compile(r"^\s+(?:\w+ = )?(\w+\.run|extern_kernels\.\w+|torch\.ops\.\w+\.\w+(?:\.\w+)?)\(", re.M)
NUMBER = re.compile(r"(_\d+)?\.run$")  # that tells kernels of one name apart


def missing() -> str | None:
    """Why nothing can be compiled here; None where it can."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return "ptxas comes for Linux on x86-64"
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    from triton import knobs

    try:
        knobs.nvidia.ptxas  # noqa: B018 - looks for the program
    except Exception as problem:
        return f"Triton has no ptxas ({problem})"
    return None


def versions() -> dict[str, str]:
    """What the report depends on."""
    import triton

    return {"torch": torch.__version__, "triton": triton.__version__}


@dataclass
class Graph:
    """One graph of a traced function, as Inductor receives it.

    Attributes:
        kind: `forward` or `backward`.
        module: the graph.
        inputs: (shape, strides, dtype) of its tensors; numbers as they are.
        how: arguments of Inductor's inner compiler.
    """

    kind: str
    module: torch.fx.GraphModule
    inputs: list[Any]
    how: dict[str, Any]


@dataclass
class Code:
    """What Inductor wrote for a graph.

    Attributes:
        kernels: Triton source by name.
        launches: lines that start a kernel, by its name without number, library calls included.
    """

    kernels: dict[str, str]
    launches: Counter[str]


@dataclass
class Rehearsal:
    """What became of a function.

    Attributes:
        kernels: distinct Triton kernels.
        launches: of its code, forward and backward, by name: their number tells how launch-bound it is.
        failures: (graph, kernel or `lowering`, message).
        refused: source of the kernels that Triton refused.
    """

    kernels: int = 0
    launches: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def rehearse(graphs: list[Graph], *, compile_kernels: bool = True) -> Rehearsal:
    """Lower graphs and compile their kernels for an H100.

    Args:
        graphs: as `traced` collects them.
        compile_kernels: False stops once the code is written, which is much quicker.
    """
    report = Rehearsal()
    distinct: set[str] = set()
    with pretended_gpu():
        for graph in graphs:
            try:
                code = lower(graph)
            except Exception as problem:  # whatever Inductor says is the finding
                report.failures.append((graph.kind, "lowering", _message(problem)))
                continue
            distinct |= {source.replace(name, "kernel") for name, source in code.kernels.items()}
            report.launches += code.launches
            for name, source in code.kernels.items() if compile_kernels else ():
                if (refusal := compile_kernel(name, source)) is not None:
                    report.failures.append((graph.kind, name, refusal))
                    report.refused[name] = source
    report.kernels = len(distinct)
    return report


# --- tracing ----------------------------------------------------------------------------------------------


def traced(function: Callable[..., Any], into: list[Graph]) -> Callable[..., Any]:
    """A function that, called and differentiated, computes nothing and adds its graphs to a list.

    It has the outputs and gradients of the function in shape and type, filled with whatever lies in memory.

    Args:
        function: takes and returns tensors, or dictionaries and tuples of them.
        into: receives the forward graph at the first call, the backward graph at the first `backward`.
    """
    from torch._inductor.compile_fx import compile_fx

    def keep(module: torch.fx.GraphModule, examples: list[Any], **how: Any) -> Callable[..., Any]:
        kind = "backward" if how.get("is_backward") else "forward"
        into.append(Graph(kind, module, [_described(example) for example in examples], how))
        return _stand_in(module)

    def backend(module: torch.fx.GraphModule, examples: list[Any]) -> Any:
        with _as_on_gpu():
            return compile_fx(module, examples, inner_compile=keep)  # type: ignore[arg-type]

    whole = torch.compile(function, backend=backend, fullgraph=True, dynamic=False)

    def call(*given: Any) -> Any:
        with pretended_gpu(available=False), _as_on_gpu():
            return whole(*given)

    return call


@contextlib.contextmanager
def _as_on_gpu() -> Iterator[None]:
    """Let attention and convolutions take the ways of CUDA, and no cache answer in place of a trace."""
    import torch._functorch.config as functorch

    wanted = [
        (attention_layer, "is_written_out", lambda *given: attention_layer._differentiated_twice),
        (F, "scaled_dot_product_attention", _fused_attention),
        *((torch._C, name, _of_gpu(getattr(torch._C, name))) for name in CONVOLUTION),
    ]
    with _replaced(wanted), functorch.patch(enable_autograd_cache=False):
        yield


def _of_gpu(choose: Callable[..., Any]) -> Callable[..., Any]:
    """The same choice for tensors like the given ones on the GPU."""

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=GPU)

    return lambda *given, **named: choose(*tree_map(moved, given), **tree_map(moved, named))


def _fused_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *, scale: float | None = None
) -> Tensor:
    """What `F.scaled_dot_product_attention` comes to on an H100, with a scale that is given."""
    assert scale is not None
    if attn_mask is None and q.dtype == torch.bfloat16 and q.shape[3] == v.shape[3]:
        size = q.shape[3]
        if size % 8:
            q, k, v = (F.pad(x, (0, -size % 8)) for x in (q, k, v))
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(q, k, v, 0.0, False, False, scale=scale)[0][..., :size]
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, -torch.inf)
        if (keys := k.shape[2]) % 16:  # rows of the mask are aligned
            attn_mask = F.pad(attn_mask, (0, -keys % 16))[..., :keys]
        attn_mask = attn_mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    attended: Tensor = efficient(q, k, v, attn_mask, True, 0.0, False, scale=scale)[0]
    return attended


def _described(value: Any) -> Any:
    return (tuple(value.shape), value.stride(), value.dtype) if isinstance(value, Tensor) else value


def _stand_in(module: torch.fx.GraphModule) -> Callable[..., Any]:
    """Returns tensors like a graph's outputs, without running it."""
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    values = [node.meta["val"] if isinstance(node, torch.fx.Node) else node for node in output.args[0]]
    described = [_described(value) for value in values]

    def outputs(inputs: list[Any]) -> list[Any]:
        inputs.clear()
        with torch.utils._python_dispatch._disable_current_modes():
            return [
                torch.empty_strided(x[0], x[1], dtype=x[2]) if isinstance(x, tuple) else x for x in described
            ]

    outputs._boxed_call = True  # type: ignore[attr-defined]
    return outputs


# --- lowering and compiling -------------------------------------------------------------------------------


class _Written(Exception):
    """Inductor has written a graph's code."""


def lower(graph: Graph) -> Code:
    """The code that Inductor writes for a graph on a GPU; its exceptions pass through."""
    import torch._inductor.config as inductor
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.graph import GraphLowering
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    _move(graph.module)
    written: list[str] = []

    def stop(text: Any) -> None:
        written.append(text if isinstance(text, str) else getattr(text, "value", str(text)))
        raise _Written

    with (
        _replaced([(GraphLowering, "save_output_code", staticmethod(stop))]),
        inductor.patch(fx_graph_cache=False),
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
    ):
        inputs = [
            torch.empty_strided(x[0], x[1], dtype=x[2], device="cuda:0") if isinstance(x, tuple) else x
            for x in graph.inputs
        ]
        FakeTensorProp(graph.module, mode=mode).propagate(*inputs)
        try:
            compile_fx_inner(graph.module, inputs, **graph.how)
        except Exception:
            if not written:
                raise
    return read_code(written[0])


def read_code(text: str) -> Code:
    """Kernels and launches of Inductor's code."""
    kernels = dict(KERNEL.findall(text))
    launched = LAUNCH.findall(KERNEL.sub("", text))
    return Code(kernels, Counter(NUMBER.sub("", name) for name in launched))


def _move(module: torch.fx.GraphModule) -> None:
    """Make what a graph creates on the GPU."""

    def moved(value: Any) -> Any:
        return GPU if isinstance(value, torch.device) else value

    for node in module.graph.nodes:
        node.args = torch.fx.node.map_aggregate(node.args, moved)
        node.kwargs = torch.fx.node.map_aggregate(node.kwargs, moved)
    module.recompile()


_compiled: dict[str, str | None] = {}  # what became of a kernel's source, in which its name is left out


def compile_kernel(name: str, source: str) -> str | None:
    """Compile one Triton kernel for the pretended GPU: None, or what went wrong.

    Layers and phases share kernels: each source is compiled once.
    """
    key = source.replace(name, "kernel")
    if key not in _compiled:
        _compiled[key] = _compile(name, source)
    return _compiled[key]


def _compile(name: str, source: str) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.py"
        path.write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(f"kernel_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        try:
            spec.loader.exec_module(module)
            getattr(module, name).precompile(warm_cache_only=True)
        except Exception as problem:  # whatever Triton says is the finding
            return _message(problem)
        finally:
            del sys.modules[spec.name]
    return None


def _message(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}"[:1000]


# --- pretending -------------------------------------------------------------------------------------------


class _Driver:
    """What Triton asks its driver for when it compiles."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def is_active(self) -> bool:
        return True


@contextlib.contextmanager
def pretended_gpu(*, available: bool = True) -> Iterator[None]:
    """Let Inductor and Triton believe in one H100.

    Args:
        available: whether it shows; otherwise there may only be tensors on it.
    """
    import torch._inductor.runtime.triton_helpers as helpers
    import torch._subclasses.fake_tensor as fake
    import torch.utils._triton as torch_triton
    from triton.runtime.driver import driver

    def returns(value: Any) -> Callable[..., Any]:
        """A function of its own, since Dynamo has one handler for each."""
        return lambda *given, **named: value

    wanted = [
        (torch.cuda, "is_available", returns(True)),
        (torch.cuda, "device_count", returns(1)),
        (torch.cuda, "current_device", returns(0)),
        (torch.cuda, "_lazy_init", returns(None)),
        (torch.cuda, "_exchange_device", returns(0)),
        (torch.cuda, "_maybe_exchange_device", returns(0)),
        (torch.cuda, "set_device", returns(None)),
        (torch.cuda, "synchronize", returns(None)),
        (torch.cuda, "get_rng_state", returns(torch.zeros(1, dtype=torch.uint8))),
        (torch.cuda, "set_rng_state", returns(None)),
        (torch.cuda, "_get_device_properties", returns(H100)),
        (torch.cuda, "get_device_properties", returns(H100)),
        (torch.cuda, "get_device_capability", returns((9, 0))),
        (torch.cuda, "is_bf16_supported", returns(True)),
        (fake, "init_gpu_context", returns(None)),
        (helpers, "set_driver_to_gpu", returns(None)),
    ]
    if not available:
        wanted = [row for row in wanted if row[1] not in ("is_available", "device_count")]
    with _replaced(wanted):
        driver.set_active(_Driver())
        torch_triton.has_triton.cache_clear()  # it may have seen that there is no GPU
        yield


@contextlib.contextmanager
def _replaced(wanted: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Attributes (owner, name, value) that hold within."""
    absent = object()
    before = [(owner, name, owner.__dict__.get(name, absent)) for owner, name, _ in wanted]
    for owner, name, value in wanted:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            if value is absent:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
