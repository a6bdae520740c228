"""Sampling: a seed means an image, whatever else is asked for."""

import copy
import threading

import numpy as np
import pytest
import torch
from helpers.styled_networks import SECTIONS, styled

from gantx import models
from gantx.config import presets
from gantx.errors import DataError, MissingError, UsageError
from gantx.generation import sampling
from gantx.generation.latents import latents_for, parse_seeds
from gantx.generation.sampling import fetch
from gantx.generation.truncation import Truncation, parse_truncation, truncate
from gantx.runtime import devices
from gantx.runtime.random import Draw, for_seeds

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    settings = presets.load("transgan-tiny")
    return models.build(settings.generator).eval()


def sample(generator, seeds, batch):
    return torch.cat(list(sampling.sample(generator, seeds, batch=batch, device=CPU)))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 3, 16, 64])
def test_the_image_of_a_seed_depends_on_nothing_else(generator, batch, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_independence(generator, batch)
    finally:
        torch.set_num_threads(before)


def check_independence(generator, batch):
    together = sample(generator, range(20), 20)
    assert together.shape == (20, 3, 32, 32)
    assert together.dtype == torch.uint8
    assert torch.equal(sample(generator, range(20), batch), together)
    assert torch.equal(sample(generator, [17, 3], batch), together[[17, 3]])


def test_different_seeds_give_different_images(generator):
    images = sample(generator, range(8), 8)
    assert len({image.numpy().tobytes() for image in images}) == 8


def test_pixels_are_clamped_and_rounded():
    values = torch.tensor([-9.0, -1.0, 0.0, 1 / 255, 1.0, 9.0])
    assert sampling.quantise(values).tolist() == [0, 0, 128, 128, 255, 255]


@pytest.mark.parametrize(
    ("text", "seeds"), [("7", [7]), ("1,5,9", [1, 5, 9]), ("0-3", [0, 1, 2, 3]), ("4, 6-7", [4, 6, 7])]
)
def test_seed_lists(text, seeds):
    assert list(parse_seeds(text)) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "5-2", "1;2"])
def test_wrong_seed_lists_are_explained(text):
    with pytest.raises(UsageError, match="seeds"):
        parse_seeds(text)


def test_no_truncation_or_a_number():
    assert parse_truncation(None) is None
    assert parse_truncation(0.7) == Truncation(0.7, None)
    with pytest.raises(UsageError, match="give the truncation too"):
        parse_truncation(None, 3)
    with pytest.raises(UsageError, match="give a number"):
        parse_truncation(float("nan"))


def generate(generator, seeds, batch=20, truncation=None):
    images = sampling.generate(generator, seeds, batch=batch, device=CPU, truncation=truncation)
    return torch.cat(list(images))


@pytest.mark.parametrize("truncation", [None, Truncation(0.7), Truncation(0.5, 2)])
@pytest.mark.parametrize("family", SECTIONS)
def test_with_styles_too_a_seed_means_an_image_to_the_last_bit(family, truncation):
    generator = styled(family)
    together = generate(generator, range(20), truncation=truncation)
    assert len({image.numpy().tobytes() for image in together}) == 20
    for batch, seeds in ((1, range(20)), (64, [17, 3]), (3, [19])):
        assert torch.equal(generate(generator, seeds, batch, truncation), together[list(seeds)])


@pytest.mark.parametrize("family", SECTIONS)
def test_truncation_draws_styles_to_their_average(family):
    generator = styled(family)
    ws = generator.mapping(torch.randn(5, *generator.latent_shape))
    average = generator.w_avg.expand_as(ws)
    assert torch.equal(truncate(generator, ws, 1.0), ws)
    assert torch.equal(truncate(generator, ws, 0.0), average)
    for psi in (-0.5, 0.3, 0.7, 1.5):
        expected = average + psi * (ws - average)
        torch.testing.assert_close(truncate(generator, ws, psi), expected)
    part = truncate(generator, ws, 0.3, cutoff=1)
    torch.testing.assert_close(part[..., :1, :], (average + 0.3 * (ws - average))[..., :1, :])
    assert torch.equal(part[..., 1:, :], ws[..., 1:, :])
    each = truncate(generator, ws, torch.tensor([0.0, 1.0, 0.3, 0.3, 1.0]))
    assert torch.equal(each[[0, 1, 4]], torch.stack([average[0], ws[1], ws[4]]))
    torch.testing.assert_close(each[2:4], (average + 0.3 * (ws - average))[2:4])


def test_truncation_of_nothing_changes_no_bit_and_of_everything_leaves_one_image():
    generator = styled("ganformer")
    assert torch.equal(
        generate(generator, range(3), truncation=Truncation(1.0)), generate(generator, range(3))
    )
    still = truncate(generator, generator.mapping(torch.randn(2, *generator.latent_shape)), 0.0)
    images = generator.synthesis(still)
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-4)


def test_truncation_wants_styles_and_layers_that_are_there(generator):
    with pytest.raises(UsageError, match="needs a network with styles"):
        generate(generator, [0], truncation=Truncation(0.7))
    with pytest.raises(UsageError, match="give 1 to 6, what this network has"):
        generate(styled("stylegan2"), [0], truncation=Truncation(0.7, 7))


@pytest.mark.parametrize("family", SECTIONS)
def test_styles_give_the_images_of_the_latents_they_come_from(family, tmp_path):
    generator = styled(family)
    z = torch.randn(3, *generator.latent_shape)
    np.save(tmp_path / "z.npy", z.numpy())
    np.save(tmp_path / "ws.npy", generator.mapping(z).numpy())
    for truncation in (None, Truncation(0.6)):
        generated = [
            torch.cat(list(sampling.from_latents(
                generator, latents_for(generator, tmp_path / name), batch=2, device=CPU,
                truncation=truncation,
            )))
            for name in ("z.npy", "ws.npy")
        ]  # fmt: skip
        torch.testing.assert_close(*generated)
    np.save(tmp_path / "wrong.npy", z.numpy()[..., :-1])
    with pytest.raises(DataError, match="or styles"):
        latents_for(generator, tmp_path / "wrong.npy")


def test_latents_are_drawn_ahead_by_threads_that_end_with_the_sampling(generator, monkeypatch):
    drawing = []

    def recorded(spec, seeds, *arguments, **options):
        drawing.append((threading.current_thread(), list(seeds)))
        return for_seeds(spec, seeds, *arguments, **options)

    monkeypatch.setattr(sampling, "for_seeds", recorded)
    generated = sampling.generate(generator, range(10_000), batch=8, device=CPU)
    first = next(generated)
    assert len(drawing) <= 4, "no more are drawn than are soon needed"
    assert threading.main_thread() not in {thread for thread, _ in drawing}
    generated.close()
    assert not any(thread.is_alive() for thread, _ in drawing)
    assert torch.equal(first, generate(generator, range(8), 8))


def test_latents_are_those_of_the_seeds_to_the_last_bit(generator):
    """Not drawn in one piece, not out of order, and the filling of the last batch is dropped."""
    seeds = [5, 5, 99, *range(30)]
    draws = for_seeds({"z": Draw("normal", (1, *generator.latent_shape))}, seeds + [29] * 7, CPU)
    with torch.no_grad():
        expected = generator(draws["z"])[: len(seeds)]
    assert torch.equal(generate(generator, seeds, 8), expected)


def test_on_the_cpu_batches_pass_through_one_by_one():
    asked = []

    def batches():
        for number in range(3):
            asked.append(number)
            yield torch.full((2,), number)

    for number, batch in enumerate(fetch(batches())):
        assert asked == list(range(number + 1))
        assert batch.tolist() == [number, number]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_arrive_whole_and_in_order(generator):
    device = devices.pick_device("cuda")
    batches = [torch.full((64, 3, 64, 64), number, dtype=torch.uint8, device=device) for number in range(9)]
    for number, batch in enumerate(fetch(iter(batches))):
        assert batch.device.type == "cpu"
        assert (batch == number).all()
    there = copy.deepcopy(generator).to(device)
    size = sampling.batch_for(there, device, 50_000)
    assert 8 <= size <= 1024
    generated = torch.cat(list(sampling.sample(there, range(100), batch=size, device=device)))
    here = sample(generator, range(100), 64)
    assert (generated.int() - here.int()).abs().max() <= 1


def test_a_batch_fits_the_memory_and_is_a_power_of_two():
    used = {8: 100 + 8 * 10, 16: 100 + 16 * 10}  # 10 for each image, and 100
    assert sampling.fitting(100 + 512 * 10, used, most=1024) == 512
    assert sampling.fitting(99 + 512 * 10, used, most=1024) == 256
    assert sampling.fitting(10**9, used, most=1024) == 1024
    assert sampling.fitting(10**9, used, most=455) == 256
    assert sampling.fitting(0, used, most=1024) == 8
    assert sampling.fitting(1000, {8: 50, 16: 50}, most=64) == 64


def test_on_the_cpu_a_batch_is_what_it_always_was(generator):
    assert sampling.batch_for(generator, CPU, 50_000) == sampling.BATCH == 64


def test_a_gpu_without_enough_memory_is_explained(generator):
    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    network = copy.deepcopy(generator)
    network.forward = exhausted
    latents = torch.zeros(3, *network.latent_shape)
    for generated in (
        sampling.generate(network, range(3), batch=256, device=CPU),
        sampling.from_latents(network, latents, batch=256, device=CPU),
    ):
        with pytest.raises(
            MissingError,
            match="too little memory for 256 images at once: choose a smaller --batch, such as 64",
        ):
            next(generated)
