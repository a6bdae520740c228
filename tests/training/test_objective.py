"""Recipes: the released training loop parameter by parameter, and what each objective is made of."""

import dataclasses
import math

import pytest
import torch
from helpers.golden_file import GoldenFile

from gantx.config import presets
from gantx.errors import UsageError
from gantx.importing import transgan
from gantx.runtime.precision import set_compute_dtype
from gantx.runtime.random import draw, take
from gantx.training import schedules
from gantx.training.augment import augment
from gantx.training.compiled_losses import compiled
from gantx.training.phase import Statistics, run_phase
from gantx.training.phases import phases
from gantx.training.state import TrainingState

CPU = torch.device("cpu")
TINY = [
    "data.resolution=8",
    "generator.latent_dim=8",
    "generator.base_dim=64",
    "generator.base_size=2",
    "generator.depths=[1,2,2]",
    "discriminator.resolution=8",
    "discriminator.dim=32",
    "discriminator.depth=1",
    "training.batch=4",
    "training.generator_batch=8",
]


def run(phase, reals, draws, statistics=None):
    statistics = statistics or Statistics()
    statistics.count(run_phase(phase, reals, draws, statistics))


def move_average(state, beta):
    state.average.set_beta(beta)
    state.average.update()


def drawn(phase, step=0):
    return draw(phase.spec, seed=0, stream=phase.name, step=step, device=CPU)


@pytest.mark.parametrize("mode", ["off", pytest.param("on", marks=pytest.mark.slow)])
def test_released_v1_training_loop_parameter_by_parameter(mode, quick_backend):
    settings = presets.load(
        overrides=[
            *TINY,
            f"training.compile={mode}",
            "generator.super_resolution=false",
            "generator.locality=none",
            "objective.n_critic=2",
            "optimizer.generator.clip_norm=5",
            "optimizer.discriminator.clip_norm=5",
        ]
    )
    state = TrainingState(settings, CPU)
    with GoldenFile("transgan/trainloop_v1_official") as g:
        imported = transgan.transgan_v1_generator(g.prefix("G0."))
        state.generator.network.load_state_dict(imported.tensors)
        state.average.network.load_state_dict(imported.tensors)
        state.discriminator.network.load_state_dict(
            transgan.transgan_v1_discriminator(g.prefix("D0.")).tensors
        )
        d_stage, g_stage = compiled(phases(settings, state.generator, state.discriminator), settings)
        latents = iter(range(8))
        d_losses, g_losses = [], []
        for iteration in range(5):
            draws = drawn(d_stage)
            draws["latent"]["z"] = g[f"z.{next(latents)}"]
            draws["gradient_penalty"]["alpha"] = g[f"alpha.{iteration}"].view(4)
            statistics = Statistics()
            run(d_stage, {"real": g[f"real.{iteration}"]}, draws, statistics)
            d_losses.append(statistics.means()["discriminator/loss"])
            if iteration % g_stage.interval:
                continue
            draws = drawn(g_stage)
            draws["latent"]["z"] = g[f"z.{next(latents)}"]
            statistics = Statistics()
            run(g_stage, {}, draws, statistics)
            g_losses.append(statistics.means()["generator/loss"])
            move_average(state, schedules.ema_beta(settings.ema, 0, 4))
        torch.testing.assert_close(torch.tensor(d_losses), g["log.d_loss"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.tensor(g_losses), g["log.g_loss"], rtol=1e-4, atol=1e-5)
        ends = {
            "generator": (state.generator.network, transgan.transgan_v1_generator(g.prefix("G1."))),
            "average": (state.average.network, transgan.transgan_v1_generator(g.prefix("EMA1."))),
            "discriminator": (
                state.discriminator.network,
                transgan.transgan_v1_discriminator(g.prefix("D1.")),
            ),
        }
        for name, (network, expected) in ends.items():
            gaps = torch.cat(
                [
                    (value - expected.tensors[key]).abs().flatten()
                    for key, value in network.state_dict().items()
                ]
            )
            moved = torch.cat(
                [
                    (value - start).abs().flatten()
                    for value, start in zip(
                        expected.tensors.values(),
                        (
                            transgan.transgan_v1_discriminator(g.prefix("D0."))
                            if name == "discriminator"
                            else transgan.transgan_v1_generator(g.prefix("G0."))
                        ).tensors.values(),
                        strict=True,
                    )
                ]
            )
            assert moved.max() > 1e-4 * (0.001 if name == "average" else 1)
            assert (gaps <= 2e-6).float().mean() >= 0.999, name
            assert gaps.max() <= 5e-5, name
    assert quick_backend() == (2 if mode == "on" else 0)


def silenced(draws):
    """The draws with all noise zero, as in the files."""
    return {
        name: {key: torch.zeros_like(value) for key, value in values.items()}
        if name == "noise"
        else silenced(values)
        if isinstance(values, dict)
        else values
        for name, values in draws.items()
    }


def recorded(phase, losses):
    """The phase, writing down the loss of every micro-batch."""
    (only,) = phase.passes

    def differentiate(*given):
        outcome, gradients = only.differentiate(*given)
        losses.append(outcome.loss.item())
        return outcome, gradients

    return dataclasses.replace(phase, passes=(only._replace(differentiate=differentiate),))


class Leak:
    """The oversight of the released code: gradients that a G step leaves in D enter D's next backward pass.

    Attributes:
        pending: those gradients, until they have entered.
    """

    def __init__(self):
        self.pending = None

    def spill(self, g_stage, draws):
        """Keep the gradients by D's parameters of a G step that is about to be made."""
        discriminator = g_stage.frozen[0]
        discriminator.train_parameters(True)
        (only,) = g_stage.passes
        for start in range(0, g_stage.batch, only.micro_batch_size):
            part = take(draws, g_stage.spec, slice(start, start + only.micro_batch_size))
            loss = only.loss({}, part).loss * (only.micro_batch_size / g_stage.batch)
            found = torch.autograd.grad(loss, discriminator.parameters, materialize_grads=True)
            before = self.pending or [torch.zeros_like(each) for each in found]
            self.pending = [one + other for one, other in zip(before, found, strict=True)]

    def into(self, d_stage, between):
        """D's step with what is pending, and `between` its first micro-batch and the rest."""
        (only,) = d_stage.passes
        calls = []

        def differentiate(*given):
            outcome, gradients = only.differentiate(*given)
            if self.pending is not None:
                gradients = [
                    leak if own is None else own + leak
                    for own, leak in zip(gradients, self.pending, strict=True)
                ]
                self.pending = None
            calls.append(1)
            if len(calls) == 1:
                between()
                d_stage.trained.train_parameters(True)  # the G step has frozen D
                d_stage.frozen[0].train_parameters(False)
            return outcome, gradients

        return dataclasses.replace(d_stage, passes=(only._replace(differentiate=differentiate),))


HALF_LIFE = "ema={kind: half-life, half_life_kimg: 500, ramp: 0.1}"


@pytest.mark.parametrize(
    ("name", "accumulated", "changes"),
    [
        ("leakfixed", 1, [HALF_LIFE]),
        pytest.param("leakfixed", 1, [HALF_LIFE, "training.compile=on"], marks=pytest.mark.slow),
        ("official", 1, [HALF_LIFE]),
        ("official_accum", 2, ["ema={kind: constant, beta: 0.995}"]),
    ],
)
def test_released_v2_training_loop_parameter_by_parameter(name, accumulated, changes, quick_backend):
    settings = presets.load(
        "transgan2-cifar10",
        overrides=[
            *("data.resolution=8", "generator.latent_dim=8", "generator.dim=64", "generator.base_size=2"),
            *("generator.depths=[1,1,1]", "discriminator.resolution=8", "discriminator.dim=32"),
            *("discriminator.depths=[1,1]", "objective.n_critic=2", "augment.policy=[]"),
            *(f"training.batch={4 * accumulated}", f"training.generator_batch={8 * accumulated}"),
            "training.micro_batch=4",
            *changes,
        ],
    )
    leak = None if name == "leakfixed" else Leak()
    state = TrainingState(settings, CPU)
    read = {"G": transgan.transgan_v2_generator, "D": transgan.transgan_v2_discriminator}
    with GoldenFile(f"transgan/trainloop_v2_{name}") as g:
        generator, discriminator = read["G"](g.prefix("G0.")), read["D"](g.prefix("D0."))
        state.generator.network.load_state_dict(generator.tensors)
        state.average.network.load_state_dict(generator.tensors)
        state.discriminator.network.load_state_dict(discriminator.tensors)
        d_losses, g_losses = [], []
        d_stage, g_stage = compiled(phases(settings, state.generator, state.discriminator), settings)
        (only,) = g_stage.passes  # the released micro-batch of G is twice that of D
        g_stage = dataclasses.replace(g_stage, passes=(only._replace(micro_batch_size=8),))
        d_stage, g_stage = recorded(d_stage, d_losses), recorded(g_stage, g_losses)
        order = iter(range(100))  # in which latents were drawn
        reals = iter(range(100))
        for iteration in range(5 if accumulated == 1 else 4):
            due = iteration % g_stage.interval == 0
            inside = due and accumulated > 1  # before the second micro-batch of D
            first = [next(order)]
            inner = [next(order) for _ in range(accumulated)] if inside else []
            first += [next(order) for _ in range(accumulated - 1)]
            inner = inner or ([next(order) for _ in range(accumulated)] if due else [])

            def move_generator(inner=inner, iteration=iteration):
                draws = silenced(drawn(g_stage))
                draws["latent"]["z"] = torch.cat([g[f"z.{index}"] for index in inner])
                if leak is not None:
                    leak.spill(g_stage, draws)
                run(g_stage, {}, draws)
                move_average(state, schedules.ema_beta(settings.ema, iteration * settings.training.batch, 4))

            images = [next(reals) for _ in range(accumulated)]
            draws = silenced(drawn(d_stage))
            draws["latent"]["z"] = torch.cat([g[f"z.{index}"] for index in first])
            alphas = [g[f"alpha.{index}"].view(4) for index in images]
            draws["gradient_penalty"]["alpha"] = torch.cat(alphas)
            real = torch.cat([g[f"real.{index}"] for index in images])
            made = d_stage
            if leak is not None:
                made = leak.into(d_stage, between=move_generator if inside else lambda: None)
            run(made, {"real": real}, draws)
            if due and not inside:
                move_generator()
        # The files hold the last micro-batch's loss, divided by their number.
        for found, expected in ((d_losses, g["log.d_loss"]), (g_losses, g["log.g_loss"])):
            last = torch.tensor(found[accumulated - 1 :: accumulated]) / accumulated
            torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)
        ends = {
            "generator": (state.generator.network, generator, read["G"](g.prefix("G1."))),
            "average": (state.average.network, generator, read["G"](g.prefix("EMA1."))),
            "discriminator": (state.discriminator.network, discriminator, read["D"](g.prefix("D1."))),
        }
        for who, (network, start, end) in ends.items():
            found = network.state_dict()
            gaps = torch.cat([(found[key] - value).abs().flatten() for key, value in end.tensors.items()])
            moved = max((start.tensors[key] - value).abs().max() for key, value in end.tensors.items())
            assert moved > 1e-7, who
            assert (gaps <= 2e-6).float().mean() >= 0.999, who
            assert gaps.max() <= 5e-5, who
    assert quick_backend() == (2 if "training.compile=on" in changes else 0)


@pytest.mark.parametrize("penalty_micro_batch", [None, 1])
def test_micro_batches_add_up_to_the_whole_gradient(penalty_micro_batch):
    settings = presets.load(
        overrides=[*TINY, "augment.policy=[translation,cutout,color]", "objective.loss=hinge"]
    )
    sizes = {"micro_batch": 2, "penalty_micro_batch": penalty_micro_batch}
    parted = settings.model_copy(update={"training": settings.training.model_copy(update=sizes)})
    state = TrainingState(settings, CPU)
    reals = {
        "real": torch.rand(4, 3, 8, 8) * 2 - 1,
        "super_resolution": torch.rand(8, 3, 8, 8) * 2 - 1,
    }
    pairs = [phases(each, state.generator, state.discriminator) for each in (settings, parted)]
    for whole, in_parts in zip(*pairs, strict=True):
        gradients, losses = [], []
        for phase in (whole, in_parts):
            wanted = {name: reals[name] for name in phase.reals}
            held = [p.detach().clone() for p in phase.trained.parameters]
            statistics = Statistics()
            run(phase, wanted, drawn(phase), statistics)
            losses.append(statistics.means()[f"{phase.name}/loss"])
            gradients.append(phase.trained.gradient.clone())
            with torch.no_grad():
                for parameter, old in zip(phase.trained.parameters, held, strict=True):
                    parameter.copy_(old)
        torch.testing.assert_close(
            gradients[0], gradients[1], rtol=1e-4, atol=1e-5 * float(gradients[0].abs().max())
        )
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        assert gradients[0].abs().max() > 0


def test_only_the_moving_player_moves():
    settings = presets.load(overrides=TINY)
    state = TrainingState(settings, CPU)
    d_stage, g_stage = phases(settings, state.generator, state.discriminator)
    reals = {"real": torch.rand(4, 3, 8, 8), "super_resolution": torch.rand(8, 3, 8, 8)}
    for phase, still in ((d_stage, state.generator), (g_stage, state.discriminator)):
        before = [p.clone() for p in still.parameters]
        mine = [p.clone() for p in phase.trained.parameters]
        still.gradient.fill_(7.0)
        run(phase, {name: reals[name] for name in phase.reals}, drawn(phase))
        assert all(torch.equal(a, b) for a, b in zip(before, still.parameters, strict=True))
        assert (still.gradient == 7.0).all(), "no gradient leaks into the player that stands still"
        assert any(not torch.equal(a, b) for a, b in zip(mine, phase.trained.parameters, strict=True))


def test_the_three_tricks_are_in_the_stages_exactly_when_switched_on():
    base = presets.load("transgan-s", overrides=["training.kimg=1"])
    plain = presets.load(
        "transgan-s",
        overrides=["augment.policy=[]", "generator.super_resolution=false", "generator.locality=none"],
    )
    for settings, on in ((base, True), (plain, False)):
        small = settings.model_copy(
            update={
                "generator": settings.generator.model_copy(update={"base_dim": 64, "depths": (1, 1, 1)}),
                "discriminator": settings.discriminator.model_copy(update={"dim": 32, "depth": 1}),
            }
        )
        state = TrainingState(small, CPU)
        d_stage, g_stage = phases(small, state.generator, state.discriminator)
        assert ("super_resolution" in g_stage.reals) is on
        assert bool(d_stage.spec["on_real"]["augment"]) is on
        assert (small.training.attention_window is not None) is on
        assert g_stage.interval == 5


@pytest.mark.parametrize("loss", ["wgangp-eps", "wgangp", "hinge", "lsgan", "non-saturating", "relativistic"])
def test_every_loss_and_penalty_trains(loss):
    settings = presets.load(
        overrides=[
            *TINY,
            "training.generator_batch=4",
            f"objective.loss={loss}",
            "objective.r1={gamma: 1, every: 2}",
            "objective.r2={gamma: 1, every: 4}",
            "objective.n_critic=1",
        ]
    )
    state = TrainingState(settings, CPU)
    made = phases(settings, state.generator, state.discriminator)
    assert [(phase.name, phase.interval) for phase in made] == [
        ("discriminator", 1),
        ("r1_every_2", 2),
        ("r2_every_4", 4),
        ("generator", 1),
    ]
    statistics = Statistics()
    for phase in made:
        run(phase, {name: torch.rand(4, 3, 8, 8) for name in phase.reals}, drawn(phase), statistics)
    means = statistics.means()
    assert all(math.isfinite(mean) for mean in means.values())
    assert means["r1_every_2/loss"] == pytest.approx(2 * means["r1_every_2/r1"], rel=1e-5)
    assert means["discriminator/gradient_norm"] > 0


def test_lazy_penalties_of_one_interval_share_a_stage_scaled_by_it():
    settings = presets.load(
        overrides=[
            *TINY,
            "objective.loss=hinge",
            "objective.gradient_penalty=null",
            "objective.r1={gamma: 0.5, every: 8}",
            "objective.r2={gamma: 0.25, every: 8}",
        ]
    )
    state = TrainingState(settings, CPU)
    penalty = phases(settings, state.generator, state.discriminator)[1]
    assert penalty.interval == 8
    outcome = penalty.passes[0].loss({"real": torch.rand(4, 3, 8, 8)}, drawn(penalty))
    expected = 8 * (0.5 * outcome.observed["r1"] + 0.25 * outcome.observed["r2"])
    torch.testing.assert_close(outcome.loss, expected)


FAMILIES = {
    "transgan": "{family: transgan, resolution: 8, patch_size: 2, dim: 32, depth: 2}",
    "transgan2": "{family: transgan2, resolution: 8, dim: 32, depths: [2, 2]}",
    "vitgan": "{family: vitgan, resolution: 8, dim: 24, depth: 3, heads: 2}",
    "stylegan2": "{family: stylegan2, resolution: 8, channel_base: 64, channel_max: 16}",
}
PAINTERS = {
    "transgan": "{family: transgan, latent_dim: 8, base_dim: 64, base_size: 2, depths: [2, 2, 2]}",
    "transgan2": "{family: transgan2, latent_dim: 8, dim: 64, base_size: 2, depths: [2, 2, 2]}",
    "vitgan": "{family: vitgan, resolution: 8, dim: 24, depth: 3, heads: 2, decoder_dim: 16}",
    "stylegan2": "{family: stylegan2, resolution: 8, latent_dim: 16, mapping_layers: 2, channel_base: 64}",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputing_activations_changes_memory_and_no_gradient(family, monkeypatch):
    """Gradients are equal to the bit, and blocks run again on the way back, though not those of a penalty."""
    settings = presets.load(
        overrides=[
            "data.resolution=8",
            f"generator={PAINTERS[family]}",
            f"discriminator={FAMILIES[family]}",
            "training.batch=4",
            "objective.n_critic=1",
        ]
    )
    thrifty = settings.model_copy(
        update={"training": settings.training.model_copy(update={"recompute": True})}
    )
    state = TrainingState(settings, CPU)
    passes = []
    for network in (state.generator.network, state.discriminator.network):
        for name, block in network.named_modules():
            if name.rpartition(".")[2].isdecimal() and "blocks" in name.split(".")[-2]:
                block.register_forward_pre_hook(lambda *_: passes.append(1))
    pairs = zip(
        phases(settings, state.generator, state.discriminator),
        phases(thrifty, state.generator, state.discriminator),
        strict=True,
    )
    for pair in pairs:
        found = []
        for phase in pair:
            passes.clear()
            reals = {name: torch.linspace(-1, 1, 4 * 192).view(4, 3, 8, 8) for name in phase.reals}
            outcome = phase.passes[0].loss(reals, drawn(phase))
            forward = len(passes)
            gradients = torch.autograd.grad(outcome.loss, phase.trained.parameters, materialize_grads=True)
            found.append((gradients, forward, len(passes) - forward))
        (plain, once, none), (again, as_often, repeated) = found
        assert all(map(torch.equal, plain, again))
        assert once == as_often
        assert none == 0
        assert repeated > 0


def test_consistency_compares_two_views_of_every_image():
    def loss_of(*overrides):
        settings = presets.load(
            overrides=[
                *(*TINY, "training.generator_batch=4", "augment.policy=[translation,color]"),
                *("objective.loss=non-saturating", "objective.gradient_penalty=null", *overrides),
            ]
        )
        state = TrainingState(settings, CPU)
        phase = phases(settings, state.generator, state.discriminator)[0]
        draws = drawn(phase)
        real = torch.linspace(-1, 1, 4 * 192).view(4, 3, 8, 8)
        return state, phase, draws, phase.passes[0].loss({"real": real}, draws), real

    *_, plain, _ = loss_of()
    for compare in ("augmented", "clean"):
        state, phase, draws, outcome, real = loss_of(
            f"objective.consistency={{real: 2, fake: 3, compare: {compare}}}"
        )
        assert ("augment" in phase.spec["on_real_again"]) == (compare == "augmented")
        critic, policy = state.discriminator.network, ("translation", "color")
        with torch.no_grad():
            fake = state.generator.network(draws["latent"]["z"])
            gaps = []
            for images, view in ((real, "on_real"), (fake, "on_fake")):
                one = critic(augment(images, draws[view]["augment"], policy))
                again = draws[f"{view}_again"]
                other = critic(augment(images, again["augment"], policy) if "augment" in again else images)
                gaps.append((one - other).square().mean())
        torch.testing.assert_close(outcome.observed["inconsistency_real"], gaps[0], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(outcome.observed["inconsistency_fake"], gaps[1], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(outcome.loss, plain.loss + 2 * gaps[0] + 3 * gaps[1], rtol=1e-4, atol=1e-6)


def styled(*overrides):
    settings = presets.load(
        overrides=[
            *("data.resolution=8", f"generator={PAINTERS['stylegan2']}"),
            *(f"discriminator={FAMILIES['stylegan2']}", "training.batch=4", "objective.n_critic=1"),
            *("objective.loss=non-saturating", "objective.gradient_penalty=null", *overrides),
        ]
    )
    return settings, TrainingState(settings, CPU)


def test_path_length_is_a_lazy_step_of_the_generator_that_keeps_a_running_mean():
    settings, state = styled("objective.path_length={weight: 2, every: 4, decay: 0.5}")
    phase = phases(settings, state.generator, state.discriminator, state.path_length)[2]
    assert (phase.name, phase.interval, phase.batch) == ("path_length_every_4", 4, 2)
    before = [p.detach().clone() for p in state.generator.parameters]
    statistics = Statistics()
    run(phase, {}, drawn(phase), statistics)
    means = statistics.means()
    assert means["path_length_every_4/path_length"] > 0
    assert state.path_length.item() == pytest.approx(means["path_length_every_4/path_length"] / 2, rel=1e-5)
    penalty = means["path_length_every_4/path_length_penalty"]
    assert means["path_length_every_4/loss"] == pytest.approx(8 * penalty, rel=1e-5)
    assert any(not torch.equal(a, b) for a, b in zip(before, state.generator.parameters, strict=True))
    assert "state.path_length" in state.tensors()


def test_the_average_of_styles_moves_once_per_generator_step_or_after_every_pass():
    for every_pass, moving in ((False, {"generator"}), (True, {"generator", "discriminator"})):
        kind = "every_pass" if every_pass else "generator_step"
        settings, state = styled(f"objective.w_average={kind}", "training.micro_batch=2")
        network = state.generator.network
        for phase in phases(settings, state.generator, state.discriminator):
            network.w_avg.zero_()
            draws = drawn(phase)
            with torch.no_grad():
                means = [network.mapping(z)[:, 0].mean(0) for z in draws["latent"]["z"].split(2)]
            run(phase, {"real": torch.rand(4, 3, 8, 8)}, draws)
            expected = torch.zeros(16)
            if phase.name in moving:
                for mean in means if every_pass else [torch.stack(means).mean(0)]:
                    expected.lerp_(mean, 0.005)
            torch.testing.assert_close(network.w_avg, expected)


def test_mixed_styles_generate_other_images_and_leave_the_average_alone():
    settings, state = styled("objective.style_mixing=0.9")
    phase = phases(settings, state.generator, state.discriminator)[1]
    draws = drawn(phase)
    images, averages = [], []
    gan = phase.passes[0].loss
    for coin in (0.0, 0.95):  # mixed from the second layer on; not mixed
        draws["latent"]["mixing"]["layer"] = torch.tensor(coin)
        outcome = gan({}, draws)
        images.append(outcome.observed["on_fake"])
        averages.append(outcome.state_updates["styles"])
    assert torch.equal(*averages)
    assert not torch.equal(*images)


def test_styles_are_wanted_where_they_are_used():
    for key in ("path_length={}", "style_mixing=0.9", "component_mixing=0.1"):
        with pytest.raises(
            UsageError, match=r"objective\.\w+: generators of the family transgan have no styles"
        ):
            presets.load(overrides=[f"objective.{key}"])
    with pytest.raises(UsageError, match=r"augment\.policy must not be empty"):
        presets.load(overrides=["objective.consistency={}"])


def test_generator_first():
    settings, state = styled("objective.first=generator", "objective.r1={gamma: 1, every: 16}")
    names = [phase.name for phase in phases(settings, state.generator, state.discriminator)]
    assert names == ["generator", "discriminator", "r1_every_16"]


def test_path_length_in_bf16_is_that_of_full_precision():
    settings, state = styled("objective.path_length={}")
    phase = phases(settings, state.generator, state.discriminator)[2]
    draws = drawn(phase)
    plain = phase.passes[0].loss({}, draws)
    set_compute_dtype(state.generator.network, torch.bfloat16)
    rounded = phase.passes[0].loss({}, draws)
    assert rounded.state_updates["path_length"].dtype == torch.float32
    ratio = rounded.observed["path_length"] / plain.observed["path_length"]
    assert ratio.item() == pytest.approx(1, rel=0.05)
