"""In bf16, every phase multiplies in bf16 and does everything else in float32, forward and backward."""

import pytest
import torch
from helpers.computed_types import ComputedTypes
from helpers.small_families import small
from helpers.training_settings import PRESETS

from gantx.models.interfaces import KeepsState
from gantx.runtime.random import draw
from gantx.training.phase import Statistics, run_phase
from gantx.training.phases import phases
from gantx.training.state import TrainingState

CPU = torch.device("cpu")
aten = torch.ops.aten
LOSSES = ["wgangp-eps", "wgangp", "hinge", "lsgan", "non-saturating", "relativistic"]
ALL_PENALTIES = (
    *("objective.gradient_penalty={}", "objective.r1={gamma: 1, every: 1}"),
    *("objective.r2={gamma: 1, every: 1}", "objective.consistency={}", "augment.policy=[color,translation]"),
)


class Types(ComputedTypes):
    """Beside what `ComputedTypes` watches: the types that each kind of operation works on."""

    def __init__(self):
        super().__init__()
        self.kinds = {}
        self.paused = False

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if self.paused:
            return operation(*args, **(kwargs or {}))
        result = super().__torch_dispatch__(operation, types, args, kwargs)
        kinds = self.kinds.setdefault(operation.overloadpacket, set())
        kinds.update(x.dtype for x in args if isinstance(x, torch.Tensor) and x.is_floating_point())
        return result


def paused(watch, update):
    """The update of what a network keeps beside its parameters, all of it float32, unwatched."""

    def unwatched():
        watch.paused = True
        update()
        watch.paused = False

    return unwatched


def run(settings, watch):
    """Every phase of an iteration once, watched; the state afterwards, and what was observed."""
    state, statistics = TrainingState(settings, CPU), Statistics()
    logits = []
    state.discriminator.network.register_forward_hook(lambda _, __, found: logits.append(found.dtype))
    images = []
    state.generator.network.register_forward_hook(lambda _, __, found: images.append(found.dtype))
    for network in (state.generator.network, state.discriminator.network):
        if isinstance(network, KeepsState):
            network.update_state = paused(watch, network.update_state)
    for phase in phases(settings, state.generator, state.discriminator, state.path_length):
        shape = (phase.batch, *state.generator.network.image_shape)
        labels = phase.empty_reals(phase.batch, shape[1:], CPU)
        reals = {**labels, **{stream: torch.rand(shape) * 2 - 1 for stream in phase.reals}}
        draws = draw(phase.spec, seed=0, stream=phase.name, step=0, device=CPU)
        with watch:
            run_phase(phase, reals, draws, statistics)
    assert set(logits) == {torch.float32}
    assert set(images) <= {torch.float32}
    assert {found.dtype for found in statistics.sums.values()} == {torch.float32}
    for optimized in (state.generator, state.discriminator):
        kept = (optimized.weights, optimized.gradient, *optimized.moments.values())
        assert {tensor.dtype for tensor in kept} == {torch.float32}
    return state


def check(settings):
    watch = Types()
    run(settings, watch)
    assert not watch.mixed
    rows_of_numbers = {aten.mm, aten.addmm, aten.mv, aten.dot}
    for name, kinds, shapes in watch.other_than(torch.bfloat16):
        # Logits, demodulation and spectral norms are float32, products of vectors or of two plain matrices;
        # which of a network's products they are is tested with the networks.
        assert kinds == {torch.float32}, (name, shapes)
        assert name in {str(packet) for packet in rows_of_numbers}, (name, shapes)
    wide = [aten._softmax, aten._softmax_backward_data, aten.native_layer_norm, aten.softplus]
    wide += [aten.native_layer_norm_backward, aten.linalg_vector_norm, aten.rsqrt, aten.sqrt]
    for packet in wide:
        assert watch.kinds.get(packet, set()) <= {torch.float32}, packet
    narrow = [kinds for name, kinds, _ in watch.products if kinds == {torch.bfloat16}]
    assert len(narrow) > 20


@pytest.mark.parametrize("preset", PRESETS)
def test_types_of_every_phase(preset):
    # The augmentation by frequency bands multiplies in float32 and is checked by itself.
    settings = [text.replace(",filter", "") for text in PRESETS[preset]]
    check(small(*settings, "training.precision=bf16"))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("family", ["transgan", "transgan2", "vitgan", "stylegan2", "ganformer"])
def test_types_of_every_loss_and_penalty(family, loss):
    check(small(family, family, f"objective.loss={loss}", *ALL_PENALTIES, "training.precision=bf16"))


@pytest.mark.parametrize("conditioning", ["{}", "{classes: 5, dropout: 0.5}"])
def test_types_of_the_implicit_generator_and_the_strided_discriminator(conditioning):
    watch = Types()
    more = (f"conditioning={conditioning}", "training.precision=bf16")
    run(small("implicit", "dcgan", "objective.loss=relativistic", *ALL_PENALTIES, *more), watch)
    assert not watch.mixed
    batched = [shapes for name, _, shapes in watch.other_than(torch.bfloat16) if name == str(aten.bmm)]
    assert batched  # coordinates x, y and 1 times their weights, by intent
    assert all(any(3 in shape for shape in shapes) for shapes in batched)
    assert len([kinds for _, kinds, _ in watch.products if kinds == {torch.bfloat16}]) > 20


@pytest.mark.parametrize("family", ["transgan", "vitgan", "ganformer"])
def test_types_of_conditional_networks(family):
    more = ("conditioning={classes: 5, dropout: 0.5}", "training.precision=bf16")
    check(small(family, family, "objective.loss=hinge", *ALL_PENALTIES, *more))


def test_frequency_bands_are_filtered_in_float32():
    policy = ("augment.policy=[filter]", "training.precision=bf16")
    settings = small("transgan", "transgan", *policy)
    run(settings, Types())  # makes the constants
    watch = Types()
    run(settings, watch)
    wide = [kinds for name, kinds, _ in watch.other_than(torch.bfloat16) if name == str(aten.bmm)]
    assert wide
    assert all(kinds == {torch.float32} for kinds in wide)


# Wide enough that rounding averages out, as it does in the networks of the presets.
WIDE = {
    "transgan": ("generator.base_dim=256", "discriminator.dim=64"),
    "transgan2": ("generator.dim=256", "discriminator.dim=64"),
    "vitgan": ("generator.dim=64", "discriminator.dim=64"),
    "dcgan": (None, "discriminator.channels=64"),
    "stylegan2": (
        "generator={family: stylegan2, channel_base: 1024, channel_max: 64, latent_dim: 64}",
        "discriminator={family: stylegan2, channel_base: 1024, channel_max: 64}",
    ),
    # Centroids that cells refine, as in duplex, make the whole network chaotic at random weights: moving its
    # float32 weights by 2^-9 turns its gradients as far. Duplex is tested layer by layer with the networks.
    "ganformer": (
        "generator={family: ganformer, channel_base: 1024, channel_max: 64, attention: simplex}",
        "discriminator={family: ganformer, channel_base: 1024, channel_max: 64}",
    ),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_point_where_those_of_float32_do(preset):
    of_generator, of_discriminator = PRESETS[preset][:2]
    wide = (WIDE[of_generator][0], WIDE[of_discriminator][1], "training.batch=8")
    found = {}
    for precision in ("fp32", "bf16"):
        settings = small(*PRESETS[preset], *wide, f"training.precision={precision}")
        state = TrainingState(settings, CPU)
        random = torch.Generator().manual_seed(3)
        for optimized in (state.generator, state.discriminator):  # away from the special weights of the start
            optimized.weights += 0.05 * torch.randn(optimized.weights.shape, generator=random)
        for phase in phases(settings, state.generator, state.discriminator, state.path_length):
            before = phase.trained.weights.clone()
            random = torch.Generator().manual_seed(1)
            shape = (phase.batch, *state.generator.network.image_shape)
            reals = {name: torch.rand(shape, generator=random) * 2 - 1 for name in phase.reals}
            draws = draw(phase.spec, seed=0, stream=phase.name, step=0, device=CPU)
            run_phase(phase, reals, draws, Statistics())
            found.setdefault(phase.name, []).append(phase.trained.gradient.clone())
            phase.trained.weights.copy_(before)
    for name, (exact, rounded) in found.items():
        assert torch.cosine_similarity(exact, rounded, dim=0) >= 0.99, name
