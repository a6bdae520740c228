"""The order of images: pure, complete each epoch, the same however it is fetched."""

import threading

import numpy as np
import pytest
import torch

from gantx.data.batches import Batches
from gantx.data.prepare import Prepared

CPU = torch.device("cpu")


def numbered(count, side=4):
    """Images that show their number in channel 0; column 0 of channel 1 marks the left edge."""
    images = np.zeros((count, 3, side, side), np.uint8)
    images[:, 0] = np.arange(count)[:, None, None]
    images[:, 1, :, 0] = 255
    images.flags.writeable = False
    return Prepared(images, None, (), "fingerprint", "digest", "numbered", ())


def batches(count=10, *, seed=0, mirror=False, resident="auto", device=CPU):
    return Batches(numbered(count), seed=seed, mirror=mirror, device=device, resident=resident)


def numbers(images):
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()


def mirrored(images):
    return (images[:, 1, 0, -1] == 1).tolist()


def test_pixels_become_floats_in_minus_one_to_one():
    images = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, 1)
    made = Batches(
        Prepared(images, None, (), "", "", "", ()), seed=0, mirror=False, device=CPU, resident="auto"
    )
    batch = made.at("real", 0, 1)
    assert batch.dtype == torch.float32
    assert batch.shape == (1, 3, 16, 16)
    expected = torch.arange(256, dtype=torch.float32) / 127.5 - 1
    assert torch.equal(batch[0, 0].flatten(), expected)
    assert (batch.min().item(), batch.max().item()) == (-1, 1)


@pytest.mark.parametrize("resident", ["device", "stream"])
def test_every_epoch_shows_every_image_once_in_an_order_of_its_own(resident):
    made = batches(50, resident=resident)
    epochs = [numbers(made.at("real", 50 * epoch, 50)) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert list(range(50)) not in epochs


@pytest.mark.parametrize("resident", ["device", "stream"])
@pytest.mark.parametrize("mirror", [False, True])
def test_any_split_gives_the_same_images(resident, mirror):
    whole = batches(7, mirror=mirror, resident=resident).at("real", 0, 30)  # over four epochs
    made = batches(7, mirror=mirror, resident=resident)
    assert torch.equal(torch.cat([made.at("real", 0, 4), made.at("real", 4, 26)]), whole)
    for start in (29, 3, 17, 6, 0):  # a resumed run may start anywhere
        assert torch.equal(made.at("real", start, 1), whole[start : start + 1])
    assert torch.equal(batches(7, mirror=mirror, resident=resident).at("real", 13, 17), whole[13:])


@pytest.mark.parametrize("resident", ["device", "stream"])
def test_a_batch_larger_than_the_set(resident):
    shown = numbers(batches(3, resident=resident).at("real", 2, 64))
    assert len(shown) == 64
    assert sorted(shown[1:4]) == [0, 1, 2]  # the first whole epoch
    assert set(numbers(batches(1, resident=resident).at("real", 5, 3))) == {0}


def test_streams_and_seeds_have_orders_of_their_own():
    orders = {
        tuple(numbers(batches(100, seed=seed).at(stream, 0, 100)))
        for seed in (0, 1)
        for stream in ("discriminator", "generator")
    }
    assert len(orders) == 4


def test_one_stream_does_not_move_another():
    made = batches(20)
    expected = batches(20).at("a", 15, 10)
    made.at("b", 0, 33)
    made.at("a", 0, 15)
    assert torch.equal(made.at("a", 15, 10), expected)


def test_nothing_depends_on_or_moves_the_global_generator():
    torch.manual_seed(1)
    first = batches(20, mirror=True).at("real", 0, 20)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(batches(20, mirror=True).at("real", 0, 20), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_mirroring_flips_half_of_the_images_anew_each_epoch():
    made = batches(200, mirror=True)
    epochs = [made.at("real", 200 * epoch, 200) for epoch in range(2)]
    flips = [dict(zip(numbers(epoch), mirrored(epoch), strict=True)) for epoch in epochs]
    assert 60 < sum(flips[0].values()) < 140
    assert 60 < sum(flips[0][image] != flips[1][image] for image in range(200)) < 140
    plain = batches(200).at("real", 0, 200)
    assert not any(mirrored(plain))
    assert numbers(plain) == numbers(epochs[0])  # mirroring does not change the order


def test_a_mirrored_image_is_reversed_left_to_right():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 4, 4), dtype=np.uint8)
    made = Batches(
        Prepared(pixels, None, (), "", "", "", ()), seed=0, mirror=True, device=CPU, resident="auto"
    )
    plain = torch.from_numpy(pixels[0]).float() / 127.5 - 1
    shown = made.at("real", 0, 20)
    is_plain = [torch.equal(image, plain) for image in shown]
    assert any(is_plain)
    assert not all(is_plain)
    assert all(p or torch.equal(image, plain.flip(-1)) for p, image in zip(is_plain, shown, strict=True))


@pytest.mark.parametrize("mirror", [False, True])
def test_streaming_with_and_without_prefetch_equals_resident(mirror):
    resident = batches(11, mirror=mirror, resident="device")
    stream = batches(11, mirror=mirror, resident="stream")
    assert resident.resident
    assert not stream.resident
    for start in range(0, 60, 5):
        stream.prefetch("real", start + 5, 5)
        stream.prefetch("other", start, 3)
        resident.prefetch("real", start + 5, 5)
        assert torch.equal(stream.at("real", start, 5), resident.at("real", start, 5))
        assert torch.equal(stream.at("other", start, 3), resident.at("other", start, 3))


def test_prefetch_works_in_the_background_and_at_picks_it_up(monkeypatch):
    made = batches(11, resident="stream")
    fetch, fetched_by = made._fetch, []

    def recorded(*arguments):
        fetched_by.append((threading.current_thread() is threading.main_thread(), arguments))
        return fetch(*arguments)

    monkeypatch.setattr(made, "_fetch", recorded)
    made.prefetch("real", 5, 5)
    made.prefetch("real", 5, 5)
    made.at("real", 5, 5)
    assert fetched_by == [(False, ("real", 5, 5))]
    made.at("real", 5, 5)
    assert fetched_by[1:] == [(True, ("real", 5, 5))]


def test_prefetched_batches_nobody_wants_do_not_pile_up():
    made = batches(11, resident="stream")
    for start in range(100):
        made.prefetch("real", start, 2)
    assert len(made._fetches) <= 8
    assert torch.equal(made.at("real", 0, 2), batches(11).at("real", 0, 2))


def test_two_epochs_of_orders_are_kept():
    made = batches(4)
    for start in range(0, 400, 4):
        made.at("real", start, 6)
    assert len(made._orders["real"]) == 2


def test_a_mapped_set_is_not_copied(tmp_path):
    np.save(tmp_path / "images.npy", np.array(numbered(5).images))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    made = Batches(
        Prepared(images, None, (), "", "", "", ()), seed=0, mirror=True, device=CPU, resident="auto"
    )
    assert made._images.data_ptr() == images.ctypes.data
    assert len(made) == 5
    assert sorted(numbers(made.at("real", 0, 5))) == list(range(5))
    np.testing.assert_array_equal(images, numbered(5).images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("resident", ["auto", "stream"])
def test_cuda_gives_the_same_images(resident):
    device = torch.device("cuda")
    made, plain = batches(11, mirror=True, resident=resident, device=device), batches(11, mirror=True)
    assert made.resident is (resident == "auto")
    for start in range(0, 60, 5):
        made.prefetch("real", start + 5, 5)
        batch = made.at("real", start, 5)
        assert batch.device.type == "cuda"
        assert torch.equal(batch.cpu(), plain.at("real", start, 5))


@pytest.mark.parametrize(("size", "resident"), [(11 * 48 * 3 + 3, True), (11 * 48 * 3 - 3, False)])
def test_auto_is_resident_when_a_third_of_free_memory_suffices(monkeypatch, size, resident):
    from gantx.data import batches as module

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (size, 10**12))
    assert module._fits(numbered(11), torch.device("cuda")) is resident
    assert module._fits(numbered(11), CPU)
