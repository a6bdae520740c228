import pytest
import torch
from helpers.golden_file import GoldenFile

from gantx.config import presets
from gantx.errors import UsageError
from gantx.runtime.random import draw, take
from gantx.training.augment import augment, band_operators, filter_bank, spec

CIFAR = ("translation", "cutout", "color")
STL = ("translation", "stl_erase_ratio", "color")
CHURCH = ("translation", "erase_ratio", "color")
CELEBAHQ = ("filter", "translation", "erase_ratio", "color", "hue")
EVERYTHING = (*CELEBAHQ, "strong_translation", "stl_erase_ratio", "cutout", "flip")


def drawn(policy, batch=4, side=16, step=0):
    return draw(spec(policy, batch, side), seed=0, stream="test", step=step, device=torch.device("cpu"))


def recorded_draws(golden, policy):
    """The draws of an official run, in our names: both list them in the order of the policy."""
    recorded = [value.flatten() for _, value in sorted(golden.prefix("draw.").items())]
    batch, _, _, side = golden["input.x"].shape
    draws = {}
    for name, entries in spec(policy, batch, side).items():
        values = draws[name] = {}
        if name == "filter":  # the official code draws for one band after the other
            values["normal"], values["coin"] = torch.stack(recorded[:8], 1).unflatten(1, (4, 2)).unbind(2)
            del recorded[:8]
            continue
        for key, wanted in entries.items():
            # An official box that is not due is not drawn.
            value = recorded.pop(0) if recorded else torch.zeros(batch)
            if name.endswith("erase_ratio") and key in ("rows", "columns"):
                size = values["height" if key == "rows" else "width"]
                value = (value + 0.5) / (side + 1 - size % 2)
            values[key] = value.long() if wanted.kind == "integers" else value
            values[key] = values[key].reshape(wanted.shape)
    assert not recorded
    return draws


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("policy_cifar", CIFAR),
        ("policy_stl", STL),
        ("policy_church", CHURCH),
        ("policy_celebahq", CELEBAHQ),
        ("cutout_on", ("cutout",)),
        ("cutout_off", ("cutout",)),
        ("erase_ratio_on", ("erase_ratio",)),
        ("erase_ratio_off", ("erase_ratio",)),
        ("stl_erase_ratio_on", ("stl_erase_ratio",)),
        ("filter", ("filter",)),
        ("hue", ("hue",)),
        ("translation", ("translation",)),
        ("strong_translation", ("strong_translation",)),
        ("brightness", ("brightness",)),
        ("saturation", ("saturation",)),
        ("contrast", ("contrast",)),
        ("color", ("color",)),
    ],
)
def test_agrees_with_the_official_code(name, policy):
    with GoldenFile(f"transgan/diffaug_{name}") as golden:
        draws = recorded_draws(golden, policy)
        images = golden["input.x"].requires_grad_()
        changed = augment(images, draws, policy)
        torch.testing.assert_close(changed, golden["output"], rtol=0, atol=1e-5)
        (gradient,) = torch.autograd.grad((changed * golden["grad.weight"]).sum(), images)
        torch.testing.assert_close(gradient, golden["grad.x"], rtol=0, atol=1e-5)
        for official in golden.prefix("const.Hz_fbank").values():
            torch.testing.assert_close(filter_bank().float(), official, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("side", "largest"), [(32, 6), (48, 10), (64, 13)])
def test_the_ranges_of_the_draws(side, largest):
    wanted = spec(CIFAR, 3, side)
    assert list(wanted) == ["translation", "cutout", "brightness", "saturation", "contrast"]
    for axis in ("rows", "columns"):
        assert wanted["translation"][axis][1:] == ((3,), "sample", -largest, largest + 1)
        assert wanted["cutout"][axis][1:] == ((3,), "sample", 0, side + 1)
    assert wanted["cutout"]["coin"][:3] == ("uniform", (), "batch")
    assert spec(("cutout",), 3, 10)["cutout"]["rows"].high == 10  # a box of odd side has one place less


def test_the_ranges_of_the_draws_of_version_2():
    wanted = spec(("strong_translation", "erase_ratio", "stl_erase_ratio", "filter", "hue"), 3, 48)
    assert wanted["strong_translation"]["rows"][1:] == ((3,), "sample", -6, 7)
    assert wanted["erase_ratio"]["height"][1:] == ((), "batch", 9, 34)
    assert wanted["stl_erase_ratio"]["width"][1:] == ((), "batch", 20, 45)
    assert wanted["filter"]["normal"][:3] == ("normal", (3, 4), "sample")
    assert wanted["hue"]["coin"][:3] == ("uniform", (3,), "sample")


def test_no_policy_changes_nothing():
    images = torch.randn(2, 3, 8, 8)
    assert spec((), 2, 8) == {}
    assert augment(images, {}, ()) is images


def test_an_operation_named_twice_is_refused():
    with pytest.raises(UsageError, match="applies contrast twice"):
        presets.load(overrides=["augment.policy=[contrast, color]"])


def test_translation_moves_pixels_and_fills_with_zeros():
    images = torch.rand(2, 3, 8, 12) + 1
    shifts = {"rows": torch.tensor([2, 0]), "columns": torch.tensor([-1, 3])}
    moved = augment(images, {"translation": shifts}, ("translation",))
    assert torch.equal(moved[0, :, :6, 1:], images[0, :, 2:, :11])
    assert not moved[0, :, 6:].any()
    assert not moved[0, :, :, 0].any()
    assert torch.equal(moved[1, :, :, :9], images[1, :, :, 3:])
    assert not moved[1, :, :, 9:].any()


def test_a_box_beyond_the_border_is_clamped_pixel_by_pixel():
    images = torch.ones(2, 3, 8, 8)
    box = {"coin": torch.tensor(0.0), "rows": torch.tensor([0, 8]), "columns": torch.tensor([4, 4])}
    cut = augment(images, {"cutout": box}, ("cutout",))[:, 0] == 0
    assert cut[0].nonzero().tolist() == [[row, column] for row in (0, 1) for column in (2, 3, 4, 5)]
    assert cut[1].nonzero().tolist() == [[row, column] for row in (6, 7) for column in (2, 3, 4, 5)]


@pytest.mark.parametrize(("size", "last"), [(3, 7), (4, 8)])
def test_an_erased_box_has_its_size_and_centres_reach_both_borders(size, last):
    images = torch.ones(3, 3, 8, 8)
    q = {"coin": torch.tensor(0.0), "height": torch.tensor(size), "width": torch.tensor(1)}
    q["rows"], q["columns"] = torch.tensor([0.0, 0.5, 1 - 2**-24]), torch.tensor([0.0, 0.5, 0.99])
    erased = augment(images, {"erase_ratio": q}, ("erase_ratio",))[:, 0] == 0
    assert [erased[image].any(1).nonzero().flatten().tolist() for image in range(3)] == [
        [row for row in range(centre - size // 2, centre - size // 2 + size) if 0 <= row < 8]
        for centre in (0, int((last + 1) / 2), last)
    ]
    assert [erased[image].any(0).nonzero().tolist() for image in range(3)] == [[[0]], [[4]], [[7]]]
    q["coin"] = torch.tensor(0.31)
    assert torch.equal(augment(images, {"erase_ratio": q}, ("erase_ratio",)), images)


def test_hue_turns_red_into_green_and_leaves_grey():
    images = torch.zeros(2, 3, 1, 2)
    images[:, 0, :, 0] = 1  # a red pixel
    images[:, :, :, 1] = 0.3  # a grey pixel
    third = {"u": torch.full((2,), 0.5 + 1 / 3), "coin": torch.tensor([0.4, 0.6])}
    turned, spared = augment(images, {"hue": third}, ("hue",))
    green = torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(turned[:, 0, 0], green, rtol=0, atol=1e-6)
    torch.testing.assert_close(turned[:, 0, 1], images[0, :, 0, 1])
    torch.testing.assert_close(spared, images[1])


def test_filtering_without_a_hit_changes_nothing_and_with_one_keeps_the_power_of_an_average_image():
    images = torch.randn(2, 3, 8, 8)
    q = {"normal": torch.full((2, 4), 2.0), "coin": torch.ones(2, 4)}
    same = augment(images, {"filter": q}, ("filter",))
    torch.testing.assert_close(same, images, rtol=0, atol=1e-5)
    q["coin"][1, 2] = 0.2  # of the second image, the third band is amplified four times
    first, second = augment(images, {"filter": q}, ("filter",))
    torch.testing.assert_close(first, images[0], rtol=0, atol=1e-5)
    bands = band_operators(8, torch.device("cpu"))
    operator = torch.einsum("k,kij->ij", torch.tensor([1.0, 1, 4, 1]) * (13 / (12 + 16)) ** 0.5, bands)
    torch.testing.assert_close(second, operator @ images[1] @ operator.T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [1, 5, 22, 30])
def test_bands_reflect_at_the_borders_and_sum_up_to_the_image(side):
    bands = band_operators(side, torch.device("cpu"))
    torch.testing.assert_close(bands.sum(0), torch.eye(side), rtol=0, atol=1e-6)
    if side > 21:
        row = torch.randn(1, 1, side)
        padded = torch.nn.functional.pad(row, (21, 21), mode="reflect")
        expected = torch.nn.functional.conv1d(padded, filter_bank().float()[:, None])[0]
        torch.testing.assert_close(bands @ row[0, 0], expected, rtol=0, atol=1e-5)


def test_cutout_hits_three_batches_of_ten():
    images = torch.ones(1, 3, 8, 8)
    hit = [
        not augment(images, drawn(("cutout",), 1, 8, step), ("cutout",)).all().item() for step in range(400)
    ]
    assert 0.22 < sum(hit) / 400 < 0.38


def test_slices_of_a_batch_are_augmented_as_in_the_batch():
    images, draws = torch.randn(4, 3, 16, 16), drawn(EVERYTHING)
    part = take(draws, spec(EVERYTHING, 4, 16), slice(1, 3))
    whole = augment(images, draws, EVERYTHING)
    torch.testing.assert_close(augment(images[1:3], part, EVERYTHING), whole[1:3])


def test_differentiable_twice():
    images, draws = torch.randn(2, 3, 5, 5, dtype=torch.double, requires_grad=True), drawn(EVERYTHING, 2, 5)
    assert torch.autograd.gradgradcheck(lambda x: augment(x, draws, EVERYTHING).sin(), images)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_compiles_whole_with_a_slope_inside():
    def slope(images, draws):
        return torch.func.grad(lambda x: augment(x, draws, EVERYTHING).square().sum())(images)

    images, draws = torch.randn(4, 3, 16, 16), drawn(EVERYTHING)
    compiled = torch.compile(slope, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images, draws), slope(images, draws))


VITGAN = ("brightness", "saturation", "contrast", "strong_translation", "flip", "cutout")
PROBABILITIES = dict.fromkeys(VITGAN, 0.8) | {"flip": 0.45, "cutout": 0.3}
OFFICIAL = {  # names of ViTGAN's released code
    "brightness": "rand_brightness",
    "saturation": "rand_saturation",
    "contrast": "rand_contrast",
    "strong_translation": "rand_translation",
    "flip": "hor_flip",
    "cutout": "rand_cutout",
}


def test_operations_with_a_probability_agree_with_the_official_code_of_vitgan():
    with GoldenFile("vitgan/diffaug") as golden:
        images = 2 * golden["in.x01"] - 1
        probabilities = golden.config["probs"]
        assert [OFFICIAL[name] for name in VITGAN] == golden.config["order"]
        assert [
            PROBABILITIES["brightness"],
            PROBABILITIES["strong_translation"],
            PROBABILITIES["flip"],
            PROBABILITIES["cutout"],
        ] == [probabilities[name] for name in ("color", "translation", "hflip", "cutout")]

        def draws_of(name, prefix):
            recorded = {
                "u": f"{prefix}.u",
                "rows": f"{prefix}.shift_row" if "translation" in name else f"{prefix}.offset_row",
                "columns": f"{prefix}.shift_col" if "translation" in name else f"{prefix}.offset_col",
            }
            wanted = spec((name,), len(images), 16, PROBABILITIES)[name]
            draws = {key: golden[recorded[key]].flatten() for key in wanted if key in recorded}
            # A given probability replaces the operation's own.
            coin = {"coin": torch.ones(wanted["coin"].shape)} if "coin" in wanted else {}
            return draws | coin | {"gate": golden[f"{prefix}.p"].flatten()}

        full = {}
        for name in VITGAN:
            official = OFFICIAL[name]
            changed = augment(images, {name: draws_of(name, f"{official}.draw")}, (name,), PROBABILITIES)
            torch.testing.assert_close(changed, golden[f"{official}.out"], rtol=0, atol=2e-5)
            full[name] = draws_of(name, f"full.draw.{official}")
        changed = augment(images, full, VITGAN, PROBABILITIES)
        torch.testing.assert_close(changed / 2 + 0.5, golden["full.out01"], rtol=0, atol=2e-5)


def test_an_operation_is_applied_with_the_given_probability():
    images = torch.ones(400, 3, 8, 8)
    probabilities = {"cutout": 0.3}
    q = draw(
        spec(("cutout",), 400, 8, probabilities), seed=0, stream="test", step=0, device=torch.device("cpu")
    )
    hit = (augment(images, q, ("cutout",), probabilities) == 0).flatten(1).any(1)
    assert 0.2 < hit.float().mean() < 0.4
    assert not (augment(images, q, ("cutout",), {"cutout": 0.0}) == 0).any()


def test_half_of_the_images_are_flipped():
    images = torch.arange(8.0).expand(400, 3, 8, 8)
    flipped = augment(images, drawn(("flip",), 400, 8), ("flip",))
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert ((flipped == images).flatten(1).all(1) ^ mirrored).all()
    assert 0.4 < mirrored.float().mean() < 0.6


def test_a_probability_of_an_operation_outside_the_policy_is_refused():
    with pytest.raises(UsageError, match="chances names cutout"):
        presets.load(overrides=["augment={policy: [color], chances: {cutout: 0.3, hue: 0.1}}"])


def test_colours_change_without_alpha_and_grey_has_no_hues():
    images = torch.rand(4, 4, 16, 16) * 2 - 1
    policy = ("brightness", "saturation", "contrast", "hue")
    draws = drawn(policy)
    changed = augment(images, draws, policy)
    assert torch.equal(changed[:, 3:], images[:, 3:])
    assert torch.equal(changed[:, :3], augment(images[:, :3], draws, policy))
    grey = images[:, :1]
    assert torch.equal(augment(grey, draws, ("saturation", "hue"), {"hue": 1.0}), grey)
    assert torch.equal(augment(grey, draws, policy), augment(grey, draws, ("brightness", "contrast")))


def test_alpha_moves_with_the_colours():
    alpha = torch.rand(4, 1, 16, 16) * 2 - 1
    policy = ("filter", "translation", "cutout", "erase_ratio", "flip")
    draws = drawn(policy)
    colours, moved = augment(alpha.expand(-1, 4, -1, -1), draws, policy).split([3, 1], 1)
    assert torch.allclose(moved, colours[:, :1])
    assert not torch.equal(moved, alpha)
