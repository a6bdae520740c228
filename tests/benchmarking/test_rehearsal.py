"""The rehearsal without a GPU: phases compile for one, what is refused is reported, launches are counted."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from gantx.benchmarking.launches import LaunchCounter

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="benchmarks/ is part of a checkout only")


def pretended_gpu():
    """The module, whose import patches nothing."""
    spec = importlib.util.spec_from_file_location("pretended_gpu", FOLDER / "pretended_gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def in_a_process(arguments, folder, seconds):
    """Run Python with caches of its own: what it patches stays there."""
    if (reason := pretended_gpu().missing()) is not None:
        pytest.skip(f"nothing compiles for a GPU here: {reason}")
    caches = {"TRITON_CACHE_DIR": folder / "triton", "TORCHINDUCTOR_CACHE_DIR": folder / "inductor"}
    environment = {**os.environ, **{name: str(path) for name, path in caches.items()}, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**environment, "PYTHONPATH": str(FOLDER)},
        cwd=FOLDER.parent,
    )


SMALL_TRANSGAN = ["data.resolution=8", "generator.base_size=4", "generator.depths=[1,1]"]
SMALL_TRANSGAN += ["generator.base_dim=32", "generator.heads=2", "discriminator.resolution=8"]
SMALL_TRANSGAN += ["discriminator.dim=32", "discriminator.heads=2", "discriminator.depth=1"]
SMALL_TRANSGAN += ["augment.policy=[]", "training.generator_batch=4"]
SMALL_STYLEGAN = ["data.resolution=8", "generator.resolution=8", "discriminator.resolution=8"]
SMALL_STYLEGAN += ["generator.channel_max=16", "generator.mapping_layers=2", "objective.path_length={}"]
SMALL_TINY = ["--depth", "1", "generator.base_dim=32", "generator.heads=2", "discriminator.dim=32"]
SMALL_TINY += ["discriminator.heads=2"]
PHASES = {
    "wgan-gp": ("transgan-s", "discriminator", ["--state", "open", *SMALL_TRANSGAN]),
    "r1 and r2": ("transgan-tiny", "penalty_every_4", SMALL_TINY),
    "path length": ("stylegan2-ffhq", "path_length_every_4", SMALL_STYLEGAN),
}


@pytest.mark.slow  # .ci/run runs them
@pytest.mark.parametrize("penalty", PHASES)
def test_a_phase_compiles_for_a_gpu(penalty, tmp_path):
    preset, phase, more = PHASES[penalty]
    command = [FOLDER / "cuda_rehearsal.py", preset, "--phase", phase, "--batch", "4", "--json", *more]
    done = in_a_process(command, tmp_path, 900)
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = json.loads(done.stdout)["presets"]
    (found,) = report["phases"]
    assert (found["name"], found["failures"]) == (phase, [])
    assert 30 < found["kernels"] < sum(found["compiled"].values())
    assert sum(found["rest"].values()) < 30
    assert sum(found["inputs"].values()) <= 12


LOWERED = """
import sys
import torch
import pretended_gpu

def loss(x, weight):
    return torch.nn.functional.gelu(x @ weight).float().softmax(1).square().mean()

x = torch.randn(64, 32, dtype=torch.bfloat16)
weight = torch.randn(32, 48, dtype=torch.bfloat16, requires_grad=True)
graphs = []
pretended_gpu.traced(loss, graphs)(x, weight).backward()
assert [graph.kind for graph in graphs] == ["forward", "backward"]
if sys.argv[1:] == ["spoilt"]:
    lower = pretended_gpu.lower
    def spoilt(graph):
        code = lower(graph)
        if graph.kind == "backward":
            name, source = code.kernels.popitem()
            code.kernels[name] = source.replace("tl.store(", "tl.store(1 / '', ")
        return code
    pretended_gpu.lower = spoilt
if sys.argv[1:] == ["impossible"]:
    def impossible(graph):
        raise ValueError("no such operation")
    pretended_gpu.lower = impossible
report = pretended_gpu.rehearse(graphs)
print(report.kernels, report.launches.total(), len(report.failures), len(report.refused))
for failure in report.failures:
    print(*failure)
assert not torch.cuda.is_available()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "failures"),
    [([], 0), (["spoilt"], 1), (["impossible"], 2)],
    ids=["as it is", "spoilt", "impossible"],
)
def test_what_is_refused_is_reported_and_launches_are_counted(how, failures, tmp_path):
    done = in_a_process(["-c", LOWERED, *how], tmp_path, 300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    kernels, launches, failed, refused = map(int, lines[0].split())
    assert failed == failures
    if how == ["impossible"]:
        assert (kernels, launches, refused) == (0, 0, 0)
        assert lines[1:3] == [
            f"{way} lowering ValueError: no such operation" for way in ("forward", "backward")
        ]
    else:
        # A matrix product in each direction beside the kernels.
        assert launches == kernels + 2
        assert refused == failures
    if how == ["spoilt"]:
        assert lines[1].startswith("backward triton_")


CODE = """
kernel_0 = async_compile.triton('kernel_0', '''
def kernel_0(in_ptr):
    other.run(in_ptr)
''', device_str='cuda')
def call(args):
    buf0 = empty_strided_cuda((4, ), (1, ), torch.float32)
    extern_kernels.mm(arg0, arg1, out=buf0)
    kernel_0.run(buf0, 4, stream=stream0)
    kernel_0.run(buf0, 4, stream=stream0)
    buf1 = extern_kernels.convolution(buf0, arg2)
    buf2 = torch.ops.aten._scaled_dot_product_flash_attention.default(buf1, buf1, buf1)
    buf3 = reinterpret_tensor(buf1, (2, 2), (2, 1), 0)
"""


def test_library_calls_are_launches_and_views_are_not():
    code = pretended_gpu().read_code(CODE)
    assert list(code.kernels) == ["kernel_0"]
    assert code.launches == {
        "extern_kernels.mm": 1,
        "kernel": 2,
        "extern_kernels.convolution": 1,
        "torch.ops.aten._scaled_dot_product_flash_attention.default": 1,
    }


def test_operations_outside_compiled_code_are_counted_as_launches():
    x = torch.ones(4, 4)
    many = [torch.ones(3) for _ in range(100)]
    large = [torch.empty(65536 * 400, device="meta")]
    with LaunchCounter() as counter:
        x.view(16).add_(1).reshape(4, 4).transpose(0, 1)
        F.softmax(x.t(), 1)
        torch.empty(3)
        torch._foreach_add_(many, 1.0)
        torch._foreach_copy_(many, [torch.empty_like(part) for part in many])
        torch._foreach_mul_(large, 2.0)
        torch.cat([x, x]).detach()
    expected = {
        "add_": 1,
        "_softmax": 1,
        "_foreach_add_": 1,
        "_foreach_copy_": 2,
        "_foreach_mul_": 2,
        "cat": 1,
    }
    assert dict(counter.launches) == expected
    assert counter.total == 8
