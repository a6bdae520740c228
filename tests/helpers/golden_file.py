"""Golden files: tensors that official code computed, handed out one by one until none is left unchecked."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden")


def find_golden(name):
    """Path of a golden file, of those that travel with gantx or lie beside it; skips the test without one."""
    for folder in FOLDERS:
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"golden file {name} is not here")


class GoldenFile:
    """A golden safetensors file for the length of a `with`.

    Torch runs on one thread meanwhile, as it did when the file was made. Leaving the `with` fails the test
    when a tensor of the file was never asked for: what is not compared is not checked.

    Args:
        name: such as "transgan/v1_D".
    """

    def __init__(self, name):
        self.name = name
        with safe_open(find_golden(f"{name}.safetensors"), framework="pt") as file:
            self.config = json.loads(file.metadata()["config"])
            self._tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self._unused = set(self._tensors)

    def __enter__(self):
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        return self

    def __exit__(self, kind, problem, trace):
        torch.set_num_threads(self._threads)
        if kind is None:
            assert not self._unused, f"{self.name}: never compared: {sorted(self._unused)}"

    def __getitem__(self, key):
        self._unused.discard(key)
        return self._tensors[key]

    def prefix(self, start):
        """All tensors whose keys begin with `start`, under the rest of their keys."""
        return {key[len(start) :]: self[key] for key in self._tensors if key.startswith(start)}
