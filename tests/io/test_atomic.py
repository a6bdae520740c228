"""Files are whole or not there."""

import os

import pytest

from gantx.errors import MissingError
from gantx.io.atomic import link_or_copy, replacing


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with replacing(path) as beside:
        beside.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("error", "seen"), [(OSError("no space"), MissingError), (KeyError("x"), KeyError)])
def test_a_failure_keeps_the_old_file_and_nothing_else(tmp_path, error, seen):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write():
        with replacing(path) as beside:
            beside.write_text("half")
            raise error

    with pytest.raises(seen):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_is_a_link_or_a_copy(tmp_path, monkeypatch, links):
    def refused(*names):
        raise PermissionError

    if not links:
        monkeypatch.setattr(os, "link", refused)
    source, path = tmp_path / "source", tmp_path / "second"
    source.write_text("new")
    path.write_text("old")
    for _ in range(2):
        link_or_copy(source, path)
        assert path.read_text() == "new"
        assert path.samefile(source) == links
        assert sorted(tmp_path.iterdir()) == [path, source]
