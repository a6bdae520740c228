"""Presets are found in a wheel, in an editable install and in a bare checkout, from any folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="needs a checkout: pyproject.toml is not beside tests/"
)

PRINT_PRESETS = "from gantx.config.presets import preset_names; print(*preset_names())"
PRINT_PLACE = "import gantx; print(gantx.__file__)"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built of a copy of the checkout, without a network."""
    pytest.importorskip("hatchling", reason="builds a wheel: pip install -e '.[test]' brings hatchling")
    source = tmp_path_factory.mktemp("source")
    for name in ("gantx", "presets"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source / name)
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=source)
    (built,) = folder.glob("*.whl")
    return built


def run(command, *, cwd, path=None):
    """Run a command without the settings of this process's Python; its output, or a failure that shows it."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def names_of_checkout():
    return sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


def test_the_wheel_carries_presets_and_the_typing_mark(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        preset = archive.read("gantx/presets/transgan-tiny.yaml")
    assert {f"gantx/presets/{name}.yaml" for name in names_of_checkout()} <= names
    assert {"gantx/py.typed", "gantx/demo/demo.safetensors"} <= names
    assert preset == (ROOT / "presets" / "transgan-tiny.yaml").read_bytes()


def test_the_wheel_carries_the_weights_of_the_shapes_classifier(wheel):
    weights = "gantx/evaluation/shapes_classifier.safetensors"
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(weights) == (ROOT / weights).read_bytes()


def test_the_wheel_carries_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
        commands = archive.read(entry_points).decode()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"gantx"}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gantx").rglob("*.py")}
    assert modules <= set(names)
    assert "gantx = gantx.__main__:main" in commands


def test_presets_of_an_unpacked_wheel(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert run([sys.executable, "-c", PRINT_PLACE], cwd=elsewhere, path=site).startswith(str(site))
    assert run([sys.executable, "-c", PRINT_PRESETS], cwd=elsewhere, path=site).split() == names_of_checkout()
    listed = run([sys.executable, "-m", "gantx", "presets", "ls"], cwd=elsewhere, path=site)
    assert all(name in listed for name in names_of_checkout())


def test_presets_of_a_checkout_on_the_path(tmp_path):
    listed = run([sys.executable, "-m", "gantx", "presets", "ls"], cwd=tmp_path, path=ROOT)
    assert all(name in listed for name in names_of_checkout())


def test_presets_of_an_editable_install(tmp_path):
    """An editable install is a .pth file that names the checkout."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    site.mkdir()
    elsewhere.mkdir()
    (site / "_editable_gantx.pth").write_text(f"{ROOT}\n", encoding="utf-8")
    # -P and first place on the path: neither the current folder nor another installed gantx may answer
    add = f"import site, sys; old = sys.path[:]; site.addsitedir({str(site)!r}); "
    add += "sys.path[:] = [p for p in sys.path if p not in old] + old; "
    assert run([sys.executable, "-P", "-c", add + PRINT_PLACE], cwd=elsewhere).startswith(str(ROOT))
    assert (
        run([sys.executable, "-P", "-c", add + PRINT_PRESETS], cwd=elsewhere).split() == names_of_checkout()
    )
