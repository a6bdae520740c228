"""A page that generates images in the browser: an HTML file with the network and the runtime beside it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from gantx.checkpoint import Header
from gantx.errors import DataError, MissingError
from gantx.exporting.classes import describe
from gantx.exporting.generator import Morph, latents_of
from gantx.exporting.hub import write_text
from gantx.exporting.request import PACKAGE
from gantx.generation.labels import drawn_labels

VERSION = "1.30.0"  # fetched from npm unless the user names a package
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
MODEL = "model.onnx"
SEEDS = 256  # number of latents stored with the page
_LARGEST = 2**28  # bytes of a file of the package
_TIMEOUT = 600  # seconds, of npm


def write_page(folder: Path, network: Morph, header: Header, class_: str | None = None) -> None:
    """Write the page, a description of the network, and the latents and labels of its seeds.

    Args:
        folder: an existing folder.
        network: what `model.onnx` computes.
        header: of the checkpoint.
        class_: name or number of the only class that a conditional network generates; None where labels are
            inputs.
    """
    generator = network.generator
    page = resources.files("gantx.exporting").joinpath("page.html").read_text(encoding="utf-8")
    write_text(folder / "index.html", page)
    conditioning = header.config.conditioning
    about = {
        "preset": header.config.name,
        "kimg": header.images / 1000,
        "digest": header.digest,
        "latent_shape": list(generator.latent_shape),
        "image_shape": list(network.image_shape),
        "styles": network.has_styles,
        "seeds": SEEDS,
        **describe(conditioning, class_),
    }
    if generator.classes:
        about["labels"] = drawn_labels(conditioning, range(SEEDS))
    write_text(folder / "demo.json", json.dumps(about, indent=2) + "\n")
    latents = latents_of(generator, range(SEEDS)).numpy()
    (folder / "latents.bin").write_bytes(latents.astype("<f4").tobytes())


def write_runtime(folder: Path, package: Path | None) -> dict[str, Any]:
    """Write the files of the runtime into `folder`.

    Args:
        folder: an existing folder.
        package: the npm package onnxruntime-web, as a folder or as npm's .tgz; None to fetch it with npm.

    Returns:
        Name, version and licence of the package, and the digests of the files.

    Raises:
        MissingError: the package or npm is not found, or npm cannot fetch the package.
        DataError: it is another package, or files are missing in it.
    """
    if package is None:
        with tempfile.TemporaryDirectory() as scratch:
            return write_runtime(folder, _packed(Path(scratch)))
    read = _reader(package)
    try:
        about = json.loads(read("package.json"))
        if about.get("name") != PACKAGE:
            raise DataError(f"{package} is the npm package {about.get('name')}, not {PACKAGE}")
        contents = {name: read(f"dist/{name}") for name in RUNTIME_FILES}
    except (KeyError, FileNotFoundError, tarfile.TarError, EOFError, zlib.error, ValueError) as problem:
        raise DataError(
            f"{package} is not a whole npm package {PACKAGE} ({problem}): get one with "
            f"`npm pack {PACKAGE}@{VERSION}`"
        ) from problem
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return {**{key: about.get(key) for key in ("name", "version", "license")}, "sha256": digests}


def _packed(scratch: Path) -> Path:
    """Download the archive of the package with npm, which verifies its digest."""
    npm = shutil.which("npm")
    instead = f"install npm, or give the package's folder or .tgz with --{PACKAGE}"
    if npm is None:
        raise MissingError(f"the page needs {PACKAGE} from npm, and there is no npm here: {instead}")
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(scratch)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise MissingError(f"npm cannot get {PACKAGE} ({problem}): {instead}") from problem
    archives = list(scratch.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        said = " ".join(done.stderr.split())[-300:]
        raise MissingError(f"npm cannot get {PACKAGE} ({said}): {instead}")
    return archives[0]


def _reader(package: Path) -> Callable[[str], bytes]:
    """A function that reads a file of the package by its path within it."""
    if package.is_dir():
        return lambda name: (package / name).read_bytes()
    if not package.is_file():
        raise MissingError(f"there is no package {PACKAGE} at {package}")

    def read(name: str) -> bytes:
        with tarfile.open(package) as archive:
            member = archive.extractfile(f"package/{name}")
            if member is None:
                raise KeyError(f"{name} is no file")
            content = member.read(_LARGEST + 1)
            if len(content) > _LARGEST:
                raise ValueError(f"{name} has more than {_LARGEST:,} bytes")
            return content

    return read
