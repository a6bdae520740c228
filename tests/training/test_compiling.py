"""Compiled losses are the losses: same gradients, one graph per stage, in every family."""

import json
import os

import pytest
import torch
from functorch.compile import make_boxed_func
from safetensors.torch import load_file
from small_families import small
from small_run import SMALL
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition

from gantx import checkpoint, config, models
from gantx.draws import draw
from gantx.errors import MissingError
from gantx.models import ganformer, stylegan2, transgan, transgan2, vitgan
from gantx.training import run
from gantx.training.compiling import WORTHWHILE, compile_loss, compiled, pick_compile
from gantx.training.recipes import stages
from gantx.training.regularizers import slope
from gantx.training.stage import Outcome, Player

CPU = torch.device("cpu")
ATTENTION = "components: 2, latent_dim: 8, mapping_layers: 3, channel_base: 128, channel_max: 16"
R1 = "objective.r1={gamma: 1, every: 2}"
R1_ALWAYS = "objective.r1={gamma: 1, every: 1}"
R2 = "objective.r2={gamma: 1, every: 2}"
WGAN = ("objective.loss=wgangp-eps", "objective.gradient_penalty={weight: 10}")

AT_8 = ("data.resolution=8", "generator.resolution=8", "discriminator.resolution=8")

# Every family, penalty, loss and augmentation at least once: families and settings, and the stages where they
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
    "transgan2, leaking": (
        (
            *("transgan2", "transgan2", *WGAN, "objective.gradient_leak=true"),
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
PATIENT = pytest.mark.skipif(
    "GANTX_PATIENT_TESTS" not in os.environ, reason="takes minutes: set GANTX_PATIENT_TESTS=1"
)
COMPILED = config.TrainingConfig(compile=True)


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
    """The stages of a run at its start."""
    torch.manual_seed(0)
    networks = models.build(settings.generator), models.build(settings.discriminator)
    if isinstance(networks[0], models.RelaxesAttention):
        networks[0].attention_window = torch.tensor(3)
    optimizer = settings.optimizer
    players = Player(networks[0], optimizer.generator), Player(networks[1], optimizer.discriminator)
    return stages(settings, *players)


def gradient(stage, loss, settings):
    """Loss, observations and gradient of the first pass of a stage."""
    for player in stage.holds:
        player.network.requires_grad_(stage.spills)
    stage.moves.network.requires_grad_(True)
    stage.moves.gradient.zero_()
    side, generator = settings.data.resolution, torch.Generator().manual_seed(1)
    size = (stage.batch, 3, side, side)
    reals = {name: torch.rand(size, generator=generator) * 2 - 1 for name in stage.reals}
    draws = draw(stage.spec, seed=0, stream=stage.name, step=0, device=CPU)
    outcome = loss(reals, draws)
    outcome.loss.backward()
    return outcome.loss.detach(), outcome.observed, stage.moves.gradient.clone()


def agree(settings, limit=1e-5, only=None):
    """Compare every stage of a run, or those named, with itself, compiled."""
    plan = play(settings)
    fast_plan = compiled(plan, settings.model_copy(update={"training": COMPILED}))
    assert only is None or only <= {stage.name for stage in plan}
    for stage, fast in zip(plan, fast_plan, strict=True):
        if only is not None and stage.name not in only:
            continue
        loss, observed, expected = gradient(stage, stage.passes[0].loss, settings)
        fast_loss, fast_observed, found = gradient(stage, fast.passes[0].loss, settings)
        torch.testing.assert_close(fast_loss, loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(fast_observed, observed, rtol=1e-4, atol=1e-5)
        sizes = [parameter.numel() for parameter in stage.moves.parameters]
        pairs = list(zip(found.split(sizes), expected.split(sizes), strict=True))
        largest = max(ours.norm() for _, ours in pairs)
        assert largest > 0
        assert max((theirs - ours).norm() for theirs, ours in pairs) <= limit * largest, stage.name


@pytest.mark.parametrize("name", COMBINATIONS)
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
        ("vitgan", vitgan.Block),
        ("stylegan2", stylegan2.DownBlock),
        ("ganformer", ganformer.AttentionLayer),
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
        steepness = slope(run_block, reals["x"]).square().mean()
        return Outcome(run_block(reals["x"]).square().mean() + steepness, {"slope": steepness})

    expected, found = loss({"x": x}, {}), compile_loss(loss, CPU)({"x": x}, {})
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-6)
    pairs = [
        torch.autograd.grad(outcome.loss, parameters, materialize_grads=True) for outcome in (found, expected)
    ]
    largest = max(wanted.norm() for wanted in pairs[1])
    assert largest > 0
    assert max((one - other).norm() for one, other in zip(*pairs, strict=True)) <= 1e-5 * largest


@PATIENT
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
    stage = play(settings)[step]
    (fast,) = compiled([stage], settings.model_copy(update={"training": COMPILED}))[0].passes
    _, _, expected = gradient(stage, stage.passes[0].loss, settings)
    _, _, found = gradient(stage, fast.loss, settings)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_in_bf16_compiled_losses_are_as_exact_as_eager_ones():
    """Rounding to eight bits falls elsewhere, so the yardstick is the gradient in float32."""
    settings = small(*COMBINATIONS["transgan, wgangp-eps"][0])
    stage = play(settings)[0]
    loss = stage.passes[0].loss
    _, _, exact = gradient(stage, loss, settings)
    fast = torch.compile(loss, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, _, eager = gradient(stage, loss, settings)
        _, _, found = gradient(stage, fast, settings)
    assert 0 < (eager - exact).norm() < 0.1 * exact.norm()
    assert (found - exact).norm() < 1.5 * (eager - exact).norm()


@pytest.mark.parametrize("name", ["transgan, wgangp-eps", pytest.param("vitgan, consistent", marks=PATIENT)])
def test_recomputed_activations_compile(name, quick_backend):
    settings, _ = COMBINATIONS[name]
    agree(small(*settings, "training.recompute=true"), only={"discriminator"})


def test_stages_that_differ_in_values_alone_have_graphs_of_their_own(quick_backend):
    """R1 and R2 at intervals of their own run the same lines of Python."""
    lazy = ("objective.r1={gamma: 1, every: 2}", "objective.r2={gamma: 3, every: 4}")
    settings = small("transgan", "transgan", "objective.loss=hinge", *lazy)
    agree(settings, only={"r1_every_2", "r2_every_4"})
    assert quick_backend() == 2


# --- one graph, and what the passes share is computed once ------------------------------------------------


def forward_graph(stage, settings):
    """The graph of a stage's loss up to its value, slopes of penalties included, once merged."""
    seen = []

    def keep(graph, inputs):
        seen.append(graph.graph)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=keep, partition_fn=min_cut_rematerialization_partition)
    gradient(stage, torch.compile(stage.passes[0].loss, fullgraph=True, backend=backend), settings)
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


def test_power_iterations_are_merged():
    """Reals, fakes and the slope of the penalty see the same normalised weights: one product a layer."""
    settings = small("vitgan", "vitgan", R1_ALWAYS, "objective.loss=hinge")
    stage = play(settings)[0]
    normalised = [m for m in stage.moves.network.modules() if isinstance(m, vitgan.SpectralNorm)]
    assert len(normalised) == 7
    dots = [node for node in forward_graph(stage, settings).nodes if "aten.dot" in str(node.target)]
    assert len(dots) == len(normalised)


def test_position_tables_are_spread_once():
    """Every block's table of relative positions is laid out over all pairs once for all passes of D."""
    settings = small("transgan2", "transgan2", *WGAN)
    stage = play(settings)[0]
    networks = [player.network for player in (stage.moves, *stage.holds)]
    shapes = [m.spread.shape for network in networks for m in network.modules() if hasattr(m, "spread")]
    graph = forward_graph(stage, settings)
    spreads = [n for n in graph.nodes if n.op == "placeholder" and n.meta["val"].shape in shapes]
    assert len(spreads) == len(shapes) > 2
    assert {products(node) for node in spreads} == {2}  # from the left and from the right


# --- whole runs -------------------------------------------------------------------------------------------


def train(folder, *overrides):
    """A small run with every feature of TransGAN; the tensors of its last checkpoint and its metrics."""
    settings = config.load(overrides=[*SMALL, *overrides], settings={"data.source": "shapes"})
    out = folder / "-".join(overrides[-1:]).replace("=", "-")
    run.start(settings, parent=folder, out=out, device=CPU, command=["gantx"], say=print)
    return out


def last(folder):
    return load_file(checkpoint.latest_in(folder / "checkpoints"))


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


def test_graphs_do_not_depend_on_the_length_of_a_run(tmp_path, quick_backend):
    """A graph for each loss, and for those of G's fakes one more when the attention window opens."""
    train(tmp_path, "training.compile=on")  # its window goes from 2 to 4 and then opens
    assert quick_backend() == 3 + 2
    log = (tmp_path / "training.compile-on" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["iteration"] == 25


def test_a_compiled_run_resumes_with_the_same_bits(tmp_path, quick_backend):
    short = ("training.attention_window=null", "objective.r1=null", "training.compile=on")
    straight = train(tmp_path, *short, "training.kimg=0.064")
    broken = train(tmp_path, *short, "training.kimg=0.032")
    run.resume(
        broken, changes={"training.kimg": 0.064}, overrides=[], device=CPU, command=["gantx"], say=print
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


def test_stages_stay_as_they_are_unless_compiling_is_on():
    settings = small("transgan", "transgan", "training.compile=off")
    plain = play(settings)
    assert compiled(plain, settings) is plain


def test_a_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    settings = small("transgan", "transgan", "training.compile=on")
    stage = compiled(play(settings), settings)[0]
    nowhere = torch._inductor.config.patch({"cpp.cxx": (None, "/nowhere/g++")})
    with nowhere, pytest.raises(MissingError, match=r"C\+\+ compiler.*--compile off"):
        gradient(stage, stage.passes[0].loss, settings)
