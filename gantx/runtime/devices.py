"""The device, precision and number of CPU threads of a process, and measurements of its memory.

psutil does not cover the limits of a container (cgroup v2), the resettable memory peak of Linux, and the
settings of glibc's allocator; they are read and set here.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import sys
import time
from pathlib import Path

import psutil
import torch

from gantx.errors import MissingError
from gantx.runtime import cores, memory
from gantx.runtime.device_names import require_device_name

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def pick_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1` or `mps` into a device; one of CUDA has an index.

    Raises:
        UsageError: the name is none of these.
        MissingError: the device is asked for but absent.
    """
    if require_device_name(name) == "auto":
        return best_device()
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            found = f"only {count} CUDA device(s)" if count else "no usable CUDA device"
            raise MissingError(f"device '{name}' was asked for but {found} is here: use --device cpu or auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise MissingError("device 'mps' was asked for but is not here: use --device cpu or auto")
    return with_index(device)


def best_device() -> torch.device:
    """The device of `auto`: a CUDA device if there is one, else the CPU."""
    return with_index(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def with_index(device: torch.device) -> torch.device:
    """Give `cuda` the index of the current GPU, because other threads may have another current one."""
    return torch.device("cuda", torch.cuda.current_device()) if str(device) == "cuda" else device


def pick_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """Resolve a precision setting to `fp32` or `bf16`, and a sentence for the log ("" if unchanged)."""
    if wanted == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16" if native else "fp32"), ""
    if wanted == "bf16" and device.type == "cpu" and not _cpu_has_bf16():
        return "fp32", "precision: this processor only emulates bf16, which is slower than fp32; using fp32"
    return wanted, ""


def pick_threads(wanted: str | int) -> tuple[int, str]:
    """Choose the number of CPU threads, and describe the choice in a sentence for the log.

    `auto` takes the cores this process may use, minus those that other processes keep busy: OpenMP threads
    that wait for a busy core cost far more than they gain.
    """
    allowed = cores.allowed()
    if not isinstance(wanted, str):
        if wanted > len(allowed):
            return len(
                allowed
            ), f"threads: {len(allowed)}, all cores this process may use, instead of {wanted}"
        return wanted, f"threads: {wanted} as configured"
    limit = min(len(allowed), cores.quota(), torch.get_num_threads())
    busy = cores.busy(allowed)
    threads = max(1, min(limit, int(len(allowed) - busy + 0.4)))
    return threads, f"threads: {threads} of {len(allowed)} cores ({busy:.1f} busy with other work)"


def use_threads(wanted: str | int) -> str:
    """Set torch's number of CPU threads by `pick_threads`; return its sentence for the log."""
    threads, note = pick_threads(wanted)
    torch.set_num_threads(threads)
    return note


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the system, for training on the CPU.

    By default every large tensor is a separate mapping, and the system zeroes its pages in each step. Keeping
    them saves 4 to 14 % of the time of a step of TransGAN, for a few per cent more memory.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)


def device_name(device: torch.device) -> str:
    """The name of the GPU's or the processor's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process on `device` in bytes: allocated on a GPU, or resident on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if (peak := _linux_peak()) is not None:
        return peak
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_gb(device: torch.device) -> float:
    """Peak memory in GiB that this process kept from others: on a GPU with all that it reserved.

    What captured steps allocate counts as reserved only.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    return peak_memory(device) / 2**30


def forget_peak(device: torch.device) -> None:
    """Reset both peaks, if the system can; glibc returns freed memory first."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif platform.libc_ver()[0] == "glibc":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _linux_peak() -> int | None:
    """Peak resident memory of this process in bytes since its start or the last `forget_peak`."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    return None


def free_unused(device: torch.device) -> None:
    """Free the memory of networks that nothing refers to any more."""
    gc.collect()  # they contain cycles
    if device.type == "cuda":
        torch.cuda.empty_cache()


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still allocate on `device`; None if that is unknown."""
    if device.type == "cuda":
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reusable
    return memory.free_on_host()


def moment(device: torch.device) -> float:
    """The clock in seconds, after the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def _cpu_has_bf16() -> bool:
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)
