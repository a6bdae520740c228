"""Every command of docs/data.md runs as it stands there, on small sets and for a few steps.

Blocks are found by themselves: a command is a line that begins with `gantx` in a block of code. The data that
it names is made by `sets`, and any other folder `./name` is a folder of pictures.
"""

import contextlib
import importlib.util
import itertools
import re
import shlex
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from gantx.cli import app

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "data.md"
# The last value of a setting counts.
SHORT = ["--kimg", "0.016", "--batch", "8", "--device", "cpu", "training.samples=4", "data.shapes.count=64"]
SMALL = {
    "transgan-tiny": [
        *("generator.latent_dim=8", "generator.base_dim=16", "generator.depths=[1,1]"),
        *("discriminator.dim=12", "discriminator.depth=1"),
    ],
    "ganformer-tiny": [
        *("generator.components=2", "generator.channel_base=128", "generator.channel_max=8"),
        *("generator.mapping_layers=3", "discriminator.channels=4"),
    ],
}
QUICK = {
    "train": lambda words: [*SHORT, *SMALL.get(words[words.index("--preset") + 1], [])],
    "interpolate": lambda words: ["--frames", "4"],
    "eval": lambda words: ["--num", "16", "--metric", "kid"],
}
EXTRAS = {".parquet": "pyarrow", "./database": "lmdb"}


def blocks():
    """The blocks of the document with commands or Python, called by the sections that they are in."""
    found, sections = [], re.split(r"^## (.+)$", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for heading, text in zip(sections[1::2], sections[2::2], strict=True):
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            commands = [
                re.sub(r"\s+#.*", "", line) for line in block.splitlines() if line.startswith("gantx ")
            ]
            if commands or language == "python":
                found.append(pytest.param(commands or block, id=f"{heading}-{len(found)}"))
    return found


def folder_of(path, count, size=lambda number: (40, 32) if number % 2 else (32, 32)):
    path.mkdir(parents=True)
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (*size(number)[::-1], 3), np.uint8)
        Image.fromarray(noise).save(path / f"{number}.png")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder with the sets of the document; those of containers whose package is missing are not made."""
    folder = tmp_path_factory.mktemp("sets")
    folder_of(folder / "pictures", 32)
    for name in ("cat", "dog"):
        folder_of(folder / "animals" / name, 8)
    folder_of(folder / "downloads", 16)
    (folder / "downloads" / "broken.png").write_bytes(b"not an image")
    files = sorted((folder / "pictures").iterdir())
    shutil.make_archive(str(folder / "pictures"), "zip", folder / "pictures")
    (folder / "shards").mkdir()
    for number in range(2):
        with tarfile.open(folder / "shards" / f"{number}.tar", "w") as archive:
            for file in files[number::2]:
                archive.add(file, file.name)
    np.save(folder / "pictures.npy", np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8))
    with contextlib.suppress(ImportError):
        import pyarrow
        from pyarrow import parquet

        images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
        parquet.write_table(pyarrow.table({"image": images}), folder / "pictures.parquet")
    with contextlib.suppress(ImportError):
        import lmdb

        with lmdb.open(str(folder / "database")) as base, base.begin(write=True) as transaction:
            for file in files:
                transaction.put(file.name.encode(), file.read_bytes())
    return folder


@pytest.fixture
def here(sets, tmp_path, monkeypatch):
    """A working folder of its own with links to the sets."""
    monkeypatch.chdir(tmp_path)
    for path in sets.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.mark.parametrize("block", blocks())
def test_what_the_document_shows_runs(block, here):
    if isinstance(block, str):
        exec(compile(block, str(DOCUMENT), "exec"), {})
        return
    skipped = []
    for command in block:
        words = shlex.split(command)[1:]
        packages = {EXTRAS[end] for word in words for end in EXTRAS if word.endswith(end)}
        if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
            skipped.append(f"{command} needs {missing[0]}")
            continue
        for word in words:
            if re.fullmatch(r"\./[\w-]+", word) and not (here / word).exists():
                (here / word).symlink_to(here / "pictures")
        words += QUICK.get(words[0], lambda words: [])(words)
        words += ["--no-probe"] if "--dry-run" in words else []
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, f"{command}\n{result.output}"
        for output in (after for word, after in itertools.pairwise(words) if word == "-o"):
            assert (here / output).exists(), command
    if skipped:
        pytest.skip("; ".join(skipped))


def test_every_section_for_users_has_commands():
    """The search above finds the blocks: a change of how they are written would leave the test empty."""
    headings = " ".join(param.id for param in blocks())
    for heading in ("My folder of images", "What is accepted", "Classes", "Bad images", "Shapes"):
        assert heading in headings
