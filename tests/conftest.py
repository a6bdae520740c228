"""What holds for every test: no network beyond this machine, no cache of the user's touched."""

import os
import signal
import socket

import pytest

# Before anything imports torch: idle OpenMP threads must not spin against a busy neighbour, and tests that
# run side by side share the cores.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))
# Shells in the background and nohup start the tests with these signals ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _to_loopback_only(method):
    """The socket method, refusing every address but this machine's own."""

    def checked(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = address[0]
            if not (host == "localhost" or host.startswith("127.") or host == "::1"):
                raise OSError(f"tests use no network, but something wants to reach {host}")
        return method(self, address)

    return checked


socket.socket.connect = _to_loopback_only(socket.socket.connect)
socket.socket.connect_ex = _to_loopback_only(socket.socket.connect_ex)


def _resolve_loopback_only(host, *args, **kwargs):
    if host not in (None, "localhost", "127.0.0.1", "::1", b"localhost"):
        raise socket.gaierror(f"tests use no network, but something wants to resolve {host}")
    return _getaddrinfo(host, *args, **kwargs)


_getaddrinfo = socket.getaddrinfo
socket.getaddrinfo = _resolve_loopback_only


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    """Each test gets an empty cache folder and no settings of the user's."""
    for name in [name for name in os.environ if name.startswith("GANTX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GANTX_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _auto_means_the_cpu(monkeypatch):
    """Tests mean the CPU, on a machine with a GPU too; those of a GPU name it, as the command line can.

    What `auto` means to users is tested in test_devices.py. Programs that tests start are told a device.
    """
    import torch

    from gantx.runtime import devices

    monkeypatch.setattr(devices, "best_device", lambda: torch.device("cpu"))
