"""LMDB databases without their library: the same entries as the library reads, or a sentence."""

import random
import struct

import lmdb
import pytest

from gantx.io.lmdb_file import LmdbFile

LARGEST = 2**30


def database(folder, entries, **how):
    """A database that has been written, changed and partly deleted in several transactions."""
    folder.mkdir()
    with lmdb.open(str(folder), map_size=2**26, **how) as opened:
        for step in range(3):
            with opened.begin(write=True) as writer:
                for key, value in entries.items():
                    writer.put(key, value[step:] if step < 2 else value)
        with opened.begin(write=True) as writer:
            writer.put(b"deleted", b"x" * 10_000)
            writer.delete(b"deleted")
    return folder / "data.mdb"


def entries(count):
    rng = random.Random(0)
    sizes = (0, 1, 100, 2000, 2030, 4080, 4081, 5000, 20_000)
    return {rng.randbytes(rng.randint(1, 400)): rng.randbytes(rng.choice(sizes)) for _ in range(count)}


@pytest.mark.parametrize("count", [0, 1, 900])  # empty, a leaf, a tree of three levels
def test_the_entries_that_the_library_reads(tmp_path, count):
    wanted = entries(count)
    path = database(tmp_path / "base", wanted)
    found = LmdbFile(path)
    assert found.keys == sorted(wanted)
    assert [found.value(index, LARGEST) for index in range(count)] == [wanted[key] for key in found.keys]
    with lmdb.open(str(path.parent), readonly=True, lock=False) as opened, opened.begin() as reader:
        assert [*reader.cursor().iternext(values=False)] == found.keys
        assert count < 900 or reader.stat()["depth"] >= 3


def test_a_value_may_be_too_large(tmp_path):
    found = LmdbFile(database(tmp_path / "base", {b"a": b"x" * 9000}))
    with pytest.raises(ValueError, match="9,000 bytes, more than gantx reads"):
        found.value(0, 8999)


def test_named_databases_are_not_read(tmp_path):
    named = tmp_path / "named"
    with lmdb.open(str(named), max_dbs=1) as opened:
        opened.open_db(b"inner")
    with pytest.raises(ValueError, match="named databases or several values"):
        LmdbFile(named / "data.mdb")


def changed(content, at, form, value):
    content = bytearray(content)
    struct.pack_into(form, content, at, value)
    return bytes(content)


def test_damage_is_named(tmp_path):
    path = database(tmp_path / "base", entries(40))
    content = path.read_bytes()
    transactions = [struct.unpack_from("<Q", content, 4096 * page + 144)[0] for page in range(2)]
    meta = 4096 * transactions.index(max(transactions))
    root = struct.unpack_from("<Q", content, meta + 128)[0]
    damages = {
        "it is cut off": content[:4100],
        "it does not begin as": b"PK" + content[:16] + b"PK" + content[20:],
        "version 2 of the format": changed(content, 20, "<I", 2),
        "pages of 3 bytes": changed(content, 40, "<I", 3),
        "refers to page 9999 of": changed(content, meta + 128, "<Q", 9999),
        "of its 41 entries": changed(content, meta + 120, "<Q", 41),
        "in a circle": changed(
            content, root * 4096 + struct.unpack_from("<H", content, root * 4096 + 16)[0], "<H", root
        ),
        f"page {root} says that it is page 7": changed(content, root * 4096, "<Q", 7),
        f"page {root} has no valid header": changed(content, root * 4096 + 12, "<H", 5),
        f"an entry of page {root} is outside of it": changed(content, root * 4096 + 16, "<H", 4095),
    }
    for words, damaged in damages.items():
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=words):
            LmdbFile(path)


def test_a_value_that_is_elsewhere_is_an_error_of_its_own(tmp_path):
    path = database(tmp_path / "base", {b"a": b"x" * 9000, b"b": b"y"})
    content = path.read_bytes()
    at = content.index(b"x" * 9000) - 16
    path.write_bytes(changed(content, at + 12, "<I", 1))
    found = LmdbFile(path)
    assert found.value(1, LARGEST) == b"y"
    with pytest.raises(ValueError, match="does not hold the value"):
        found.value(0, LARGEST)
