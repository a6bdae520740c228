import pytest
import torch
from golden_file import GoldenFile

from gantx import config
from gantx.draws import draw, take
from gantx.errors import UsageError
from gantx.training.augment import augment, spec

EVERYTHING = ("translation", "cutout", "color")


def drawn(policy, batch=4, side=16, step=0):
    return draw(spec(policy, batch, side), seed=0, stream="test", step=step, device=torch.device("cpu"))


def recorded_draws(golden, policy):
    """The draws of an official run, in our names: both list them in the order of the policy."""
    recorded = [value.flatten() for _, value in sorted(golden.prefix("draw.").items())]
    draws = {name: {} for name in spec(policy, 4, 32)}
    for name, entries in spec(policy, 4, 32).items():
        for key, wanted in entries.items():
            if not recorded:  # an official cutout that is not due draws no box
                recorded = [torch.zeros(4)]
            value = recorded.pop(0)
            draws[name][key] = value.long() if wanted.kind == "integers" else value.reshape(wanted.shape)
    assert not recorded
    return draws


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("policy_cifar", EVERYTHING),
        ("cutout_on", ("cutout",)),
        ("cutout_off", ("cutout",)),
        ("translation", ("translation",)),
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


@pytest.mark.parametrize(("side", "largest"), [(32, 6), (48, 10), (64, 13)])
def test_the_ranges_of_the_draws(side, largest):
    wanted = spec(EVERYTHING, 3, side)
    assert list(wanted) == ["translation", "cutout", "brightness", "saturation", "contrast"]
    for axis in ("rows", "columns"):
        assert wanted["translation"][axis][1:] == ((3,), "sample", -largest, largest + 1)
        assert wanted["cutout"][axis][1:] == ((3,), "sample", 0, side + 1)
    assert wanted["cutout"]["coin"][:3] == ("uniform", (), "batch")
    assert spec(("cutout",), 3, 10)["cutout"]["rows"].high == 10  # a box of odd side has one place less


def test_no_policy_changes_nothing():
    images = torch.randn(2, 3, 8, 8)
    assert spec((), 2, 8) == {}
    assert augment(images, {}, ()) is images


def test_an_operation_named_twice_is_refused():
    with pytest.raises(UsageError, match="applies contrast twice"):
        config.load(overrides=["augment.policy=[contrast, color]"])


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


def test_bf16_autocast_costs_no_precision():
    images, draws = torch.randn(4, 3, 16, 16), drawn(EVERYTHING)
    with torch.autocast("cpu", torch.bfloat16):
        changed = augment(images, draws, EVERYTHING)
    assert torch.equal(changed, augment(images, draws, EVERYTHING))


def test_compiles_whole_with_a_slope_inside():
    def slope(images, draws):
        return torch.func.grad(lambda x: augment(x, draws, EVERYTHING).square().sum())(images)

    images, draws = torch.randn(4, 3, 16, 16), drawn(EVERYTHING)
    compiled = torch.compile(slope, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images, draws), slope(images, draws))
