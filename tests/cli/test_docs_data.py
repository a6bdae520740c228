"""The commands that docs/data.md gives for a folder of images run as they stand there."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from gantx.cli import app

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "data.md"
SMALL = ["--kimg", "0.016", "--batch", "8", "--device", "cpu", "training.samples=4"]


def commands(heading):
    """The commands of the first block below a heading."""
    section = DOCUMENT.read_text().split(f"\n## {heading}\n", 1)[1]
    block = re.search(r"```bash\n(.*?)```", section, re.S)[1]
    return [re.sub(r"\s+#.*", "", line) for line in block.splitlines()]


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """The working folder with `pictures`: enough for a sheet, some of them larger than the network."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for number in range(32):
        size = (40, 32) if number % 2 else (32, 32)
        noise = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "pictures" / f"{number}.png")
    return tmp_path


def test_the_commands_for_my_folder_of_images(pictures):
    found = commands("My folder of images")
    assert len(found) == 4
    for command in found:
        arguments = shlex.split(command)[1:]
        if arguments[0] == "train":
            arguments += SMALL + (["--no-probe"] if "--dry-run" in arguments else [])
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{command}\n{result.output}"
    assert (pictures / "seen.png").is_file()
    assert list((pictures / "runs").glob("0001-*/checkpoints/*.safetensors"))
