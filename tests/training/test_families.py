"""Any generator trains against any discriminator of the same resolution."""

import json
import math

import pytest
import torch
from helpers.small_families import DISCRIMINATORS, GENERATORS, small
from safetensors.torch import load_file

from gantx import checkpoint
from gantx.training import run

CPU = torch.device("cpu")


def start(folder, generator, discriminator, *overrides):
    settings = small(generator, discriminator, *overrides)
    return run.start(settings, parent=folder, out=folder / "run", device=CPU, command=["gantx"], log=print)


@pytest.mark.parametrize("discriminator", DISCRIMINATORS)
@pytest.mark.parametrize("generator", GENERATORS)
def test_two_steps(generator, discriminator, tmp_path):
    folder = start(tmp_path, generator, discriminator)
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["iteration"] == 2
    for phase in ("discriminator", "generator"):
        assert math.isfinite(line[f"{phase}/loss"])
        assert line[f"{phase}/gradient_norm"] > 0
    assert (folder / "samples" / "kimg-000000.008.png").is_file()


@pytest.mark.parametrize("family", ["transgan2", "vitgan", "stylegan2", "ganformer"])
def test_a_resumed_run_ends_with_the_same_bits(family, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight = start(tmp_path / "a", family, family, "training.kimg=0.016")
    broken = start(tmp_path / "b", family, family)
    run.resume(
        broken, changes={"training.kimg": 0.016}, overrides=[], device=CPU, command=["gantx"], log=print
    )
    one, two = (load_file(checkpoint.latest_in(folder / "checkpoints")) for folder in (straight, broken))
    assert one.keys() == two.keys()
    assert not [name for name in one if not torch.equal(one[name], two[name])]
