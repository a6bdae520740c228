"""Compiled losses are the losses: same gradients, one graph per phase, in every family."""

import dataclasses
import json

import pytest
import torch
from functorch.compile import make_boxed_func
from helpers.small_families import small
from helpers.small_run import SMALL
from safetensors.torch import load_file
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition

from gantx import checkpoint, models
from gantx.config import presets, schema
from gantx.errors import MissingError
from gantx.models import interfaces, transgan, transgan2
from gantx.models.ganformer.attention import AttentionLayer as GANformerAttentionLayer
from gantx.models.layers.residual import DownBlock as StyleGAN2DownBlock
from gantx.models.layers.spectral_norm import SpectralNorm as ViTGANSpectralNorm
from gantx.models.vitgan.blocks import Block as ViTGANBlock
from gantx.runtime.precision import set_compute_dtype
from gantx.runtime.random import draw
from gantx.training import resolve, run
from gantx.training.compiled_losses import (
    WORTHWHILE,
    CompiledDifferentiation,
    compile_loss,
    compiled,
    pick_compile,
)
from gantx.training.optimized_network import OptimizedNetwork
from gantx.training.phase import LossOutput
from gantx.training.phases import phases
from gantx.training.regularizers import input_gradient

CPU = torch.device("cpu")
ATTENTION = "components: 2, latent_dim: 8, mapping_layers: 3, channel_base: 128, channel_max: 16"
R1 = "objective.r1={gamma: 1, every: 2}"
R1_ALWAYS = "objective.r1={gamma: 1, every: 1}"
R2 = "objective.r2={gamma: 1, every: 2}"
WGAN = ("objective.loss=wgangp-eps", "objective.gradient_penalty={weight: 10}")

AT_8 = ("data.resolution=8", "generator.resolution=8", "discriminator.resolution=8")

# Every family, penalty, loss and augmentation at least once: families and settings, and the phases where they
# are at work, None for all of them.
COMBINATIONS = {
    "transgan, wgangp-eps": (
        (
            *("transgan", "transgan", *WGAN),
            *("generator.super_resolution=true", "augment.policy=[translation,cutout,color]"),
        ),
        None,
    ),
    "transgan, window": (
        ("transgan", "transgan", "objective.loss=hinge", "generator.locality=band"),
        None,
    ),
    "transgan2, wgangp": (
        (
            *("transgan2", "transgan2", "objective.loss=wgangp", "objective.gradient_penalty={weight: 10}"),
            "augment.policy=[translation,erase_ratio,color,hue]",
        ),
        {"discriminator"},
    ),
    "transgan2, strong augmentation": (
        (
            *("transgan2", "transgan2", *WGAN),
            "augment.policy=[filter,strong_translation]",
        ),
        {"generator"},
    ),
    "vitgan, consistent": (
        (
            *("vitgan", "vitgan", R1, "objective.loss=non-saturating"),
            *("objective.consistency={real: 10, fake: 10}", "augment.policy=[translation,cutout,color,flip]"),
            "augment.chances={translation: 0.5, cutout: 0.5, brightness: 0.5}",
        ),
        None,
    ),
    "vitgan, relativistic": (
        ("vitgan", "vitgan", R1, R2, "objective.loss=relativistic"),
        {"penalty_every_2", "generator"},
    ),
    "stylegan2": (
        (
            *("stylegan2", "stylegan2", R1, "objective.loss=non-saturating", "objective.style_mixing=0.9"),
            *("objective.path_length={weight: 2, every: 2, shrink: 2}", *AT_8),
        ),
        None,
    ),
    "ganformer, simplex": (
        (
            *("ganformer", "stylegan2", R1, "objective.loss=hinge"),
            *("objective.path_length={weight: 2, every: 2, shrink: 2}", *AT_8),
        ),
        {"generator", "path_length_every_2"},
    ),
    "ganformer, D with attention": (
        ("transgan", "ganformer", R1, R2, "objective.loss=hinge", "generator.depths=[1,1]", *AT_8[::2]),
        {"discriminator", "penalty_every_2"},
    ),
    "ganformer, k-means": (
        (
            *("ganformer", "stylegan2", "objective.loss=lsgan"),
            f"generator={{family: ganformer, resolution: 8, {ATTENTION}, attention: kmeans}}",
            *AT_8,
        ),
        {"generator"},
    ),
    "ganformer, duplex": (
        (
            *("ganformer", "stylegan2", "objective.loss=non-saturating"),
            f"generator={{family: ganformer, resolution: 8, {ATTENTION}, attention: duplex}}",
            *("objective.style_mixing=0.9", "objective.component_mixing=0.9", *AT_8),
        ),
        {"generator"},
    ),
}
IN_EVERY_RUN = {"transgan, wgangp-eps"}  # the rest with `pytest -m slow`
COMPILED = schema.TrainingConfig(compile=True)


@pytest.fixture(autouse=True)
def _forgotten():
    """Graphs of other tests would count against the limit of recompilations."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="session")
def fresh_cache(tmp_path_factory):
    """Where generated code goes: headers are compiled once for all tests that need them."""
    return str(tmp_path_factory.mktemp("inductor"))


def play(settings):
    """The phases of a run at its start."""
    torch.manual_seed(0)
    networks = models.build(settings.generator), models.build(settings.discriminator)
    if isinstance(networks[0], interfaces.RelaxesAttention):
        networks[0].attention_window = torch.tensor(3)
    optimizer = settings.optimizer
    sides = (optimizer.generator, optimizer.discriminator)
    return phases(settings, *(map(OptimizedNetwork, networks, sides)))


def gradient(phase, settings):
    """Loss, observations and gradient of the first pass of a phase."""
    for other in phase.frozen:
        other.train_parameters(False)
    phase.trained.train_parameters(True)
    side, generator = settings.data.resolution, torch.Generator().manual_seed(1)
    size = (phase.batch, 3, side, side)
    reals = {name: torch.rand(size, generator=generator) * 2 - 1 for name in phase.reals}
    draws = draw(phase.spec, seed=0, stream=phase.name, step=0, device=CPU)
    part = phase.passes[0]
    outcome, gradients = part.differentiate(part.loss, phase.trained.parameters, reals, draws, 1.0)
    gradients = [
        torch.zeros_like(parameter) if found is None else found
        for parameter, found in zip(phase.trained.parameters, gradients, strict=True)
    ]
    return outcome.loss.detach(), outcome.observed, gradients


def flattened(gradients):
    return torch.cat([each.flatten() for each in gradients])


def agree(settings, limit=1e-5, only=None):
    """Compare every phase of a run, or those named, with itself, compiled."""
    plan = play(settings)
    fast_plan = compiled(plan, settings.model_copy(update={"training": COMPILED}))
    assert only is None or only <= {phase.name for phase in plan}
    for phase, fast in zip(plan, fast_plan, strict=True):
        if only is not None and phase.name not in only:
            continue
        loss, observed, expected = gradient(phase, settings)
        fast_loss, fast_observed, found = gradient(fast, settings)
        torch.testing.assert_close(fast_loss, loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(fast_observed, observed, rtol=1e-4, atol=1e-5)
        pairs = list(zip(found, expected, strict=True))
        largest = max(ours.norm() for _, ours in pairs)
        assert largest > 0
        assert max((theirs - ours).norm() for theirs, ours in pairs) <= limit * largest, phase.name


@pytest.mark.parametrize(
    "name",
    [name if name in IN_EVERY_RUN else pytest.param(name, marks=pytest.mark.slow) for name in COMBINATIONS],
)
def test_compiled_gradients_equal_eager_ones(name, quick_backend):
    settings, only = COMBINATIONS[name]
    # Path lengths through attention lose five digits in float32, however they are computed.
    limit = 1e-4 if name == "ganformer, simplex" else 1e-5
    agree(small(*settings), limit, only)


def first_block(network, kind, images_or_latents):
    """The first module of a kind, and what it is given in a pass of its network."""
    block = next(module for module in network.modules() if isinstance(module, kind))
    seen = []
    hook = block.register_forward_pre_hook(
        lambda _, given, named: seen.append((given, named)), with_kwargs=True
    )
    with torch.no_grad():
        network(images_or_latents)
    hook.remove()
    return block, *seen[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("transgan", transgan.Block),
        ("transgan2", transgan2.Block),
        ("vitgan", ViTGANBlock),
        ("stylegan2", StyleGAN2DownBlock),
        ("ganformer", GANformerAttentionLayer),
    ],
)
def test_generated_code_of_a_block_computes_the_same(family, kind, monkeypatch, fresh_cache):
    """Output and slope of one block of every family, by the backend that users get."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", fresh_cache)
    torch.manual_seed(0)
    settings = small(family, family, "objective.loss=hinge")
    section, given = settings.discriminator, torch.rand(2, 3, 16, 16)
    if family == "ganformer":
        section = settings.generator
        given = torch.randn(2, *models.build(section).latent_shape)
    network = models.build(section)
    block, (x, *rest), named = first_block(network, kind, given)
    parameters = list(block.parameters())

    def run_block(x):
        made = block(x, *rest, **named)
        return (made[0] if isinstance(made, tuple) else made).flatten(1).sum(1)

    def loss(reals, draws):
        steepness = input_gradient(run_block, reals["x"]).square().mean()
        return LossOutput(run_block(reals["x"]).square().mean() + steepness, {"slope": steepness})

    expected, found = loss({"x": x}, {}), compile_loss(loss, CPU)({"x": x}, {})
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-6)
    pairs = [
        torch.autograd.grad(outcome.loss, parameters, materialize_grads=True) for outcome in (found, expected)
    ]
    largest = max(wanted.norm() for wanted in pairs[1])
    assert largest > 0
    assert max((one - other).norm() for one, other in zip(*pairs, strict=True)) <= 1e-5 * largest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("generator", "discriminator", "step", "settings"),
    [
        ("transgan", "transgan", 0, (R1_ALWAYS,)),
        ("transgan", "transgan2", 0, (R1_ALWAYS,)),
        ("vitgan", "vitgan", 0, (R1_ALWAYS,)),
        ("transgan", "stylegan2", 0, (R1_ALWAYS,)),
        ("ganformer", "transgan", 1, AT_8),
    ],
)
def test_generated_code_computes_the_same(generator, discriminator, step, settings, monkeypatch, fresh_cache):
    """D's step, or G's step, by the backend that users get, with code generated anew."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", fresh_cache)
    lean = {
        "transgan": ("generator.depths=[1]", "generator.rgb_patch=4", "generator.super_resolution=false"),
        "vitgan": ("generator.patch_size=8",),
        "ganformer": ("generator.attention_from=8",),
    }
    settings = small(generator, discriminator, "objective.loss=non-saturating", *lean[generator], *settings)
    phase = play(settings)[step]
    (fast,) = compiled([phase], settings.model_copy(update={"training": COMPILED}))
    expected, found = (flattened(gradient(each, settings)[2]) for each in (phase, fast))
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.slow
def test_in_bf16_compiled_losses_are_as_exact_as_eager_ones(quick_backend):
    """Rounding to eight bits falls elsewhere, so the yardstick is the gradient in float32."""
    settings = small(*COMBINATIONS["transgan, wgangp-eps"][0])
    phase = play(settings)[0]
    exact = flattened(gradient(phase, settings)[2])
    for optimized in (phase.trained, *phase.frozen):
        set_compute_dtype(optimized.network, torch.bfloat16)
    (fast,) = compiled([phase], settings.model_copy(update={"training": COMPILED}))
    eager, found = (flattened(gradient(each, settings)[2]) for each in (phase, fast))
    assert 0 < (eager - exact).norm() < 0.1 * exact.norm()
    assert (found - exact).norm() < 1.5 * (eager - exact).norm()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transgan, wgangp-eps", "vitgan, consistent"])
def test_recomputed_activations_compile(name, quick_backend):
    settings, _ = COMBINATIONS[name]
    agree(small(*settings, "training.recompute=true"), only={"discriminator"})


@pytest.mark.slow
def test_phases_that_differ_in_values_alone_have_graphs_of_their_own(quick_backend):
    """R1 and R2 at intervals of their own run the same lines of Python."""
    lazy = ("objective.r1={gamma: 1, every: 2}", "objective.r2={gamma: 3, every: 4}")
    settings = small("transgan", "transgan", "objective.loss=hinge", *lazy)
    agree(settings, only={"r1_every_2", "r2_every_4"})
    assert quick_backend() == 2


# --- one graph, and what the passes share is computed once ------------------------------------------------


def forward_graph(phase, settings):
    """The graph of a phase's loss up to its value, slopes of penalties included, once merged."""
    seen = []

    def keep(graph, inputs):
        seen.append(graph.graph)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=keep, partition_fn=min_cut_rematerialization_partition)
    whole = torch.compile(phase.passes[0].loss, fullgraph=True, backend=backend)
    gradient(dataclasses.replace(phase, passes=(phase.passes[0]._replace(loss=whole),)), settings)
    return seen[0]


def products(node):
    """Matrix products that a tensor of the graph enters, by way of views."""
    found = 0
    for user in node.users:
        name = user.target.__name__ if callable(user.target) else ""
        if name.startswith(("view", "expand", "t.", "transpose", "unsqueeze", "permute", "_unsafe_view")):
            found += products(user)
        elif name.startswith(("mm", "bmm")):
            found += 1
    return found


@pytest.mark.slow
def test_power_iterations_are_merged():
    """Reals, fakes and the slope of the penalty see the same normalised weights: one product a layer."""
    settings = small("vitgan", "vitgan", R1_ALWAYS, "objective.loss=hinge")
    phase = play(settings)[0]
    normalised = [m for m in phase.trained.network.modules() if isinstance(m, ViTGANSpectralNorm)]
    assert len(normalised) == 7
    dots = [node for node in forward_graph(phase, settings).nodes if "aten.dot" in str(node.target)]
    assert len(dots) == len(normalised)


@pytest.mark.slow
def test_position_tables_are_spread_once():
    """Every block's table of relative positions is laid out over all pairs once for all passes of D."""
    settings = small("transgan2", "transgan2", *WGAN)
    phase = play(settings)[0]
    networks = [optimized.network for optimized in (phase.trained, *phase.frozen)]
    shapes = [m.spread.shape for network in networks for m in network.modules() if hasattr(m, "spread")]
    graph = forward_graph(phase, settings)
    spreads = [n for n in graph.nodes if n.op == "placeholder" and n.meta["val"].shape in shapes]
    assert len(spreads) == len(shapes) > 2
    assert {products(node) for node in spreads} == {2}  # from the left and from the right


@pytest.mark.slow
def test_a_compiled_step_makes_no_filters():
    """The bank of filters is made once: in a graph of a GPU it would be made on the CPU, step by step."""
    settings = small("transgan", "transgan", *WGAN, "augment.policy=[filter]")
    names = {str(node.target) for node in forward_graph(play(settings)[0], settings).nodes}
    assert any("aten.bmm" in name for name in names)
    assert not [name for name in names if "convolution" in name or "scatter" in name or "conv1d" in name]


# --- whole runs -------------------------------------------------------------------------------------------


def train(folder, *overrides):
    """A small run with every feature of TransGAN; the tensors of its last checkpoint and its metrics."""
    settings = presets.load(overrides=[*SMALL, *overrides], settings={"data.source": "shapes"})
    out = folder / "-".join(overrides[-1:]).replace("=", "-")
    run.start(settings, parent=folder, out=out, device=CPU, command=["gantx"], log=print)
    return out


def last(folder):
    return load_file(checkpoint.latest_in(folder / "checkpoints"))


@pytest.mark.slow
def test_a_compiled_run_follows_the_eager_one(tmp_path, quick_backend):
    """Five iterations within the limits of the golden training loops, one graph for each loss."""
    five = ("training.kimg=0.04", "training.attention_window=null", "objective.n_critic=1")
    eager = train(tmp_path, *five, "training.compile=off")
    assert quick_backend() == 0
    compiled_run = train(tmp_path, *five, "training.compile=on")
    assert quick_backend() == 3  # D, R1, G
    one, two = last(eager), last(compiled_run)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-5, msg=lambda text, n=name: n + text)
    env = json.loads((compiled_run / "env.json").read_text())
    assert env["compile"] is True


@pytest.mark.slow
def test_graphs_do_not_depend_on_the_length_of_a_run(tmp_path, quick_backend):
    """A graph for each loss, and for those of G's fakes one more when the attention window opens."""
    train(tmp_path, "training.compile=on")  # its window goes from 2 to 4 and then opens
    assert quick_backend() == 3 + 2
    log = (tmp_path / "training.compile-on" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["iteration"] == 25


@pytest.mark.slow
def test_a_compiled_run_resumes_with_the_same_bits(tmp_path, quick_backend):
    short = ("training.attention_window=null", "objective.r1=null", "training.compile=on")
    straight = train(tmp_path, *short, "training.kimg=0.064")
    broken = train(tmp_path, *short, "training.kimg=0.032")
    run.resume(
        broken, changes={"training.kimg": 0.064}, overrides=[], device=CPU, command=["gantx"], log=print
    )
    one, two = last(straight), last(broken)
    assert not [name for name in one if not torch.equal(one[name], two[name])]


@pytest.mark.parametrize(
    ("wanted", "device", "steps", "expected"),
    [
        (True, "cpu", 1, True),
        (False, "cuda", 10**6, False),
        ("auto", "cpu", 10**6, False),
        ("auto", "cuda", WORTHWHILE, True),
        ("auto", "cuda", WORTHWHILE - 1, False),
    ],
)
def test_auto_compiles_long_runs_on_cuda(wanted, device, steps, expected):
    assert pick_compile(wanted, torch.device(device), steps) is expected


def test_phases_stay_as_they_are_unless_compiling_is_on():
    settings = small("transgan", "transgan", "training.compile=off")
    plain = play(settings)
    assert compiled(plain, settings) is plain


@pytest.mark.slow
def test_a_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    settings = small("transgan", "transgan", "training.compile=on")
    phase = compiled(play(settings), settings)[0]
    nowhere = torch._inductor.config.patch({"cpp.cxx": (None, "/nowhere/g++")})
    with nowhere, pytest.raises(MissingError, match=r"C\+\+ compiler.*--compile off"):
        gradient(phase, settings)


# --- compiling that fails is no failure of the run --------------------------------------------------------


class _Refused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("PassManager::run failed\nmore")


def refusing_forward(loss, **how):
    def compiled_loss(reals, draws):
        raise RuntimeError("PassManager::run failed\nmore")

    return compiled_loss


def refusing_backward(loss, **how):
    def compiled_loss(reals, draws):
        outcome = loss(reals, draws)
        return outcome._replace(loss=_Refused.apply(outcome.loss))

    return compiled_loss


@pytest.mark.parametrize("refusing", [refusing_forward, refusing_backward])
def test_a_run_goes_on_where_the_compiler_fails(refusing, tmp_path, monkeypatch):
    short = ("training.kimg=0.04", "training.attention_window=null")
    eager = last(train(tmp_path, *short, "training.compile=off"))
    monkeypatch.setattr(resolve, "pick_compile", lambda *given: True)  # as on a GPU
    monkeypatch.setattr(torch, "compile", refusing)
    folder = train(tmp_path, *short, "training.compile=auto")
    assert not [name for name, value in last(folder).items() if not torch.equal(value, eager[name])]
    log = (folder / "train.log").read_text()
    for phase in ("discriminator", "generator"):
        assert log.count(f"the loss of {phase} is not compiled: RuntimeError: PassManager::run failed.") == 1


def test_compiling_that_was_asked_for_is_an_error_where_it_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", refusing_forward)
    with pytest.raises(MissingError, match=r"cannot be compiled .*PassManager.* --compile auto or off"):
        train(tmp_path, "training.compile=on")


def test_memory_that_runs_out_while_compiled_code_runs_is_not_taken_for_a_failure_of_the_compiler():
    def loss(reals, draws):
        raise torch.OutOfMemoryError("CUDA out of memory")

    work = CompiledDifferentiation(loss, "the loss of generator", print, required=False)
    with pytest.raises(torch.OutOfMemoryError):
        work(loss, [], {}, {}, 1.0)
