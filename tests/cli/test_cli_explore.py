"""`gantx interpolate`, `mix`, `project`, and what `sample` can do with styles and pictures."""

import shutil

import numpy as np
import pytest
from helpers.styled_networks import save_styled
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

from gantx.cli import app


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments):
    result = run(*arguments, "--device", "cpu")
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments, code=2):
    result = run(*arguments)
    assert result.exit_code == code, result.output
    return " ".join(result.stderr.split())


RAW = ("--scale", "1", "--no-labels")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / "runs"
    for family in ("ganformer", "stylegan2"):
        save_styled(folder / f"0001-{family}" / "checkpoints", family)
    return folder


@pytest.fixture
def ganformer(runs, tmp_path, monkeypatch):
    """The run; the test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return runs / "0001-ganformer"


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_walk_passes_the_images_of_its_seeds(ganformer):
    result = done("interpolate", ganformer, "--seeds", "1,5,9", "--frames", 7, "--loop", "-o", "frames")
    assert result.stdout.strip() == "frames"
    done("sample", ganformer, "--seeds", "1,5,9", "-o", "images")
    for frame, seed in ((0, 1), (2, 5), (4, 9), (6, 1)):
        image = pixels(f"images/seed-{seed:06d}.png")
        assert np.array_equal(pixels(f"frames/frame-{frame:06d}.png"), image), frame
    with Image.open("frames/frame-000001.png") as image:
        assert image.text["gantx:walk"] == "1,5,9"
        assert image.text["gantx:space"] == "w"


def test_walks_side_by_side_and_film_strips(ganformer):
    done("interpolate", ganformer, "--grid", "3x2", "--frames", 5, "--truncation", "0:1", "-o", "walk.gif")
    with Image.open("walk.gif") as image:
        assert image.size == (3 * 132 - 4, 2 * 132 - 4)  # eight times
        assert image.n_frames == 5
        assert b"gantx:truncation=0.0:1.0" in image.info["comment"]
    walk = ("interpolate", ganformer, "--seeds", "3,4", "--easing", "smooth")
    done(*walk, "-o", "raw.png", "--scale", "1", "--no-labels")
    assert pixels("raw.png").shape == (16, 10 * 18 - 2, 3)
    done(*walk, "-o", "strip.png")
    strip = pixels("strip.png")
    above = strip.shape[0] - 128
    assert strip.shape[1] == 10 * 132 - 4
    assert np.array_equal(strip[above::8, :128:8], pixels("raw.png")[:, :16])
    named = [column for column in range(10) if strip[:above, column * 132 : column * 132 + 128].min() < 100]
    assert named == [0, 9]
    done(*walk, "--frames", 4, "-o", "strip.jpg")
    with Image.open("strip.jpg") as image:
        assert "gantx:walk=3,4" in image.getexif()[0x010E]


def test_wrong_walks_are_refused_before_anything_is_written(ganformer, tmp_path):
    assert "10 seeds cannot be shared" in refused("interpolate", ganformer, "--seeds", "0-9", "--grid", "4x1")
    one = refused("interpolate", ganformer, "--seeds", "3")
    assert "name two or more" in one
    assert "--truncation 0:1" in one
    assert "use .gif" in refused("interpolate", ganformer, "-o", "walk.avi")
    assert "at most 50" in refused("interpolate", ganformer, "--fps", 60)
    for output in ("walk.png", "frames"):
        assert "--fps is for an animation" in refused("interpolate", ganformer, "--fps", 10, "-o", output)
    assert "at least 4" in refused("interpolate", ganformer, "--frames", 2)
    assert "no such checkpoint" in refused("interpolate", "nothing", code=3)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "walk.gif").write_bytes(b"mine")
    assert "already exists" in refused("interpolate", ganformer)


def test_truncated_images_are_generated_again_from_the_picture(ganformer, runs, monkeypatch):
    done("sample", ganformer, "--seeds", "3,7", "--truncation", "0.5", "-o", "grid.png")
    with Image.open("grid.png") as image:
        assert image.text["gantx:truncation"] == "0.5"
    assert "same to the last bit" in done("sample", ganformer, "--from", "grid.png").stdout
    picture = ganformer.parent.parent / "grid.png"
    shutil.copy("grid.png", picture)
    monkeypatch.chdir(runs.parent)
    result = done("sample", "--from", "grid.png")  # finds the run by itself
    assert "0001-ganformer" in result.stdout
    for more in (("-n", 3), ("--weights", "raw"), ("--dtype", "float32"), ("-f",)):
        assert "name nothing else" in refused("sample", "--from", "grid.png", *more)
    monkeypatch.chdir(picture.parent)
    for name, options in (
        ("labels.png", ("--labels", "--scale", 3)),
        ("raw.png", ("--scale", 1)),
        ("a.webp", ()),
    ):
        done("sample", ganformer, "--seeds", "3,7,9", *options, "-o", name)
        assert "same to the last bit" in done("sample", ganformer, "--from", name).stdout, name
        (picture.parent / name).unlink()
    done("sample", ganformer, "-n", 2, "-o", "lossy.jpg")
    assert "does not keep exact pixels" in refused("sample", ganformer, "--from", "lossy.jpg")
    (picture.parent / "lossy.jpg").unlink()
    assert "has the weights" in refused("sample", runs / "0001-stylegan2", "--from", "grid.png", code=3)


def test_a_picture_that_was_changed_fails_the_comparison(ganformer, tmp_path):
    done("sample", ganformer, "-n", 1, "-o", "one.png")
    with Image.open("one.png") as image:
        changed, text = image.point(lambda level: 255 - level), image.info
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, value in text.items():
        chunks.add_text(key, value)
    changed.save("changed.png", pnginfo=chunks)
    result = run("sample", ganformer, "--from", "changed.png")
    assert result.exit_code == 1
    assert "1 of 1 pictures differ" in " ".join(result.stderr.split())


def test_sampling_needs_something_to_generate_from(ganformer):
    assert "name a run" in refused("sample")
    assert "give the truncation too" in refused("sample", ganformer, "--truncation-cutoff", 2)


def test_a_table_of_mixed_styles(ganformer, runs):
    mix = ("mix", ganformer, "--rows", "1-2", "--columns", "5-7", "--components", "0-1")
    done(*mix, "-o", "mix.png", "--scale", "1", "--no-labels")
    table = pixels("mix.png")
    assert table.shape == (3 * 18 - 2, 4 * 18 - 2, 3)
    done("sample", ganformer, "--seeds", "1", "-o", "one.png")
    assert np.array_equal(table[18:34, :16], pixels("one.png"))
    done(*mix, "-o", "large.png")
    large = pixels("large.png")
    assert large.shape[0] > 3 * 128
    assert np.array_equal(large[-136:-8:8, -136:-8:8], table[-16:, -16:])
    assert "several latents" in refused("mix", runs / "0001-stylegan2", "--components", "0", "-o", "x.png")
    assert "already exists" in refused("mix", ganformer, "--layers", "0")


def test_the_coarse_half_of_the_layers_is_mixed_by_default(runs, tmp_path):
    how = ("mix", runs / "0001-stylegan2", "--rows", "1", "--columns", "5")
    done(*how, "-o", tmp_path / "a.png")
    done(*how, "--layers", "0-2", "-o", tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["gantx:layers"] == "0-2"
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


def test_a_projected_image_is_sampled_from_its_latents(ganformer):
    done("sample", ganformer, "--seeds", "900", "-o", "target.png")
    result = done("project", "target.png", ganformer, "-o", "found.png", "--steps", 3, "--starts", 1, *RAW)
    assert result.stdout.split() == ["found.png", "found.safetensors"]
    with safe_open("found.safetensors", "pt") as file:
        assert file.get_tensor("latents").shape == (1, 4, 7, 8)
    done("sample", ganformer, "--latents", "found.safetensors", "-o", "again.png")
    pair = pixels("found.png")
    assert np.array_equal(pair[:, :16], pixels("target.png"))
    assert np.array_equal(pair[:, 18:], pixels("again.png"))
    assert "already exists" in refused("project", "target.png", ganformer, "-o", "found.png")
    assert "there is no image" in refused("project", "nothing.png", ganformer, "-o", "x.png", code=3)
    assert "add --features" in refused(
        "project", "target.png", ganformer, "-o", "x.png", "--feature-file", "w.pt"
    )


def test_an_output_that_cannot_be_written_is_said_before_the_work(ganformer, tmp_path, monkeypatch):
    done("sample", ganformer, "--seeds", "900", "-o", "target.png")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("gantx.api.load", lambda *_, **__: pytest.fail("the work has begun"))
    for output, latents in (("file/x.png", "x.safetensors"), ("x.png", "file/x.safetensors")):
        said = refused("project", "target.png", ganformer, "-o", output, "--latents", latents, code=3)
        assert "cannot write file/x" in said
    for output in ("file/x.png", "file/x.npy", "file/x.zip"):
        assert "cannot write file/x" in refused("sample", ganformer, "-o", output, code=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "target.png"]
