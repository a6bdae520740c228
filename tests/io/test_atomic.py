"""Files are whole or not there."""

import pytest

from gantx.errors import MissingError
from gantx.io.atomic import replacing


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
