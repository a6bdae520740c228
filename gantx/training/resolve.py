"""Resolves settings that depend on the machine, and sets up the process for them."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from gantx.config.schema import RunConfig
from gantx.data.sources import known_names
from gantx.runtime import devices
from gantx.runtime.precision import full_precision
from gantx.training.compiled_losses import pick_compile

Log = Callable[[str], None]


def resolve(settings: RunConfig, device: torch.device, steps: int, log: Log) -> RunConfig:
    """Replace every value that depends on the machine by its value here, so that a resumed run repeats it.

    Args:
        settings: the run as configured.
        device: where it trains.
        steps: remaining D steps.
        log: receives what was chosen.
    """
    training = settings.training
    precision, note = devices.pick_precision(training.precision, device)
    if note:
        log(note)
    threads, note = devices.pick_threads(training.threads)
    log(note)
    deterministic = device.type == "cpu" if training.deterministic is None else training.deterministic
    if not deterministic:
        log("deterministic: off, so a resumed run may differ in last bits (training.deterministic=true)")
    compile = pick_compile(training.compile, device, steps)
    graphs = device.type == "cuda" if training.cuda_graphs == "auto" else training.cuda_graphs
    if compile:
        log("compile: on, so the first step of each kind takes up to minutes (--compile off)")
    resolved = {
        "precision": precision,
        "threads": threads,
        "deterministic": deterministic,
        "compile": compile,
        "cuda_graphs": graphs,
    }
    source = settings.data.source
    if source not in known_names() and source is not None and Path(source).exists():
        source = str(Path(source).resolve())  # the run may be resumed from another folder
    return settings.model_copy(
        update={
            "training": training.model_copy(update=resolved),
            "data": settings.data.model_copy(update={"source": source}),
        }
    )


def fix_workspace(settings: RunConfig, device: torch.device) -> None:
    """Let the products of a deterministic run on CUDA have equal bits; call it before the first product.

    It sets an environment variable, which cuBLAS reads only then.
    """
    if settings.training.deterministic is True and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextlib.contextmanager
def prepared_process(settings: RunConfig, device: torch.device) -> Iterator[None]:
    """Set up the process for resolved settings: threads, determinism, full float32, memory.

    Everything is restored afterwards, except that on a CPU the process continues to keep freed memory.

    Args:
        settings: resolved.
        device: where it trains; a CUDA device becomes the current one.
    """
    training, fills = settings.training, torch.utils.deterministic
    assert isinstance(training.threads, int)
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        fills.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )
    fix_workspace(settings, device)
    torch.set_num_threads(training.threads)
    torch.use_deterministic_algorithms(training.deterministic is True)
    # Filling new memory with NaN is for debugging and costs time.
    fills.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cpu":
        devices.keep_freed_memory()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        # The few operations that use float32 in a bf16 run need it, and fp32 means fp32.
        with full_precision():
            yield
    finally:
        threads, strict, filled = before
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        fills.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


@contextlib.contextmanager
def frozen_garbage() -> Iterator[None]:
    """Exclude the networks, which live as long as the run, from garbage collection."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
