"""Arrays, tar shards, parquet tables and LMDB databases hold the same set as the folder they were made of."""

import io
import json
import sys
import tarfile

import lmdb
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from gantx.config.schema import DataConfig
from gantx.data import containers
from gantx.data.prepare import prepare
from gantx.data.sources import open_source
from gantx.errors import DataError, MissingError

CLASSES = ("cat", "dog")
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
LABELS = [0, 0, 0, 1, 1, 1]


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def add(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def tar(path, numbers, classes=True):
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            add(archive, f"{number:04}.png", png(IMAGES[number]))
            add(archive, f"{number:04}.json", b"{}")
            if classes:
                add(archive, f"{number:04}.cls", str(LABELS[number]).encode())
    return path


def table(path, numbers, **columns):
    cells = [{"bytes": png(IMAGES[number]), "path": None} for number in numbers]
    labels = pyarrow.array([LABELS[number] for number in numbers])
    made = pyarrow.table({"image": cells, "label": labels, **columns})
    about = {"info": {"features": {"label": {"names": CLASSES, "_type": "ClassLabel"}}}}
    pyarrow.parquet.write_table(
        made.replace_schema_metadata({"huggingface": json.dumps(about)}), path, row_group_size=2
    )
    return path


def made_folder(path):
    for number, pixels in enumerate(IMAGES):
        (path / CLASSES[LABELS[number]]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path / CLASSES[LABELS[number]] / f"{number:04}.png")
    return path


def made_npy(path):
    np.save(path / "set.npy", IMAGES)
    return path / "set.npy"


def made_npz(path):
    np.savez_compressed(path / "set.npz", images=IMAGES.transpose(0, 3, 1, 2), labels=LABELS, other=[1.5])
    return path / "set.npz"


def made_tar(path):
    return tar(path / "set.tar", range(6))


def made_shards(path):
    (path / "shards").mkdir()
    tar(path / "shards" / "a.tar", range(3))
    tar(path / "shards" / "b.tar", range(3, 6))
    return path / "shards"


def made_parquet(path):
    return table(path / "set.parquet", range(6))


def made_parquets(path):
    (path / "tables").mkdir()
    table(path / "tables" / "0.parquet", range(4))
    table(path / "tables" / "1.parquet", range(4, 6))
    return path / "tables"


def made_lmdb(path):
    (path / "lmdb").mkdir()
    with lmdb.open(str(path / "lmdb")) as database, database.begin(write=True) as writer:
        for number, pixels in enumerate(IMAGES):
            writer.put(f"{number:04}".encode(), png(pixels))
    return path / "lmdb"


def prepared(path):
    return prepare(DataConfig(source=str(path), resolution=8), log=lambda text: None)


MAKERS = (made_npy, made_npz, made_tar, made_shards, made_parquet, made_parquets, made_lmdb)


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_a_container_holds_the_set_of_its_folder(tmp_path, maker):
    wanted = prepared(made_folder(tmp_path / "folder"))
    (tmp_path / "made").mkdir()
    path = maker(tmp_path / "made")
    found = prepared(path)
    assert found.digest == wanted.digest
    if maker in (made_npy, made_lmdb):
        assert found.labels is None
    else:
        np.testing.assert_array_equal(found.labels, LABELS)
        named = maker in (made_parquet, made_parquets)
        assert found.class_names == (CLASSES if named else ("0", "1"))
    source = open_source(DataConfig(source=str(path)))
    assert source.fingerprint() == open_source(DataConfig(source=str(path))).fingerprint()
    assert path.name.split(".")[0] in source.identify(5)


def test_an_lmdb_in_the_current_folder_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(made_lmdb(tmp_path))
    for name in ("data.mdb", "."):
        source = open_source(DataConfig(source=name))
        assert source.name == "lmdb"
        assert source.location == str(tmp_path / "lmdb")


def test_the_folders_of_a_tar_are_classes_where_no_file_holds_any(tmp_path):
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for number, pixels in enumerate(IMAGES):
            add(archive, f"./all/{CLASSES[LABELS[number]]}/{number}.png", png(pixels))
    found = prepared(tmp_path / "set.tar")
    assert found.class_names == CLASSES
    np.testing.assert_array_equal(found.labels, LABELS)


@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 1), (5, 1, 8, 8)])
def test_arrays_of_grey_images(tmp_path, shape):
    np.save(tmp_path / "grey.npy", IMAGES[..., 0][:5].reshape(shape))
    np.testing.assert_array_equal(prepared(tmp_path / "grey.npy").images[:, 1], IMAGES[:5, ..., 0])


def cut(path):
    path.write_bytes(path.read_bytes()[:700])
    return path


BAD = {
    "floats": lambda path: np.save(path / "a.npy", IMAGES / 255.0),
    "objects": lambda path: np.save(path / "a.npy", np.array([{}], object)),
    "empty": lambda path: np.save(path / "a.npy", IMAGES[:0]),
    "no array": lambda path: (path / "a.npy").write_bytes(b"text"),
    "a zip called npy": lambda path: np.savez(path / "a", IMAGES) or (path / "a.npz").rename(path / "a.npy"),
    "two arrays": lambda path: np.savez(path / "a.npz", one=IMAGES, two=IMAGES),
    "few labels": lambda path: np.savez(path / "a.npz", images=IMAGES, labels=LABELS[:3]),
    "negative labels": lambda path: np.savez(path / "a.npz", images=IMAGES, labels=[-1, *LABELS[1:]]),
    "cut npz": lambda path: cut(made_npz(path)).rename(path / "a.npz"),
    "cut tar": lambda path: cut(made_tar(path)).rename(path / "a.tar"),
    "compressed tar": lambda path: tarfile.open(path / "a.tar", "w:xz").close(),
    "tar without images": lambda path: tarfile.open(path / "a.tar", "w").close(),
    "missing class": lambda path: tar(path / "a.tar", range(3), classes=False) and part_of_classes(path),
    "cut parquet": lambda path: cut(made_parquet(path)).rename(path / "a.parquet"),
    "parquet without images": lambda path: pyarrow.parquet.write_table(
        pyarrow.table({"a": [1]}), path / "a.parquet"
    ),
    "two columns": lambda path: pyarrow.parquet.write_table(
        pyarrow.table({"a": [b"1"], "b": [b"2"]}), path / "a.parquet"
    ),
    "no database": lambda path: (path / "data.mdb").write_bytes(b"text" * 5000),
    "hdf5": lambda path: (path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 99),
    "7z": lambda path: (path / "a.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + b"\0" * 99),
}


def part_of_classes(path):
    with tarfile.open(path / "a.tar", "a") as archive:
        add(archive, "0001.cls", b"1")


@pytest.mark.parametrize("kind", BAD)
def test_a_container_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, kind):
    BAD[kind](tmp_path)
    (path,) = [entry for entry in tmp_path.iterdir() if entry.name.startswith(("a.", "data."))]
    with pytest.raises(DataError) as caught:
        prepared(path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_image_in_a_container_is_named(tmp_path):
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        add(archive, "good.png", png(IMAGES[0]))
        add(archive, "bad.png", b"text")
    with pytest.raises(DataError, match=r"set\.tar:bad\.png: .*on_bad_image=skip"):
        prepared(tmp_path / "set.tar")


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    path = made_parquet(tmp_path)
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingError, match=r"pip install 'gantx\[parquet\]'"):
        prepared(path)


def test_a_table_that_unpacks_to_more_than_its_file_can_mean_is_refused(tmp_path, monkeypatch):
    repeated = pyarrow.table({"image": [b"same"] * 5000, "label": [0] * 5000})
    pyarrow.parquet.write_table(repeated, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"5,000 rows in [0-9,]+ bytes"):
        open_source(DataConfig(source=str(tmp_path / "a.parquet")))
    monkeypatch.setattr(containers, "LARGEST_ARRAY", 2**20)
    bomb = pyarrow.table({"image": [bytes(2**22)]})
    pyarrow.parquet.write_table(bomb, tmp_path / "b.parquet", compression="zstd")
    with pytest.raises(DataError, match="bytes that unpack to 4,194,"):
        open_source(DataConfig(source=str(tmp_path / "b.parquet")))


def test_containers_have_no_test_part(tmp_path):
    with pytest.raises(DataError, match="no test images"):
        open_source(DataConfig(source=str(made_npy(tmp_path)), split="test"))
