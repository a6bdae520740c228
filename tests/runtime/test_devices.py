"""Devices, precision and threads."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from gantx.errors import MissingError, UsageError
from gantx.runtime import cores, devices

CPU = torch.device("cpu")
BEST_DEVICE = devices.best_device  # of users; tests/conftest.py replaces it


@pytest.fixture
def two_gpus(monkeypatch):
    """The second of two GPUs is the current one."""
    monkeypatch.setattr(devices, "best_device", BEST_DEVICE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


def test_auto_and_cpu(monkeypatch):
    assert devices.pick_device("cpu") == CPU
    monkeypatch.setattr(devices, "best_device", BEST_DEVICE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.pick_device("auto") == CPU


@pytest.mark.parametrize(
    ("name", "picked"),
    [("auto", "cuda:1"), ("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")],
)
def test_a_cuda_device_has_an_index(two_gpus, name, picked):
    """`torch.cuda.set_device` refuses one without."""
    device = devices.pick_device(name)
    assert str(device) == picked
    assert devices.with_index(device) == device


def test_only_a_cuda_device_gets_an_index(two_gpus):
    assert devices.with_index(torch.device("cuda")) == torch.device("cuda:1")
    for name in ("cuda:0", "cpu", "mps", "meta"):
        assert devices.with_index(torch.device(name)) == torch.device(name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_gpu_is_found_and_can_become_the_current_one(monkeypatch, name):
    monkeypatch.setattr(devices, "best_device", BEST_DEVICE)
    device = devices.pick_device(name)
    assert device == torch.device("cuda", torch.cuda.current_device())
    torch.cuda.set_device(device)
    assert torch.zeros(1, device=device).device == device


def test_in_tests_auto_means_the_cpu():
    assert devices.pick_device("auto") == CPU


@pytest.mark.parametrize("name", ["gpu", "tpu:0", "cuda:x"])
def test_unknown_devices_are_refused(name):
    with pytest.raises(UsageError, match="use auto, cpu, cuda"):
        devices.pick_device(name)


def test_absent_cuda_is_reported(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingError, match="no usable CUDA device") as problem:
        devices.pick_device("cuda")
    assert problem.value.exit_code == 3


def test_absent_second_gpu_is_reported(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert devices.pick_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(MissingError, match=r"only 1 CUDA device"):
        devices.pick_device("cuda:1")


def test_precision(monkeypatch):
    assert devices.pick_precision("auto", CPU) == ("fp32", "")
    assert devices.pick_precision("fp32", CPU) == ("fp32", "")
    monkeypatch.setattr(devices, "_cpu_has_bf16", lambda: True)
    assert devices.pick_precision("bf16", CPU) == ("bf16", "")
    monkeypatch.setattr(devices, "_cpu_has_bf16", lambda: False)
    precision, note = devices.pick_precision("bf16", CPU)
    assert precision == "fp32"
    assert "emulates bf16" in note


@pytest.mark.parametrize(("busy", "threads"), [(0.0, 4), (0.3, 4), (1.0, 3), (2.8, 1), (4.0, 1)])
def test_threads_leave_out_cores_that_others_keep_busy(monkeypatch, busy, threads):
    monkeypatch.setattr(cores, "allowed", lambda: set(range(4)))
    monkeypatch.setattr(cores, "quota", lambda: 100)
    monkeypatch.setattr(cores, "busy", lambda allowed: busy)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    chosen, note = devices.pick_threads("auto")
    assert chosen == threads
    assert f"{threads} of 4 cores" in note


def test_threads_respect_a_quota_and_a_wish(monkeypatch):
    monkeypatch.setattr(cores, "allowed", lambda: set(range(8)))
    monkeypatch.setattr(cores, "quota", lambda: 2)
    monkeypatch.setattr(cores, "busy", lambda allowed: 0.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert devices.pick_threads("auto")[0] == 2
    assert devices.pick_threads(3) == (3, "threads: 3 as configured")
    assert devices.pick_threads(64)[0] == 8, "more threads than cores only get in each other's way"


def test_memory_is_positive():
    assert devices.memory_gb(CPU) > 0.05


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
@pytest.mark.slow
def test_freed_memory_is_kept_and_used_again():
    code = """
import resource, torch
from gantx.runtime import cores, devices
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def touch():
    before = faults()
    for _ in range(20):
        torch.ones(1 << 24)
    return faults() - before
touch()
mapped = touch()
devices.keep_freed_memory()
touch()
print(mapped, touch())
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    mapped, kept = map(int, printed.split())
    assert kept < mapped / 4


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_free_memory_is_part_of_all_memory():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < devices.free_memory(CPU) <= total


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc on Linux gives back what was freed")
def test_a_forgotten_peak_no_longer_counts():
    devices.forget_peak(CPU)
    before = devices.memory_gb(CPU)
    large = torch.ones(1 << 26)  # 256 MiB
    del large
    assert devices.memory_gb(CPU) > before + 0.2
    devices.forget_peak(CPU)
    assert devices.memory_gb(CPU) < before + 0.1
