"""Attention maps: drawn as by the official code, and arranged on a sheet."""

import dataclasses
import itertools

import pytest
import torch
from helpers.golden_file import GoldenFile
from helpers.styled_networks import styled
from PIL import Image

from gantx import models
from gantx.config import presets
from gantx.errors import MissingError, UsageError
from gantx.generation import attention_visualization, sampling
from gantx.generation.attention_visualization import Picture, Row, View
from gantx.generation.latents import spec_of_one
from gantx.generation.truncation import Truncation, truncate
from gantx.runtime import random
from gantx.runtime.seeds import Seeds

CPU = torch.device("cpu")


def same_png(pixels, expected):
    """Pixels [3, H, W] equal those of an official PNG [H, W, 3], but for the rounding of a few."""
    apart = (pixels.permute(1, 2, 0).int() - expected.int()).abs()
    assert apart.max() <= 1
    assert apart.count_nonzero() <= 2


def test_pictures_are_those_of_the_official_code():
    with GoldenFile("gansformer/vis_16") as golden:
        images = sampling.quantise(golden["in/img"])
        attention, share = golden["in/att"], golden.config["alpha"]  # [N, m, layers, heads, R, R]
        # The official maps are enlarged; ours are as small as their layer.
        by_layer = [
            attention[:, :, layer, 0, :: 16 // side, :: 16 // side]
            for layer, side in enumerate((4, 8, 8, 16, 16))
        ]
        drawn = {
            folder: attention_visualization.draw_shares(kind, by_layer[-1], images, share)
            for folder, kind in (
                ("maps", "argmax"),
                ("softmaps", "soft"),
                ("blends", "blend"),
                ("softblends", "softblend"),
            )
        }
        for layer, shares in enumerate(by_layer):
            drawn[f"layer {layer}"] = attention_visualization.draw_shares("argmax", shares, images, share)
        for index in range(len(images)):
            same_png(images[index], golden[f"png/images/{index:06d}"])
            for folder in ("maps", "softmaps", "blends", "softblends"):
                same_png(drawn[folder][index], golden[f"png/{folder}/{index:06d}"])
            for layer in range(len(by_layer)) if index < 2 else ():
                same_png(drawn[f"layer {layer}"][index], golden[f"png/layer_maps/{index:06d}/l{layer}_h0"])
        torch.testing.assert_close(attention_visualization.palette(4), golden["in/palette_minus1_1"])
        for count in (2, 3, 8, 16):
            torch.testing.assert_close(attention_visualization.palette(count), golden[f"palette/{count}"])
        assert golden["latents_w_npy0"].shape == (
            5,
            12,
        )  # the styles of the first image, without their network


def test_latents_that_share_the_first_place_add_their_colours():
    shares = torch.tensor([0.4, 0.4, 0.2]).view(1, 3, 1, 1)
    expected = attention_visualization.palette(3)[:2].sum(0)
    torch.testing.assert_close(attention_visualization.argmax_map(shares)[0, :, 0, 0], expected)


def test_heat_runs_from_black_to_its_lightest_at_the_maximum():
    row = torch.tensor([[[0.0, 0.1], [0.2, 0.4]]])
    levels = sampling.quantise(attention_visualization.heat_map(row)).float().mean(1).flatten()
    assert levels[0] == 0
    assert bool((levels.diff() > 0).all())
    torch.testing.assert_close(
        attention_visualization.heat_map(row / 7), attention_visualization.heat_map(row)
    )


def test_heat_over_an_image_covers_the_most_looked_at_cell_and_leaves_the_rest_grey():
    row = torch.zeros(1, 2, 2)
    row[0, 1, 0] = 1.0
    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    image[:, 1] = 200
    drawn = attention_visualization.draw_heat("softblend", row, image, 0.3)[0].float()
    assert bool((drawn[:, :2] == drawn[:1, :2]).all())  # grey
    assert bool((drawn[:, 2:, 2:] == drawn[0, 0, 0]).all())
    covered = drawn[:, 2:, :2].flatten(1)
    expected = 0.7 * torch.tensor([255.0, 255, 180]) + 0.3 * drawn[0, 0, 0]
    torch.testing.assert_close(covered, expected[:, None].expand(-1, 4), atol=2, rtol=0)
    assert torch.equal(
        attention_visualization.draw_heat("softblend", row, image, 1.0)[0],
        drawn[:, :1, :1].byte().expand(3, 4, 4),
    )


# --- views ------------------------------------------------------------------------------------------------


def small_transgan():
    torch.manual_seed(0)
    section = presets.load(
        overrides=[
            "data.resolution=16",
            "discriminator.resolution=16",
            "generator.latent_dim=8",
            "generator.base_dim=32",
            "generator.base_size=4",
            "generator.depths=[1,1,2]",
            "generator.heads=2",
            "generator.rgb_patch=1",
        ],
        preset="transgan-tiny",
    ).generator
    return models.build(section).eval().requires_grad_(False)


def row_of(generator, seed=7, **view):
    view = attention_visualization.completed(generator, View(**view))
    return attention_visualization.pictures(generator, seed, view, CPU)


def pictures(generator, seed=7, **view):
    return row_of(generator, seed, **view).pictures


def test_image_and_maps_are_of_one_pass_and_truncated_unless_asked_otherwise():
    generator = styled("ganformer")
    for given, psi in ((None, 0.7), (Truncation(1.0), 1.0)):
        view = attention_visualization.completed(generator, View(truncation=given))
        image, maps = attention_visualization.observe(generator, 7, view, CPU)
        z = random.for_seeds(spec_of_one(generator), [7], CPU)["z"]
        ws = truncate(generator, generator.mapping(z), psi)
        expected, of_last = generator.observe(ws)
        assert torch.equal(image, sampling.quantise(expected))
        assert list(maps) == ["16x16.1"]
        assert torch.equal(maps["16x16.1"], of_last["16x16.1"])


def test_noise_is_what_the_network_stores_or_the_seeds_own():
    generator = styled("ganformer")
    view = attention_visualization.completed(generator, View(truncation=Truncation(1.0)))
    stored, _ = attention_visualization.observe(generator, 7, view, CPU)
    own, _ = attention_visualization.observe(generator, 7, dataclasses.replace(view, stored_noise=False), CPU)
    generated = next(sampling.sample(generator, [7], batch=1, device=CPU))
    assert (own.int() - generated.int()).abs().max() <= 1
    assert (stored.int() - generated.int()).abs().max() > 1


def test_what_is_drawn_by_default():
    ganformer, transgan = styled("ganformer"), small_transgan()
    assert [picture.name for picture in pictures(ganformer)] == [
        "image",
        "16x16.1.head0.argmax",
        "16x16.1.head0.blend",
    ]
    layers = ["4x4.0", "8x8.0", "8x8.1", "16x16.0", "16x16.1"]
    assert [picture.name for picture in pictures(ganformer, layer="all")] == [
        "image",
        *(f"{layer}.head0.argmax" for layer in layers),
    ]
    assert [picture.name for picture in pictures(transgan)] == ["image", "16x16.1.mean.softblend"]
    assert [picture.name for picture in pictures(transgan, layer="8x8.0", head="all", kinds=("soft",))] == [
        "image",
        "8x8.0.head0.soft",
        "8x8.0.head1.soft",
    ]


def test_all_pictures_have_the_size_of_the_cropped_image():
    for picture in pictures(small_transgan(), layer="all", ratio=0.5):
        assert picture.pixels.shape == (3, 8, 16)


def test_the_cell_that_asks_is_where_the_pixel_is():
    drawn = pictures(small_transgan(), layer="all", query=(15, 6))
    assert [picture.box for picture in drawn] == [
        (15, 6, 1, 1),  # in the image, as in the last map
        (12, 4, 4, 4),
        (14, 6, 2, 2),
        (15, 6, 1, 1),
        (15, 6, 1, 1),
    ]


def test_the_pixel_that_asks_is_counted_in_the_cropped_image():
    (_, whole) = pictures(small_transgan(), layer="8x8.0", kinds=("soft",), query=(15 - 4, 6))
    (_, cropped) = pictures(small_transgan(), layer="8x8.0", kinds=("soft",), query=(7, 6), ratio=0.5)
    assert whole.box == (10, 6, 2, 2)
    assert cropped.box == (10 - 4, 6, 2, 2)
    assert torch.equal(cropped.pixels, whole.pixels[:, 4:12])
    with pytest.raises(UsageError, match="no pixel 8,0 in an image of 8 rows and 16 columns"):
        pictures(small_transgan(), query=(8, 0), ratio=0.5)


@pytest.mark.parametrize(
    ("family", "view", "complaint"),
    [
        ("stylegan2", {}, "no attention maps"),
        ("ganformer", {"query": (1, 1)}, "omit --query"),
        ("ganformer", {"kinds": ("heat",)}, "cannot be drawn as 'heat'"),
        ("ganformer", {"head": "1"}, "has no head 1: it has 1"),
        ("ganformer", {"head": "first"}, "no head 'first'"),
        ("ganformer", {"layer": "16x16.2"}, r"no attention layer '16x16.2' \(did you mean '16x16.1'"),
        ("transgan", {"query": (3, 16)}, "no pixel 3,16 in an image of 16 rows"),
        ("transgan", {"kinds": ("argmax",)}, "cannot be drawn as 'argmax': choose from soft, softblend"),
        ("transgan", {"truncation": Truncation(0.7)}, "needs a network with styles"),
    ],
)
def test_views_that_make_no_sense(family, view, complaint):
    generator = small_transgan() if family == "transgan" else styled(family)
    with pytest.raises(UsageError, match=complaint):
        pictures(generator, **view)


def test_the_default_query_is_the_position_whose_attention_varies_most():
    generator = small_transgan()
    given = random.for_seeds(spec_of_one(generator), [7], CPU)["z"]
    variances = {}
    for y in range(16):
        for x in range(16):
            _, maps = generator.follow(given, ((y + 0.5) / 16, (x + 0.5) / 16))
            variances[y, x] = maps["16x16.1"].mean(1).var()
    table = torch.tensor([[variances[y, x] for x in range(16)] for y in range(16)])
    smooth = torch.nn.functional.avg_pool2d(table[None], 3, stride=1, padding=1)[0]
    row = row_of(generator)
    assert row.query == divmod(int(smooth.argmax()), 16)
    assert row.latents == 0
    smooth[:4] = smooth[12:] = 0
    y, x = divmod(int(smooth.argmax()), 16)
    assert row_of(generator, ratio=0.5).query == (y - 4, x)


# --- sheets -----------------------------------------------------------------------------------------------


def test_a_sheet_has_names_once_seeds_and_queries_on_the_left_and_a_colour_bar():
    rows = [row_of(small_transgan(), seed, query=(3, 4), layer="all") for seed in (7, 8)]
    sheet = attention_visualization.sheet(rows, note="a title")
    assert (sheet.columns, sheet.factor, sheet.title) == (5, 8, "a title")
    assert sheet.header[:2] == ["image", "4x4.0 mean softblend"]
    assert sheet.side == ["seed 7\nquery\n3,4", "seed 8\nquery\n3,4"]
    assert sheet.cells[0].caption == ""
    assert sheet.cells[1].caption.startswith("max ")
    (bar,) = sheet.legends
    assert (bar.low, bar.high) == ("0", "max")
    assert bar.colours[:, 0].tolist() == [0, 0, 0]
    assert bar.colours[:, -1].tolist() == [255, 255, 180]


def test_the_legend_of_latents_has_their_colours():
    sheet = attention_visualization.sheet([row_of(styled("ganformer"))])
    (swatches,) = sheet.legends
    assert [name for _, name in swatches.entries] == ["0", "1", "2"]
    colours = sampling.quantise(attention_visualization.palette(3)[:, :, None, None]).flatten(1)
    assert [list(colour) for colour, _ in swatches.entries] == colours.tolist()
    assert sheet.side == ["seed 7"]
    assert sheet.header[1] == "16x16.1 head 0 argmax"


def test_large_pictures_stay_as_they_are_unless_asked_otherwise():
    pixels = torch.randint(0, 256, (3, 200, 300), dtype=torch.uint8)
    rows = [Row(7, [Picture("image", pixels)], latents=3)]
    assert attention_visualization.sheet(rows).factor == 1
    assert attention_visualization.sheet(rows, 3).factor == 3


def test_a_folder_contains_every_picture_unchanged(tmp_path):
    generator = styled("ganformer")
    rows = [row_of(generator, seed) for seed in (7, 8)]
    names = attention_visualization.save(tmp_path / "maps", [7, 8], iter(rows), {"Software": "gantx"})
    assert names == ["image", "16x16.1.head0.argmax", "16x16.1.head0.blend"]
    assert len(list((tmp_path / "maps").iterdir())) == 6
    for row in rows:
        for picture in row.pictures:
            with Image.open(tmp_path / "maps" / f"seed-{row.seed:06d}.{picture.name}.png") as file:
                assert file.text == {
                    "Software": "gantx",
                    "gantx:seed": str(row.seed),
                    "gantx:picture": picture.name,
                }
                assert list(file.tobytes()) == picture.pixels.permute(1, 2, 0).flatten().tolist()


def test_a_sheet_that_cannot_fit_is_refused_after_its_first_row(tmp_path):
    rows = itertools.repeat(row_of(styled("ganformer"), 7))
    with pytest.raises(MissingError, match="name fewer seeds, or a folder"):
        attention_visualization.save(tmp_path / "a.png", Seeds([range(10**12)]), rows, {})
    assert list(tmp_path.iterdir()) == []
