"""The classifier of shapes and the count of modes: shapes are known, everything else is not."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from gantx.config.schema import ShapesConfig
from gantx.data.shapes import factors, render
from gantx.errors import CheckpointError, DataError, MissingError, UsageError
from gantx.evaluation.shapes_classifier import (
    MODES,
    RESOLUTION,
    THRESHOLD,
    WEIGHTS,
    ModeCount,
    ShapesClassifier,
)

CPU = torch.device("cpu")
UNSEEN = 77  # a seed that neither the training nor the measuring of the classifier used


@pytest.fixture(scope="module")
def classifier():
    return ShapesClassifier(CPU)


def shapes(count, *, side=RESOLUTION, objects=1, **changed):
    """Images uint8 [N, 3, side, side] and their modes, some factors changed."""
    drawn = factors(ShapesConfig(seed=UNSEEN, objects=objects), 0, count)._replace(**changed)
    images = torch.from_numpy(render(drawn, side)).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(drawn.kind[:, 0] * 6 + drawn.colour[:, 0])


def share_confident(classifier, images):
    return (classifier(images) > THRESHOLD).any(dim=1).double().mean().item()


@pytest.mark.parametrize("side", [16, 24, 32, 48, 128])
def test_real_shapes_are_classified_at_any_size(classifier, side):
    images, expected = shapes(600, side=side)
    probability, mode = classifier(images).max(dim=1)
    assert ((probability > THRESHOLD) & (mode == expected)).double().mean() >= 0.99


def test_probabilities_leave_room_for_no_shape(classifier):
    images, _ = shapes(20)
    noise = torch.randint(0, 256, images.shape, generator=torch.Generator().manual_seed(0))
    found = classifier(torch.cat([images, noise.to(torch.uint8)]))
    assert found.shape == (40, MODES)
    assert found[:20].sum(dim=1).min() > 0.9
    assert found[20:].sum(dim=1).max() < 0.1


def test_bytes_and_floats_are_the_same_and_floats_are_clipped(classifier):
    images, _ = shapes(8)
    expected = classifier(images)
    assert torch.equal(classifier(images.float()), expected)
    white = torch.full((1, 3, RESOLUTION, RESOLUTION), 255.0)
    assert torch.equal(classifier(white + 1000), classifier(white))
    assert torch.equal(classifier(-white), classifier(0 * white))


def test_values_that_are_not_finite_are_no_shape(classifier):
    assert share_confident(classifier, torch.full((2, 3, RESOLUTION, RESOLUTION), torch.nan)) == 0


def noise(images):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, images.shape, generator=generator, dtype=torch.uint8)


def only_the_ground(images):
    return images[:, :, :1, :1].expand_as(images)


def soft_blob(images):
    wide = F.pad(images.float(), (4, 4, 4, 4), "replicate")
    return F.avg_pool2d(F.avg_pool2d(wide, 5, 1), 5, 1)


def two_blended(images):
    return (images.float() + images.float().roll(1, dims=0)) / 2


def halves_swapped_in_tiles(images):
    tiles = F.unfold(images.float(), 8, stride=8)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    return F.fold(tiles[:, :, order], (RESOLUTION, RESOLUTION), 8, stride=8)


def colours_at_half_strength(images):
    return images.float() / 2


def colours_inverted(images):
    return 255 - images.float()


def left_half_of_the_shape(images):
    cut = images.clone()
    for image in cut:
        shape = (image.amax(dim=0) > 150).any(dim=0).nonzero()[:, 0]  # its columns
        image[:, :, (int(shape[0]) + int(shape[-1])) // 2 :] = image[:, :1, :1]
    return cut


@pytest.mark.parametrize(
    "spoil",
    [
        noise,
        only_the_ground,
        soft_blob,
        two_blended,
        halves_swapped_in_tiles,
        colours_at_half_strength,
        colours_inverted,
        left_half_of_the_shape,
    ],
)
def test_what_is_no_shape_is_rejected(classifier, spoil):
    images, _ = shapes(400)
    assert share_confident(classifier, spoil(images)) <= 0.05


def test_several_shapes_are_rejected(classifier):
    assert share_confident(classifier, shapes(400, objects=4)[0]) <= 0.05


def test_slight_flaws_pass(classifier):
    images, expected = shapes(600)
    softened = F.avg_pool2d(F.pad(images.float(), (1, 1, 1, 1), "replicate"), 3, 1)
    generator = torch.Generator().manual_seed(3)
    flawed = 0.7 * images + 0.3 * softened + 8 * torch.randn(images.shape, generator=generator)
    probability, mode = classifier(flawed).max(dim=1)
    assert ((probability > THRESHOLD) & (mode == expected)).double().mean() >= 0.95


def test_all_modes_of_real_shapes_are_found_batch_by_batch():
    images, expected = shapes(720)
    count = ModeCount(CPU)
    for part in images.split([1, 500, 219]):
        count.add(part)
    found = count.result()
    assert found.modes == 18
    assert min(found.confident, found.whole) >= 0.99
    assert int(found.counts.sum()) == round(found.confident * 720)
    assert (found.counts - torch.bincount(expected, minlength=18)).abs().sum() <= 7
    assert found.accuracy_on_real >= 0.99


def test_a_missing_mode_is_missed():
    images, mode = shapes(720)
    count = ModeCount(CPU)
    count.add(images[(mode != 5) & (mode != 17)])
    found = count.result()
    assert found.modes == 16
    assert found.counts[5] < 0.01 * 720
    assert found.counts[17] < 0.01 * 720


def test_images_that_are_no_shapes_lower_the_shares():
    images, _ = shapes(200)
    count = ModeCount(CPU)
    count.add(images)
    count.add(noise(images))
    found = count.result()
    assert found.whole == pytest.approx(0.5, abs=0.01)
    assert 0.5 <= found.confident <= 0.6


def test_a_ragged_shape_can_be_told_but_is_not_whole():
    images, _ = shapes(400)
    ragged = images.clone()
    ragged[:, :, ::3] = ragged[:, :, :1, :1]  # every third row is ground
    count = ModeCount(CPU)
    count.add(ragged)
    found = count.result()
    assert found.whole <= 0.1
    assert found.confident >= 0.5


@pytest.mark.parametrize(("images", "modes"), [(100, 2), (101, 1)])
def test_a_mode_needs_one_image_in_a_hundred(images, modes):
    pictures, mode = shapes(40)
    other = int((mode != mode[0]).nonzero()[0])
    count = ModeCount(CPU)
    count.add(pictures[:1])
    count.add(pictures[other : other + 1].expand(images - 1, -1, -1, -1))
    assert count.result().modes == modes


def test_several_objects_are_refused():
    with pytest.raises(UsageError, match="3 each"):
        ModeCount(CPU, objects=3)


def test_a_count_of_nothing_is_refused():
    with pytest.raises(DataError, match="no images"):
        ModeCount(CPU).result()


def test_the_file_is_small_and_says_what_it_is_worth(classifier):
    assert WEIGHTS.stat().st_size < 300_000
    assert classifier.accuracy_on_real == classifier.about["accuracy_on_real"] >= 0.99
    assert {"noise", "empty", "blended", "half", "shuffled"} <= classifier.about["mistaken_for_shapes"].keys()
    assert {"command", "date", "torch"} <= classifier.about.keys()
    assert len(classifier.digest) == 64


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(MissingError, match="reinstall"):
        ShapesClassifier(CPU, tmp_path / "none.safetensors")


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(WEIGHTS.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="does not contain the classifier"):
        ShapesClassifier(CPU, path)
    save_file(load_file(WEIGHTS), path)  # nothing said in the header
    with pytest.raises(CheckpointError, match="does not contain the classifier"):
        ShapesClassifier(CPU, path)
    save_file({"x": torch.zeros(1)}, path, {"recogniser": json.dumps({"accuracy_on_real": 1})})
    with pytest.raises(CheckpointError, match="does not contain the classifier"):
        ShapesClassifier(CPU, path)


def test_a_gpu_and_the_cpu_agree(classifier):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    images, _ = shapes(64, side=48)
    there = ShapesClassifier(torch.device("cuda"))(images.cuda()).cpu()
    assert np.allclose(there, classifier(images), atol=5e-3)
