"""Where the cache is."""

import pwd

import pytest

from gantx.errors import MissingError
from gantx.evaluation import assets
from gantx.io.cache import cache_folder


@pytest.fixture
def homeless(monkeypatch):
    """A user without home folder and passwd entry, as in a container with a foreign user number."""

    def unknown(number):
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME", "GANTX_CACHE", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_the_folder_is_named_or_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("GANTX_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("GANTX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert cache_folder() == tmp_path / "caches" / "gantx"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "gantx"


def test_without_a_home_folder_the_cache_has_to_be_named(homeless, monkeypatch, tmp_path):
    with pytest.raises(MissingError, match=r"no home folder .* set GANTX_CACHE to the full path"):
        cache_folder()
    monkeypatch.setenv("GANTX_CACHE", "~/cache")
    with pytest.raises(MissingError, match="set GANTX_CACHE to the full path"):
        cache_folder()
    monkeypatch.setenv("GANTX_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert assets.ASSETS["inception-pytorch"].elsewhere() == ()
