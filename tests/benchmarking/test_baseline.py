"""The classic loop of benchmarks/ trains, and the table of the GPU run says what holds."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from small_run import SMALL

from gantx import config

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="benchmarks/ is part of a checkout only")


def script(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("improved", [[], "all"])
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["objective.consistency={real: 1}", "objective.r2={gamma: 0.1}"],
        ["objective={loss: relativistic, gradient_penalty: null}"],
    ],
)
def test_the_classic_loop_moves_both_networks_and_the_average(overrides, improved):
    classic = script("classic")
    improved = list(classic.IMPROVEMENTS) if improved == "all" else improved
    settings = config.load(overrides=[*SMALL, "generator.super_resolution=true", *overrides])
    run = classic.Classic(settings, torch.device("cpu"), improved)
    networks = (run.generator, run.discriminator, run.average)
    before = [[parameter.clone() for parameter in network.parameters()] for network in networks]
    for _ in range(run.period):
        run.iterate(torch.rand(8, 3, 8, 8) * 2 - 1)
    for network, old in zip(networks, before, strict=True):
        values = list(network.parameters())
        assert all(bool(value.isfinite().all()) for value in values)
        assert any(not torch.equal(*pair) for pair in zip(old, values, strict=True))


def test_the_classic_loop_loads_pictures_anew(tmp_path, monkeypatch):
    classic = script("classic")
    monkeypatch.setattr(classic, "PICTURES", 8)
    settings = config.load(overrides=SMALL)
    reals = classic.loaded(tmp_path, settings, torch.device("cpu"), 0)
    first, second = next(reals), next(reals)
    assert first.shape == second.shape == (8, 3, 8, 8)
    assert -1 <= float(first.min()) < -0.9 < 0.9 < float(first.max()) <= 1
    assert len(list(tmp_path.glob("*.png"))) == 8
    assert not torch.equal(first, second)  # another order, other flips


MACHINE = {"name": "GPU", "threads": 2, "cores": 4, "versions": {"torch": "2.11"}}
TRAINED = {
    "preset": "transgan-s",
    "batch": 64,
    "images_per_second": 700.0,
    "iteration_milliseconds": 91.4,
    "share_of_ceiling": 0.3,
    "peak_memory_gib": 4.0,
    "warm_up_seconds": 30.0,
    "idle_share": 0.01,
    "machine": MACHINE,
}


def test_the_table_says_what_holds_what_does_not_and_what_is_missing(tmp_path):
    classic = {**TRAINED, "images_per_second": 100.0, "peak_memory_gib": 5.0}
    rows = [
        {"row": "transgan-s", "side": "gantx", "figures": TRAINED},
        {"row": "transgan-s", "side": "classic", "figures": classic},
        {"row": "vitgan-cifar10", "side": "gantx", "figures": TRAINED},
        {"row": "vitgan-cifar10", "side": "classic", "figures": None},
        {"row": "transgan-xl-64", "side": "gantx", "figures": {**TRAINED, "share_of_ceiling": 0.2}},
        {"row": "transgan-xl-128", "side": "gantx", "figures": {**TRAINED, "share_of_ceiling": 0.4}},
        {"row": "transgan-s", "side": "sampling", "figures": None},
    ]
    file = tmp_path / "results.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = script("gpu_table")
    lines = module.table(module.read(file)).splitlines()
    assert "| transgan-s: images/s against the classic loop | ≥ 6× | 7.0× | yes |" in lines
    assert "| transgan-s: peak memory against it | ≤ 0.5× | 0.80× | no |" in lines
    assert "| transgan-s: host gaps | < 3% | 1.0% | yes |" in lines
    assert "| vitgan-cifar10: images/s against the classic loop | ≥ 8× | - | not measured |" in lines
    assert "| transgan-xl-128: share of the matmul ceiling | ≥ 35% | 40.0% | yes |" in lines
    (to_file,) = [line for line in lines if line.startswith("| transgan-s: images to one file")]
    assert "not measured" in to_file
    assert "| vitgan-cifar10, classic | failed, or no time left | | | | | | |" in lines
