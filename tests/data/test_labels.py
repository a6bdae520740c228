"""Labels of images, from every place that they may stand in."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from gantx.config.schema import DataConfig
from gantx.data import labels as module
from gantx.data.batches import Batches
from gantx.data.prepare import prepare
from gantx.errors import DataError

IMAGES = {f"{animal}/{number}.png": animal for animal in ("cat", "dog", "owl") for number in range(2)}


def png(seed):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def packed(path, files, images=tuple(IMAGES)):
    """A zip or a folder of the images and of further files."""
    entries = {name: png(number) for number, name in enumerate(images)} | files
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
    else:
        for name, content in entries.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def made(path, **how):
    return prepare(DataConfig(source=str(path), resolution=8), log=lambda text: None, **how)


def dataset(labels):
    return {"dataset.json": json.dumps({"labels": labels})}


FLAT = [f"img{number}.png" for number in range(6)]
SOURCES = {
    "folders": (IMAGES, {}),
    "dataset.json with numbers": (FLAT, dataset([[name, i // 2] for i, name in enumerate(FLAT)])),
    "dataset.json with names": (
        FLAT,
        dataset([[n, ("cat", "dog", "owl")[i // 2]] for i, n in enumerate(FLAT)]),
    ),
    "csv": (FLAT, {"labels.csv": "".join(f"{name},{i // 2}\n" for i, name in enumerate(FLAT))}),
    "csv with a header": (
        FLAT,
        {"labels.csv": "id,class,file\n" + "".join(f"x,c{i // 2},{name}\n" for i, name in enumerate(FLAT))},
    ),
    "inside a folder": (
        [f"all/{name}" for name in FLAT],
        {"all/dataset.json": json.dumps({"labels": [[name, 3 * (i // 2)] for i, name in enumerate(FLAT)]})},
    ),
}


def test_the_same_images_and_classes_have_one_digest_wherever_they_come_from(tmp_path):
    digests = set()
    for number, (images, files) in enumerate(SOURCES.values()):
        for suffix in ("", ".zip"):
            prepared = made(packed(tmp_path / f"set{number}{suffix}", files, images), labels=True)
            assert prepared.labels.tolist() == [0, 0, 1, 1, 2, 2]
            assert len(prepared.class_names) == 3
            assert not prepared.unread_labels
            digests.add(prepared.labelled_digest)
    assert len(digests) == 1
    other = packed(tmp_path / "other", dataset([[name, i % 3] for i, name in enumerate(FLAT)]), FLAT)
    assert made(other, labels=True).labelled_digest not in digests


def test_a_tar_of_class_folders_has_the_same_digest(tmp_path):
    folder = packed(tmp_path / "set", {})
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(folder, "set")
    prepared = made(tmp_path / "set.tar", labels=True)
    assert prepared.labelled_digest == made(folder, labels=True).labelled_digest


def test_names_of_classes(tmp_path):
    images, files = SOURCES["inside a folder"]
    assert made(packed(tmp_path / "a", files, images), labels=True).class_names == ("0", "3", "6")
    images, files = SOURCES["csv with a header"]
    assert made(packed(tmp_path / "b", files, images), labels=True).class_names == ("c0", "c1", "c2")


def test_without_a_wish_for_labels_a_file_of_them_changes_nothing(tmp_path):
    plain = made(packed(tmp_path / "a.zip", {}))
    told = made(packed(tmp_path / "b.zip", dataset([["cat/0.png", 7]])))
    assert told.fingerprint == plain.fingerprint
    assert (told.unread_labels, plain.unread_labels) == ("dataset.json", "")
    none = made(packed(tmp_path / "c.zip", {"dataset.json": '{"labels": null}'}))
    assert (none.fingerprint, none.unread_labels) == (plain.fingerprint, "")


def test_a_dataset_json_that_says_none_wins_over_folders(tmp_path):
    prepared = made(packed(tmp_path / "a", {"dataset.json": '{"labels": null}'}), labels=True)
    assert (prepared.labels, prepared.class_names) == (None, ())


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (dataset([["cat/0.png", 1]]), "gives no label to 5 of 6 images, for example cat/1.png"),
        (dataset([["cat/0.png", [0.5, 1]]]), "a class is one number or name"),
        (dataset([["cat/0.png", 0.5]]), "the label of 'cat/0.png' is 0.5"),
        (dataset([["cat/0.png", 0], ["cat/0.png", 1]]), "two labels, 0 and 1"),
        (dataset([["cat/0.png"]]), r"not \[file, label\]"),
        (dataset([[name, -1] for name in IMAGES]), "a label is -1"),
        ({"dataset.json": '{"labels": {"a": 1}}'}, r"not a list of \[file, label\]"),
        ({"dataset.json": "{"}, "dataset.json does not give labels"),
        ({"dataset.json": "[" * 100000}, "dataset.json does not give labels"),
        ({"dataset.json": b"\xff\xfe"}, "dataset.json does not give labels"),
        ({"labels.csv": "cat/0.png\n"}, "the line 'cat/0.png' is not file,label"),
        ({"labels.csv": "cat/0.png,\n"}, "is not file,label"),
    ],
)
def test_files_that_are_wrong_are_refused_in_one_sentence(tmp_path, files, words):
    path = packed(tmp_path / "set.zip", files)
    with pytest.raises(DataError, match=words):
        made(path, labels=True)
    assert made(path).class_names == ("cat", "dog", "owl")  # without a wish for labels nothing is read


def test_the_files_nearest_to_the_top_count():
    images = ("train/a/1.png", "train/b/1.png")
    files = ["train/a/labels.csv", "train/labels.csv", "train/dataset.json", "test/dataset.json"]
    assert module.choose(files, images) == ("train/dataset.json",)
    assert module.choose([], images) == ()


@pytest.mark.parametrize("resident", ["device", "stream"])
def test_labels_stay_with_their_images(tmp_path, resident):
    prepared = made(packed(tmp_path / "set", {}))
    batches = Batches(prepared, seed=3, mirror=True, device=torch.device("cpu"), resident=resident)
    assert batches.labelled
    known = {prepared.images[i].astype(int).sum(): label for i, label in enumerate(prepared.labels.tolist())}
    batches.prefetch("real", 4, 7)
    images = ((batches.at("real", 4, 7) + 1) * 127.5).round().long()
    labels = batches.labels_at("real", 4, 7)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [known[int(image.sum())] for image in images]


def test_labels_are_counted():
    assert module.counts(np.array([0, 2, 2], np.int64), 4) == (1, 0, 2, 0)
