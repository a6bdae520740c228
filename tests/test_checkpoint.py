"""Checkpoints: round trips, and every way a file can be wrong."""

import json
import os
import struct
import subprocess
import sys

import pytest
import torch
from helpers.flipped_bits import COUNTS, flips, header_size
from safetensors.torch import save_file

from gantx import checkpoint
from gantx.config import presets
from gantx.errors import CheckpointError, DivergedError, MissingError, UsageError

TENSORS = {
    "generator_ema.weight": torch.arange(6.0).view(2, 3),
    "generator.weight": torch.ones(3),
    "optimizer.generator.weight.step": torch.tensor(3.0),
}


def write(path, tensors=TENSORS):
    settings = presets.load("transgan-tiny")
    progress = {"images": 4096, "iteration": 256, "seconds": 1.0, "observations": {}}
    checkpoint.write(path, tensors, config=settings, progress=progress, data={"name": "x", "digest": "f"})
    return settings


def rewritten(path, **metadata):
    """Replace entries of the header of a checkpoint and leave its digests out, as before there were any."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    head = json.loads(raw[8 : 8 + size])
    head["__metadata__"] |= metadata
    for key in ("header_sha256", "tensor_sha256"):
        head["__metadata__"].pop(key, None)
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


def test_round_trip(tmp_path):
    path = tmp_path / "deep" / "kimg-000004.096.safetensors"
    settings = write(path)
    header = checkpoint.read_header(path)
    assert header.config == settings
    assert header.images == 4096
    assert header.versions["torch"] == torch.__version__
    assert header.data == {"name": "x", "digest": "f"}
    part = checkpoint.read_part(header, "generator_ema")
    assert list(part) == ["weight"]
    torch.testing.assert_close(part["weight"], TENSORS["generator_ema.weight"])
    assert list(checkpoint.read_part(header, "optimizer")) == ["generator.weight.step"]
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing is left beside the file"
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode, "whoever may read files may read checkpoints"


def test_a_tensor_that_is_not_finite_is_never_written(tmp_path):
    path = tmp_path / "c.safetensors"
    write(path)
    before = path.read_bytes()
    with pytest.raises(DivergedError, match=r"generator\.weight is not finite"):
        write(path, {**TENSORS, "generator.weight": torch.tensor([1.0, float("nan")])})
    assert path.read_bytes() == before


def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "c.safetensors"
    write(path)
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    header = checkpoint.read_header(path)

    def damaged(part):
        try:
            checkpoint.read_part(header, part)
        except CheckpointError as problem:
            return "do not match their digest" in str(problem)
        return False

    assert [damaged(part) for part in header.digests].count(True) == 1


def everything(path):
    """All that can be read of a checkpoint."""
    header = checkpoint.read_header(path)
    parts = {part: checkpoint.read_part(header, part) for part in header.digests}
    values = {f"{part}.{name}": t.tolist() for part in parts for name, t in parts[part].items()}
    return header, values


@pytest.mark.parametrize("count", COUNTS)
def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path, count):
    path = tmp_path / "c.safetensors"
    write(path)
    whole = everything(path)
    found = 0
    for place in flips(path, count, header_size(path)):
        try:
            assert everything(path) == whole, place
        except CheckpointError:
            found += 1
    assert found == count


def test_what_is_damaged_is_named_with_the_checkpoint_before(tmp_path):
    older, path = (tmp_path / checkpoint.checkpoint_name(images) for images in (2048, 4096))
    write(older)
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(TENSORS["generator.weight"].numpy().tobytes(), bytes(12)))
    with pytest.raises(
        CheckpointError, match=rf"digest \(generator\.weight\); the checkpoint before is {older}"
    ):
        checkpoint.read_part(checkpoint.read_header(path), "generator")
    path.write_bytes(whole.replace(b"iteration", b"iteratiom"))
    with pytest.raises(CheckpointError, match=f"header does not match its digest; .* before is {older}"):
        checkpoint.read_header(path)


def test_a_file_without_digests_of_its_header_is_read_and_marked(tmp_path):
    path = tmp_path / "c.safetensors"
    write(path)
    assert checkpoint.read_header(path).sealed
    rewritten(path)
    header, values = everything(path)
    assert not header.sealed
    assert values["generator.weight"] == [1, 1, 1]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"progress": '{"images": 4096, "iteration": 255}'},
            "iteration 255 of 16 images each is not at 4096",
        ),
        ({"progress": '{"iteration": 256}'}, "it lacks 'images'"),
        ({"progress": '{"images": "many"}'}, "images is 'many'"),
        ({"progress": '{"images": -16}'}, "images is -16"),
        ({"progress": '{"images": 1e999}'}, "images is inf"),
        ({"progress": '{"images": 0, "seconds": NaN}'}, "seconds is nan"),
        ({"progress": '{"images": 0, "observations": [1]}'}, r"observations is \[1\]"),
        ({"progress": '{"images": 0, "observations": {"x": "y"}}'}, "x is 'y'"),
        ({"progress": "[]"}, "its progress is no object"),
        ({"data": "null"}, "its data is no object"),
        ({"digests": '{"generator": 3}'}, "its digests are no texts"),
        ({"versions": "{"}, "JSONDecodeError"),
        ({"config": "[" * 100_000}, "RecursionError"),
        ({"config": '{"training": {"kimg": ' + "9" * 5000 + "}}"}, "ValueError"),
    ],
)
def test_absurd_fields_are_refused_in_a_sentence(tmp_path, entries, message):
    path = tmp_path / "c.safetensors"
    write(path)
    rewritten(path, **entries)
    with pytest.raises(CheckpointError, match=f"has a damaged header: .*{message}"):
        checkpoint.read_header(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"\x80\x04pickled", "gantx import"), (b"noise", "not a readable safetensors")],
)
def test_corrupt_files_are_refused(tmp_path, content, message):
    path = tmp_path / "c.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read_header(path)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    write(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"is cut off: [\d,]+ of [\d,]+ bytes; copy"):
        checkpoint.read_header(path)


def test_foreign_safetensors_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="no gantx checkpoint"):
        checkpoint.read_header(path)


def test_another_format_version_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    write(path)
    rewritten(path, format_version="99")
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.read_header(path)


def test_a_configuration_of_another_version_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    settings = write(path)
    tree = settings.model_dump(mode="json")
    tree["generator"]["family"] = "vitgan2"
    rewritten(path, config=json.dumps(tree))
    with pytest.raises(CheckpointError, match=r"does not know: generator\.family"):
        checkpoint.read_header(path)


def test_a_missing_part_and_misfitting_weights_are_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    write(path)
    header = checkpoint.read_header(path)
    with pytest.raises(CheckpointError, match="has no weights called discriminator"):
        checkpoint.read_part(header, "discriminator")
    with pytest.raises(CheckpointError, match="does not fit the network"):
        checkpoint.load_into(torch.nn.Linear(2, 2), checkpoint.read_part(header, "generator_ema"), path)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    """The limit on file size stands in for the disk; the child ignores the signal and sees the error."""
    path = tmp_path / "c.safetensors"
    write(path)
    before = path.read_bytes()
    script = (
        "import resource, signal, sys, torch; from pathlib import Path\n"
        "from gantx import checkpoint\n"
        "from gantx.config import presets\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    checkpoint.write(Path(sys.argv[1]), {'generator.w': torch.ones(9999)}, config=presets.load(), "
        "progress={}, data={})\n"
        "except checkpoint.MissingError as problem:\n"
        "    print(problem); sys.exit(problem.exit_code)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.returncode == 3, result.stderr
    assert f"cannot write {path}" in result.stdout
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MissingError, match="cannot write"):
        write(tmp_path / "file" / "c.safetensors")


def test_find_accepts_a_run_a_folder_and_a_file(tmp_path):
    run = tmp_path / "0001-run"
    for images in (500, 20_000, 1000):
        write(run / "checkpoints" / checkpoint.checkpoint_name(images))
    latest = run / "checkpoints" / "kimg-000020.000.safetensors"
    assert checkpoint.find(run) == latest
    assert checkpoint.find(run / "checkpoints") == latest
    assert checkpoint.find(latest) == latest
    checkpoint.prune(run / "checkpoints", 2)
    assert [p.name for p in checkpoint.all_in(run / "checkpoints")] == [
        "kimg-000001.000.safetensors",
        "kimg-000020.000.safetensors",
    ]


def test_find_explains_what_is_not_there(tmp_path):
    with pytest.raises(MissingError, match="no such checkpoint or run"):
        checkpoint.find(tmp_path / "nothing")
    with pytest.raises(MissingError, match="no checkpoint in"):
        checkpoint.find(tmp_path)
    write(tmp_path / "a.safetensors")
    assert checkpoint.find(tmp_path).name == "a.safetensors"
    write(tmp_path / "b.safetensors")
    with pytest.raises(UsageError, match="2 safetensors files"):
        checkpoint.find(tmp_path)
