import functools
import json

import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer
from helpers.golden_file import find_golden
from safetensors import safe_open

from gantx.errors import UsageError
from gantx.evaluation.resizing import RULES, clean_by_matrix, resize

KINDS = (
    "32x32_noise",
    "32x32_smooth",
    "48x48_smooth",
    "64x64_noise",
    "75x100_smooth",
    "256x256_smooth",
    "299x299_noise",
    "320x320_checker",
)
TOLERANCE = 1e-3


@functools.cache
def golden():
    """(case, tensors) of the golden resizer outputs."""
    everything = json.loads(find_golden("metrics/golden.json").read_text())
    case = everything["cases"]["resize"]
    tensors = {}
    for name in case["files"]:
        with safe_open(find_golden(f"metrics/{name}"), framework="pt") as file:
            tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return case, tensors


def noise(height, width, seed=0, count=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.fixture
def _one_thread():
    """The files were made on one thread: PyTorch's own resizing rounds otherwise on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", [*RULES, "clean by matrix"])
def test_golden_values(kind, rule):
    case, tensors = golden()
    image = tensors[f"{kind}.image"].permute(2, 0, 1)[None]
    by_matrix = rule == "clean by matrix"
    found = clean_by_matrix(image.float()).clamp(0, 255) if by_matrix else resize(image, rule)
    key = f"{kind}.{rule.removesuffix(' by matrix').replace('-', '_')}"
    found = found[0].permute(1, 2, 0).double()  # [299, 299, 3]
    torch.testing.assert_close(found[case["rows"]], tensors[f"{key}.rows"].double(), rtol=0, atol=TOLERANCE)
    # The whole picture enters these: a wrong pixel outside the stored rows shows here.
    expected = case["values"][key]
    assert abs(float(found.sum()) - expected["sum"]) < TOLERANCE * found.numel() / 100
    assert abs(float(found.square().sum()) / expected["sumsq"] - 1) < 1e-7
    assert abs(float(found.min()) - expected["min"]) < TOLERANCE
    assert abs(float(found.max()) - expected["max"]) < TOLERANCE


def test_every_golden_image_is_compared():
    _, tensors = golden()
    assert {key.removesuffix(".image") for key in tensors if key.endswith(".image")} == set(KINDS)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 25), (500, 301)])
@pytest.mark.parametrize("rule", ["clean", "legacy-pytorch"])
def test_equal_to_clean_fid_to_the_bit(rule, height, width):
    images = noise(height, width)
    one = build_resizer(rule.replace("-", "_"))
    expected = np.stack([one(image.permute(1, 2, 0).numpy()) for image in images])
    found = resize(images, rule)
    assert torch.equal(found, torch.from_numpy(expected).permute(0, 3, 1, 2))


def test_threads_change_nothing():
    images, before = noise(33, 64, count=5), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = resize(images, "clean")
        torch.set_num_threads(3)
        assert torch.equal(resize(images, "clean"), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [16, 299, 640])
def test_the_matrix_agrees_with_pillow(size):
    images = noise(size, size + 7).float()
    by_matrix = clean_by_matrix(images).clamp(0, 255)
    torch.testing.assert_close(by_matrix, resize(images, "clean"), rtol=0, atol=2e-4)


def test_tensorflow_repeats_the_last_row_and_column():
    """Without half-pixel centres the outputs beyond the last input's position show that input."""
    ramp = torch.arange(4.0)[:, None].expand(1, 3, 4, 4) * 10
    rows = resize(ramp, "legacy-tensorflow")[0, 0, :, 0]
    source = torch.arange(299) * 4 / 299
    torch.testing.assert_close(rows, (source * 10).clamp(max=30))


@pytest.mark.parametrize("rule", RULES)
def test_any_batch_type_and_layout_gives_the_same_pixels(rule):
    images = noise(20, 36, count=3)
    whole = resize(images, rule)
    assert whole.shape == (3, 3, 299, 299)
    assert whole.dtype == torch.float32
    assert torch.equal(resize(images[1:2], rule), whole[1:2])
    assert torch.equal(resize(images.float().to(memory_format=torch.channels_last), rule), whole)
    assert 0 <= float(whole.min()) <= float(whole.max()) <= 255


@pytest.mark.parametrize("rule", RULES)
def test_the_images_given_are_left_as_they_are(rule):
    images = noise(299, 299, count=1).float() * 2  # beyond 255, so clamping in place would show
    before = images.clone()
    resize(images, rule)
    assert torch.equal(images, before)


def test_an_unknown_rule_is_refused():
    with pytest.raises(UsageError, match="'bicubic': use one of clean, legacy-tensorflow, legacy-pytorch"):
        resize(noise(8, 8), "bicubic")
