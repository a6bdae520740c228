"""Training on a GPU that is not there: no tensor is elsewhere, and the weights are those of the CPU."""

import os

import pytest
import torch
from helpers.pretended_cuda import CPU, CUDA, MixedDevicesError, pretended_cuda
from helpers.small_families import small
from safetensors.torch import load_file

from gantx.training import run as training

# Every generator and every discriminator once, and between them whatever a phase or the data can have.
RUNS = {
    "transgan": (
        "transgan",
        "objective.n_critic=2",
        "training.micro_batch=2",
        "conditioning.classes=auto",
        "augment.policy=[translation,cutout,color]",
        "training.kimg=0.024",
    ),
    "implicit": ("dcgan", "objective.loss=relativistic", "conditioning.classes=auto", "data.resident=stream"),
    "transgan2": ("transgan2", "data.mirror=true"),
    "vitgan": ("vitgan", "data.resident=stream", "data.mirror=true", "conditioning.classes=auto"),
    "stylegan2": ("stylegan2", "objective.path_length={weight: 2, every: 2}"),
    "ganformer": ("ganformer", "data.channels=4"),
}
IN_EVERY_RUN = ("transgan", "implicit")


def test_a_tensor_of_another_device_is_refused():
    with pretended_cuda():
        ours = torch.nn.Linear(3, 2).to("cuda")(torch.ones(4, 3, device="cuda"))
        assert (ours.device, ours.cpu().device) == (CUDA, CPU)
        (ours + torch.tensor(1.0)).mean().backward()
        for work in (
            lambda: ours + torch.ones(2),
            lambda: torch.cat([ours, torch.ones(4, 2)]),
            lambda: ours.index_select(0, torch.tensor([0])),
            lambda: torch.randn(2, device="cuda", generator=torch.Generator()),
        ):
            with pytest.raises(MixedDevicesError):
                work()
        with pytest.raises(TypeError, match="numpy"):
            ours.detach().numpy()
        with pytest.raises(ValueError, match="index"):
            torch.cuda.set_device(torch.device("cuda"))


def trained(family, folder, device, *more):
    discriminator, *overrides = RUNS[family]
    settings = small(
        family,
        discriminator,
        *("training.precision=fp32", "training.compile=false", "training.kimg=0.012", *overrides, *more),
    )
    said = []
    run = training.start(
        settings, parent=folder, out=folder / "run", device=device, command=["gantx"], log=said.append
    )
    log = (run / "train.log").read_text()
    return load_file(sorted((run / "checkpoints").glob("*.safetensors"))[-1]), "\n".join(said) + log


@pytest.mark.parametrize(
    "family",
    [family if family in IN_EVERY_RUN else pytest.param(family, marks=pytest.mark.slow) for family in RUNS],
)
def test_weights_are_those_of_the_cpu(family, tmp_path, monkeypatch):
    monkeypatch.setenv("GANTX_DEBUG", "1")
    (tmp_path / "cpu").mkdir(), (tmp_path / "cuda").mkdir()
    expected, _ = trained(family, tmp_path / "cpu", CPU)
    with pretended_cuda() as gpu:
        found, said = trained(family, tmp_path / "cuda", CUDA)
    assert gpu.functions > 100
    assert "without replay" not in said
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # Attention arranges its products by the device, so that not every rounding is the same.
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_an_iteration_does_not_wait_for_the_gpu(tmp_path):
    seldom = ("training.report_kimg=1", "training.sample_kimg=1", "training.checkpoint_kimg=1")
    waits = []
    for kimg in (0.016, 0.048):
        (folder := tmp_path / str(kimg)).mkdir()
        with pretended_cuda() as gpu:
            trained("implicit", folder, CUDA, f"training.kimg={kimg}", *seldom)
        waits.append(gpu.waits)
    assert waits[0] == waits[1] > 0


def test_cublas_is_deterministic_from_its_first_product_on(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    settings = small("implicit", "dcgan", "training.deterministic=true", "training.evaluate_every=1")
    found = []

    def features_of_real_images(*given):
        found.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG"))

    monkeypatch.setattr(training, "PeriodicEvaluation", features_of_real_images)
    for device in (CPU, CUDA):
        training._periodic_evaluation(settings, device, print, None)
    assert found == [None, ":4096:8"]
