"""The training step of GANformer against its official code, loss by loss and parameter by parameter."""

import re

import pytest
import torch
from helpers.golden_file import GoldenFile
from helpers.golden_ganformer import ganformer_generator, stylegan2_discriminator

from gantx.config import presets
from gantx.runtime.random import draw
from gantx.training import schedules
from gantx.training.compiled_losses import compiled
from gantx.training.phase import Statistics, run_phase
from gantx.training.phases import phases
from gantx.training.regularizers import path_length_penalty, path_lengths
from gantx.training.state import TrainingState

CPU = torch.device("cpu")


def gan(golden, *overrides):
    """State and settings of a golden file: joint norms and no dropout, as in the PyTorch code."""
    facts = golden.config
    settings = presets.load(
        overrides=[
            f"data.resolution={facts['res']}",
            f"generator={{family: ganformer, resolution: {facts['res']}, components: {facts['k_total'] - 1}, "
            f"latent_dim: {facts['w_dim']}, channel_base: {facts['channel_base']}, "
            f"channel_max: {facts['channel_max']}, attention: simplex, attention_to: {facts['res']}, "
            "attention_dropout: 0}",
            f"discriminator={{family: stylegan2, resolution: {facts['res']}, "
            f"channel_base: {facts['channel_base']}, channel_max: {facts['channel_max']}, group_size: 4}}",
            "objective={loss: non-saturating, gradient_penalty: null, n_critic: 1, first: generator, "
            f"w_average: every_pass, r1: {{gamma: {facts['gamma']}, every: {facts.get('d_reg', 16)}}}}}",
            *overrides,
        ]
    )
    return settings, TrainingState(settings, CPU)


def silent_draws(phase, z):
    """Draws of a phase with these latents and without noise."""
    draws = draw(phase.spec, seed=0, stream=phase.name, step=0, device=CPU)
    if "latent" in draws:
        draws["latent"]["z"] = z
        draws["latent"]["noise"] = {
            key: torch.zeros_like(value) for key, value in draws["latent"]["noise"].items()
        }
    return draws


def run(phase, real, z, statistics=None):
    reals = {"real": real} if phase.reals else {}
    statistics = statistics or Statistics()
    statistics.count(run_phase(phase, reals, silent_draws(phase, z), statistics))


def generator_of(state, resolution=16):
    return ganformer_generator(state, resolution, "resnet", kmeans=False)


def without_key_biases(state):
    """Biases of keys have no gradient but rounding, which Adam makes steps of; ours are dropped."""
    return {key: value for key, value in state.items() if not re.search(r"(to_keys|to_pos_map)\.bias$", key)}


def gradients(player):
    return {name: p.grad.clone() for name, p in player.network.named_parameters()}


def test_losses_gradients_and_the_average_of_styles_agree_with_the_official_code():
    with GoldenFile("gansformer/losses_simplex_16") as g:
        # A rate of zero: all phases start from the same parameters, as in the file.
        still = ["optimizer.generator.lr=1e-30", "optimizer.discriminator.lr=1e-30", "training.batch=4"]
        settings, state = gan(g, *still)
        state.generator.network.load_state_dict(generator_of(g.prefix("paramG/")), strict=False)
        discriminator = stylegan2_discriminator(g.prefix("paramD/"), 16)
        state.discriminator.network.load_state_dict(discriminator)
        g_stage, d_stage, r1_stage = phases(settings, state.generator, state.discriminator)
        assert [phase.name for phase in (g_stage, d_stage, r1_stage)] == [
            *("generator", "discriminator", "r1_every_16"),
        ]
        statistics = Statistics()
        found = {}
        for name, phase in (("G_main", g_stage), ("D_main", d_stage), ("D_reg", r1_stage)):
            run(phase, g["in/real"], g["in/z"], statistics)
            found[name] = gradients(phase.trained)
        expected = {
            "G_main": generator_of(without_key_biases(g.prefix("grad_G_main/"))),
            "D_main": stylegan2_discriminator(g.prefix("grad_D_main/"), 16),
            "D_reg": stylegan2_discriminator(g.prefix("grad_D_reg/"), 16),
        }
        g.prefix("grad_G_main/")  # the biases of keys too have been looked at
        for name, wanted in expected.items():
            scale = max(float(value.abs().max()) for value in wanted.values())
            for key, value in wanted.items():
                limit = 1e-3 * float(value.abs().max()) + 1e-6 * scale
                torch.testing.assert_close(found[name][key], value, rtol=0, atol=limit, msg=f"{name} {key}")
        means = statistics.means()
        real, fake = g["out/real_logits"], g["out/fake_logits"]
        assert means["discriminator/on_real"] == pytest.approx(real.mean().item(), rel=1e-4, abs=1e-4)
        assert means["discriminator/on_fake"] == pytest.approx(fake.mean().item(), rel=1e-4, abs=1e-4)
        assert means["generator/loss"] == pytest.approx(g["out/loss_G"].mean().item(), rel=1e-4)
        assert means["discriminator/loss"] == pytest.approx(g["out/loss_D"].mean().item(), rel=1e-4)
        torch.testing.assert_close(state.generator.network.w_avg, g["out/w_avg_after"], rtol=1e-4, atol=1e-5)

        network = state.generator.network
        noise = {name: torch.zeros(d.shape) for name, d in network.noise_spec(4).items()}
        images = network.synthesis(network.mapping(g["in/z"]), noise)
        torch.testing.assert_close(images, g["out/fake_img"], rtol=0, atol=1e-4 * float(images.abs().max()))

        ws = g["pl/ws"]
        # The file holds directions that are divided by the root of the number of pixels.
        direction = g["pl/noise"] * 16
        lengths = path_lengths(lambda s: network.synthesis(s, noise), ws, direction)
        torch.testing.assert_close(lengths, g["pl/lengths_standard"], rtol=1e-3, atol=1e-3)
        slopes = g["pl/grad_ws"].square()
        torch.testing.assert_close(lengths, slopes.sum(3).mean((1, 2)).sqrt(), rtol=1e-3, atol=1e-3)
        penalty, mean = path_length_penalty(lengths, g["pl/mean_before"], 0.01)
        torch.testing.assert_close(mean, g["pl/mean_after"].view(()), rtol=1e-4, atol=1e-5)
        weighted = g["pl/penalty_standard"].mean()  # with StyleGAN2's weight of 2
        torch.testing.assert_close(2 * penalty, weighted, rtol=1e-3, atol=1e-3)
        assert g["pl/lengths_pytorch_code"].shape == (4, 16), "the released code has no length of an image"


@pytest.mark.parametrize("mode", ["off", pytest.param("on", marks=pytest.mark.slow)])
def test_four_iterations_agree_with_the_official_code(mode, quick_backend):
    with GoldenFile("gansformer/train4_simplex_16") as g:
        facts = g.config
        settings, state = gan(
            g,
            *("training.batch=8", "training.micro_batch=4", f"training.compile={mode}"),
            f"ema={{kind: half-life, half_life_kimg: {facts['ema_kimg']}}}",
            # Gradients are sums over micro-batches there and means here; Adam sees that in eps alone.
            *(
                f"optimizer.{who}={{lr: {facts['lr']}, betas: [0, 0.99], eps: 5e-9, lazy_every: {every}}}"
                for who, every in (("generator", facts["g_reg"]), ("discriminator", facts["d_reg"]))
            ),
        )
        first = generator_of(g.prefix("init/G."))
        state.generator.network.load_state_dict(first, strict=False)
        state.average.network.load_state_dict(generator_of(g.prefix("init/Gs.")) or first, strict=False)
        state.discriminator.network.load_state_dict(stylegan2_discriminator(g.prefix("init/D."), 16))
        made = compiled(phases(settings, state.generator, state.discriminator), settings)
        order = []
        latents = {"generator": 0, "discriminator": 2}  # of G_main, G_reg, D_main, D_reg
        for iteration in range(facts["iters"]):
            due = [phase for phase in made if iteration % phase.interval == 0]
            for phase in due:
                place = latents.get(phase.name, 3)
                order.append(f"{iteration}:{['G_main', 'G_reg', 'D_main', 'D_reg'][place]}")
                run(phase, g["in/real"][iteration], g["in/z"][iteration, place])
            state.average.set_beta(schedules.ema_beta(settings.ema, 8 * iteration, 8))
            state.average.update()
            if iteration == 0:
                compare(state, g, "after_iter0/")
        assert order == [phase for phase in facts["stage_order"] if "G_reg" not in phase]
        compare(state, g, "final/")
    assert quick_backend() == (3 if mode == "on" else 0)


def compare(state, golden, prefix):
    """Every parameter the file holds, and the average of styles."""
    networks = {
        "G": (state.generator.network, generator_of),
        "Gs": (state.average.network, generator_of),
        "D": (state.discriminator.network, lambda tensors: stylegan2_discriminator(tensors, 16)),
    }
    for name, (network, read) in networks.items():
        tensors = without_key_biases(golden.prefix(f"{prefix}{name}."))
        expected = read(tensors)
        found = network.state_dict()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
