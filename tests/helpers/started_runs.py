"""Starts and resumes runs of the small network in this process, without the command line."""

import json

import torch
from safetensors.torch import load_file

from gantx import checkpoint
from gantx.config import presets
from gantx.training import run
from helpers.small_run import SMALL

CPU = torch.device("cpu")
_TIMINGS = {"seconds", "images_per_second", "memory_gb"}


def start(folder, *overrides, **settings):
    """A run in `folder` on the built-in shapes."""
    configuration = presets.load(
        overrides=[*SMALL, *overrides], settings={"data.source": "shapes", **settings}
    )
    return run.start(
        configuration, parent=folder.parent, out=folder, device=CPU, command=["gantx"], log=print
    )


def resume(folder, *overrides, back_to=None, allow_changes=False, **changes):
    return run.resume(
        folder,
        changes=changes,
        overrides=overrides,
        device=CPU,
        command=["gantx"],
        log=print,
        back_to=back_to,
        allow_changes=allow_changes,
    )


def names(folder):
    """Names of the checkpoints in a folder, by their images."""
    return [path.name.split(".safetensors")[0] for path in checkpoint.all_in(folder)]


def tensors(folder):
    """Those of the newest checkpoint of a run."""
    return load_file(checkpoint.find(folder))


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in _TIMINGS} for line in lines]


def assert_equal_runs(one, two):
    a, b = tensors(one), tensors(two)
    assert a.keys() == b.keys()
    assert not [key for key in a if not torch.equal(a[key], b[key])]
    assert metrics(one) == metrics(two)
