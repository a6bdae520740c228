"""The classic loop of benchmarks/ trains; the GPU run takes rows in turn, and its table says what holds."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.small_run import SMALL

from gantx.config import presets

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="benchmarks/ is part of a checkout only")


def script(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
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
    settings = presets.load(overrides=[*SMALL, "generator.super_resolution=true", *overrides])
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
    settings = presets.load(overrides=SMALL)
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
    "images_per_second": 1500.0,
    "iteration_milliseconds": 91.4,
    "share_of_ceiling": 0.3,
    "peak_memory_gib": 4.0,
    "warm_up_seconds": 30.0,
    "idle_share": 0.01,
    "machine": MACHINE,
}


def test_the_table_says_what_contains_what_does_not_and_what_is_missing(tmp_path):
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
    lines = module.table(*module.read(file, tmp_path / "missing.jsonl")).splitlines()
    assert "| transgan-s: images/s against the classic loop | ≥ 12× | 15.0× | yes |" in lines
    assert "| transgan-s: peak memory against it | ≤ 0.5× | 0.80× | no |" in lines
    assert "| transgan-s: host gaps | < 3% | 1.0% | yes |" in lines
    assert "| vitgan-cifar10: images/s against the classic loop | ≥ 15× | - | not measured |" in lines
    assert "| transgan-xl-128: share of the matmul ceiling | ≥ 35% | 40.0% | yes |" in lines
    (to_file,) = [line for line in lines if line.startswith("| transgan-s: images to one file")]
    assert "not measured" in to_file
    assert "| vitgan-cifar10, classic | failed, or no time left | | | | | | |" in lines


def test_the_table_tells_what_did_not_run_and_which_optimisations_failed(tmp_path):
    smoke = [
        {"row": "transgan-tiny, eager, train", "side": "smoke", "figures": {"seconds": 3, "wrong": None}},
        {
            "row": "vitgan-tiny, eager, train",
            "side": "smoke",
            "figures": {"seconds": 1, "wrong": "exit code 70"},
        },
    ]
    speed = [{"row": "transgan-s", "side": "gantx", "figures": TRAINED, "notes": ["G is not compiled: X"]}]
    trained = [{"row": "on CIFAR-10", "side": "train", "figures": {"kimg": 12.5, "cfd": 9.25}}]
    files = []
    for name, rows in (("smoke", smoke), ("speed", speed), ("train", trained)):
        files.append(tmp_path / name)
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = script("gpu_table")
    lines = module.table(*module.read(*files)).splitlines()
    assert lines[0] == "Smoke: 1 of 2 commands pass."
    assert "- vitgan-tiny, eager, train: exit code 70" in lines
    assert "- transgan-s, gantx: G is not compiled: X" in lines
    assert "on CIFAR-10: 12.5 kimg, 9.25 CFD." in lines


@pytest.fixture
def parts(tmp_path):
    """The module of the parts, and a run of it."""
    module = script("gpu_parts")
    out = tmp_path / "out"
    out.mkdir()
    run = module.Run(out, "cpu", True, False, [], None, tmp_path / "caches", began=0.0, deadline=float("inf"))
    return module, run


def rows_of(run, part):
    return [json.loads(line) for line in (run.out / f"{part}.jsonl").read_text().splitlines()]


ROW = """
import json, pathlib, sys, time
seconds, folder = float(sys.argv[1]), pathlib.Path(sys.argv[3])
time.sleep(seconds)
(folder / "ready").touch()
while not (folder / "go").exists():
    time.sleep(0.01)
began = time.time()
time.sleep(0.3)
print(json.dumps({"images_per_second": 1.0, "began": began, "ended": time.time()}))
print("the step of G is not replayed: X", file=sys.stderr)
"""


@pytest.fixture
def row(tmp_path):
    """A command that is ready after so many seconds, and fails at an optimisation."""
    script = tmp_path / "row.py"
    script.write_text(ROW)
    return lambda seconds: [script, seconds]


def test_rows_are_measured_one_at_a_time_and_late_ones_last(parts, row):
    module, run = parts
    commands = {"late": 3, "second": 0, "third": 0}
    rows = {name: module.Row(run, name, row(seconds), 3) for name, seconds in commands.items()}
    run.deadline = module.time.monotonic() + 60
    module.measure_rows(run, rows, barrier=module.time.monotonic() + 1)
    found = rows_of(run, "speed")
    assert [row["row"] for row in found] == ["second", "third", "late"]
    spans = [(row["figures"]["began"], row["figures"]["ended"]) for row in found]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert all(one["notes"] == ["the step of G is not replayed: X"] for one in found)


@pytest.mark.slow
def test_a_row_that_fails_or_is_never_ready_leaves_the_others_alone(parts, row):
    module, run = parts
    commands = {
        "fails": ["-c", "raise SystemExit(3)"],
        "never": ["-c", "import time; time.sleep(600)"],
        "good": row(0),
    }
    rows = {name: module.Row(run, name, command, 3) for name, command in commands.items()}
    run.deadline = module.time.monotonic() + 12
    module.measure_rows(run, rows, barrier=module.time.monotonic() + 0.5)
    figures = {row["row"]: row["figures"] for row in rows_of(run, "speed")}
    assert figures["fails"] is None
    assert figures["never"] is None
    assert figures["good"]["images_per_second"] == 1.0


def test_the_source_of_kernels_that_failed_to_compile_is_kept(parts):
    module, run = parts
    (run.caches / "inductor" / "ab").mkdir(parents=True)
    (run.caches / "inductor" / "ab" / "cabcdefgh.py").write_text(
        "def triton_per_fused_mean_7(x):\n    pass\n"
    )
    (run.caches / "inductor" / "ab" / "cother.py").write_text("def triton_poi_fused_add_0(x):\n    pass\n")
    (run.out / "logs").mkdir()
    (run.out / "logs" / "row.txt").write_text("E1 Triton compilation failed: triton_per_fused_mean_7\n")
    module.keep_kernels(run)
    assert [path.name for path in (run.out / "kernels").iterdir()] == ["triton_per_fused_mean_7.cabcdefg.py"]


def test_a_smoke_chain_ends_with_the_command_that_fails(parts):
    module, run = parts
    chain = module.Chain(run, "transgan-tiny", "eager", 1)
    chain.step("version", "--version")
    chain.step("nonsense", "no-such-command")
    chain.step("never", "--version")
    found = rows_of(run, "smoke")
    assert [row["row"] for row in found] == [
        f"transgan-tiny, eager, {name}" for name in ("version", "nonsense")
    ]
    assert found[0]["figures"]["wrong"] is None
    assert found[1]["figures"]["wrong"].startswith("exit code 2: ")


def test_a_profile_lists_operators_of_the_host(tmp_path):
    module = script("profile_step")
    x = torch.randn(64, 64)
    text, busy = module.profiled(lambda: [x @ x for _ in range(4)], torch.device("cpu"), 4, "products")
    assert busy is None
    lines = text.splitlines()
    assert lines[0] == "products"
    (product,) = [line for line in lines if line.endswith("aten::mm")]
    assert product.split()[2] == "1.0"
