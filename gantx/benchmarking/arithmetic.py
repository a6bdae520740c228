"""Floating-point operations of a training step, and the peak rate of the machine."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from gantx import models
from gantx.benchmarking.timing import durations
from gantx.config.schema import RunConfig
from gantx.runtime.random import Draws, draw, take
from gantx.training.optimized_network import OptimizedNetwork
from gantx.training.phase import Phase, differentiate
from gantx.training.phases import phases

ON_GPU, ON_CPU, ON_FEW_THREADS = 8192, 4096, 1024  # sides of matrices large enough to find the ceiling
FEW_THREADS = 4


class FlopCounter(TorchDispatchMode):
    """Counts the operations of matrix products, convolutions and attention within a `with`.

    The formulas are those of PyTorch. Its FlopCounterMode is not used: the hooks with which it attributes
    operations to modules do not support the second derivatives of gradient penalties.

    Attributes:
        total: operations so far; a multiplication with its addition counts as two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count it."""
        made = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=made))
        return made


def flops_of_stages(settings: RunConfig) -> dict[str, int]:
    """Operations of one step of every phase: its losses with all penalties, forwards and backwards.

    Counted on the meta device, independent of the kernels of a real one: on a CPU, products executed by
    oneDNN are not seen by the counter, and recomputation in fused attention would count twice. Optimisers
    and averages are not counted.

    Args:
        settings: the run.

    Returns:
        By name of the phase.
    """
    with torch.device("meta"):
        generator = models.build(settings.generator, settings.data.channels)
        discriminator = models.build(settings.discriminator, settings.data.channels)
    networks = (
        OptimizedNetwork(generator, settings.optimizer.generator),
        OptimizedNetwork(discriminator, settings.optimizer.discriminator),
    )
    return {phase.name: _flops(phase, settings.data.image_shape) for phase in phases(settings, *networks)}


def _flops(phase: Phase, image_shape: tuple[int, ...]) -> int:
    """Operations of one step of a phase whose networks are on the meta device."""
    phase.select_parameters()
    drawn = draw(phase.spec, seed=0, stream=phase.name, step=0, device=torch.device("cpu"))
    draws: Draws = tree_map(lambda value: value.to("meta"), drawn)
    total = 0
    for loss, size, _ in phase.passes:
        reals = phase.empty_reals(size, image_shape, "meta")
        with FlopCounter() as counter:
            q = take(draws, phase.spec, slice(0, size))
            differentiate(loss, phase.trained.parameters, reals, q, 1.0)
        total += counter.total * (phase.batch // size)
    return total


def matmul_ceiling(device: torch.device, precision: str, side: int | None = None) -> float:
    """Measured TFLOP/s of a product of two large matrices (fastest run): an upper limit for networks.

    On a CPU with the current number of threads of torch.

    Args:
        device: where; a CUDA device must be the current one.
        precision: `fp32`, as the process allows it (TF32 or not), or `bf16`.
        side: of the square matrices; None for a size at which the ceiling is reached.
    """
    side = side or _large(device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = 25 if device.type == "cuda" else 8
    with torch.no_grad():
        fastest = min(durations(lambda: left @ right.T, device, times))
    return 2 * side**3 / fastest / 1e12


def _large(device: torch.device) -> int:
    """Side of matrices that is just large enough for their product to reach the ceiling."""
    if device.type != "cpu":
        return ON_GPU
    return ON_FEW_THREADS if torch.get_num_threads() <= FEW_THREADS else ON_CPU
