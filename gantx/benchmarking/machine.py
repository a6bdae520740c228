"""Description of the machine of a measurement, and the setup of the measuring process."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gantx import checkpoint
from gantx.runtime import devices, memory


@dataclass(frozen=True)
class Machine:
    """The hardware and software of a measurement.

    Attributes:
        device: `cpu`, `cuda:0` or the like.
        name: of the GPU or the processor.
        system: operating system.
        cores: of the host; None if unknown.
        threads: of torch on the host.
        versions: of gantx, Python and torch.
    """

    device: str
    name: str
    system: str
    cores: int | None
    threads: int
    versions: dict[str, str]


def this_machine(device: torch.device) -> Machine:
    """Description of the machine of this process."""
    return Machine(
        str(device),
        devices.device_name(device),
        platform.platform(),
        os.cpu_count(),
        torch.get_num_threads(),
        checkpoint.versions(),
    )


@contextlib.contextmanager
def measuring(device: torch.device, threads: str | int, batch: int | None) -> Iterator[None]:
    """Set the number of threads and reset the peak memory for a measurement.

    Args:
        device: where; a CUDA device becomes the current one.
        threads: of torch on the host, or `auto`; restored afterwards.
        batch: images computed at once, for the error message; None if it was not set.

    Raises:
        MissingError: the device has too little memory.
    """
    before = torch.get_num_threads()
    devices.use_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.reset_peak_memory_stats(device)
    much = "this" if batch is None else f"batches of {batch}"
    try:
        with memory.explained(
            f"{device} has too little memory for {much}: choose a smaller --batch, or, for training, set "
            "training.micro_batch to a divisor of it"
        ):
            yield
    finally:
        torch.set_num_threads(before)
