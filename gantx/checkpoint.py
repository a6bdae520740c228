"""Checkpoints: safetensors files that describe themselves, are written atomically and verified on reading.

One file contains everything that is needed to resume a run and to generate images. Its header has the
resolved configuration, the progress, versions and a digest of each part; reading a file runs no code from it.
The digests of gantx.io.sealed cover the header too: whatever is read is verified first.

torch is imported by the functions that need tensors: a wrong path or file is reported before that.

Keys: `generator.*`, `generator_ema.*`, `discriminator.*`, `optimizer.<network>.*`, `state.*`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from gantx.config import presets
from gantx.config.schema import RunConfig
from gantx.errors import CheckpointError, DivergedError, MissingError, UsageError, first_line
from gantx.io import sealed
from gantx.io.atomic import replacing
from gantx.io.byte_names import utf8_path
from gantx.io.escaping import shortened
from gantx.io.file_kinds import recognized
from gantx.version import __version__

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

FORMAT_VERSION = 1
DEMO = Path(__file__).parent / "demo" / "demo.safetensors"  # trained on the shapes by a preset; in the wheel
_NAME = re.compile(r"kimg-(\d{6}\.\d{3})\.safetensors")
_BEST = re.compile(r"best-(.+)\.safetensors", re.DOTALL)


@dataclass(frozen=True)
class Header:
    """The header of a checkpoint.

    Attributes:
        path: the file.
        config: the resolved configuration of the run.
        progress: images seen, iteration, seconds of training, counts of unreported statistics.
        data: name, number and digest of the training images.
        versions: of gantx, Python and torch that wrote it.
        digests: SHA-256 of each part (`generator`, `generator_ema`, …).
        sealed: whether the header itself has a digest; it has none in files that were written before gantx
            kept one.
    """

    path: Path
    config: RunConfig
    progress: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str]
    digests: dict[str, str]
    sealed: bool = True

    @property
    def images(self) -> int:
        """Number of real images shown to D so far."""
        return int(self.progress["images"])

    @property
    def digest(self) -> str:
        """SHA-256 of the averaged generator, which is what is sampled."""
        return self.digests["generator_ema"]


def checkpoint_name(images: int) -> str:
    """File name of the checkpoint at `images` images; names sort by progress, exact to one image."""
    return f"kimg-{images / 1000:010.3f}.safetensors"


def versions() -> dict[str, str]:
    """Versions of the software on which bit-identical results depend."""
    import torch

    return {"gantx": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    config: RunConfig,
    progress: Mapping[str, Any],
    data: Mapping[str, Any],
) -> None:
    """Write a checkpoint under a temporary name, flush it to the disk, then rename it.

    Raises:
        DivergedError: a tensor is not finite; nothing is written.
        MissingError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    import torch

    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in stored.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DivergedError(f"{name} is not finite, so {path.name} was not written")
    metadata = {
        "format": "gantx",
        "format_version": str(FORMAT_VERSION),
        "config": json.dumps(config.model_dump(mode="json")),
        "progress": json.dumps(progress),
        "data": json.dumps(data),
        "versions": json.dumps(versions()),
        "digests": json.dumps(_digests(stored)),
    }
    with replacing(path) as beside:
        sealed.save(beside, stored, metadata)


def read_header(path: Path) -> Header:
    """Read and verify the header of a checkpoint, without its tensors.

    Raises:
        CheckpointError: the file is damaged, not a gantx checkpoint, or of a version that this gantx does not
            know.
    """
    with _opened(path, "numpy") as (file, has_digest):
        metadata = file.metadata() or {}
    if metadata.get("format") != "gantx":
        raise CheckpointError(
            f"{path} is a safetensors file but no gantx checkpoint: its header lacks the gantx configuration"
        )
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{path} has checkpoint format {metadata.get('format_version')}, this gantx {__version__} "
            f"reads format {FORMAT_VERSION}: use the gantx that wrote it, or a newer one"
        )
    try:
        stored = {key: json.loads(metadata[key]) for key in ("progress", "data", "versions", "digests")}
        config = presets.validate(json.loads(metadata["config"]))
        for key, value in stored.items():
            if not isinstance(value, dict):
                raise _Absurd(f"its {key} is no object")
        _check_progress(stored["progress"], config.training.batch)
        _check_data(stored["data"])
        for key in ("versions", "digests"):
            if not all(isinstance(value, str) for value in stored[key].values()):
                raise _Absurd(f"its {key} are no texts")
    except _Absurd as problem:
        raise CheckpointError(_damaged(path, f"has a damaged header: {problem}")) from None
    except KeyError as problem:
        raise CheckpointError(_damaged(path, f"has a damaged header: it lacks {problem}")) from problem
    except (TypeError, ValueError, RecursionError, OverflowError) as problem:
        what = f"has a damaged header: {first_line(problem)}"
        raise CheckpointError(_damaged(path, what)) from problem
    except UsageError as problem:
        raise CheckpointError(
            f"{path} has a configuration that this gantx {__version__} does not know: {problem}"
        ) from problem
    return Header(path, config, **stored, sealed=has_digest)


class _Absurd(Exception):
    """A field of a header cannot be what gantx wrote."""


def _check_progress(progress: dict[str, Any], batch: int) -> None:
    """Check the fields that training relies on; a file that was imported or shared has `images` only."""
    for name in ("images", "iteration", "rollbacks"):
        value = progress["images"] if name == "images" else progress.get(name, 0)
        if type(value) is not int or not 0 <= value < 2**53:
            raise _Absurd(f"{name} is {value!r:.60}")
    if "iteration" in progress and progress["iteration"] * batch != progress["images"]:
        raise _Absurd(
            f"iteration {progress['iteration']} of {batch} images each is not at {progress['images']} images"
        )
    counts = progress.get("observations", {})
    if not isinstance(counts, dict):
        raise _Absurd(f"observations is {counts!r:.60}")
    for name, value in {"seconds": progress.get("seconds", 0.0), **counts}.items():
        if type(value) not in (int, float) or not 0 <= value < 2**53:
            raise _Absurd(f"{name} is {value!r:.60}")


def _check_data(data: dict[str, Any]) -> None:
    """Check the fields about the training images that are shown or compared."""
    if type(number := data.get("images", 0)) is not int or not 0 <= number < 2**53:
        raise _Absurd(f"the number of training images is {shortened(number)}")
    for name in ("name", "digest", "license"):
        if not isinstance(data.get(name, ""), str):
            raise _Absurd(f"data.{name} is {shortened(data[name])}")
    if not isinstance(data.get("imported_from", {}), dict):
        raise _Absurd(f"data.imported_from is {shortened(data['imported_from'])}")


def read_part(header: Header, part: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read the tensors of one part and verify their digest.

    Args:
        header: header of the file.
        part: `generator`, `generator_ema`, `discriminator`, `optimizer` or `state`.
        device: where the tensors go.

    Returns:
        The tensors by their names without the prefix `part.`.

    Raises:
        CheckpointError: the part is absent or its digest does not match.
    """
    prefix = f"{part}."
    with _opened(header.path) as (file, _):
        names = sorted(name for name in file.keys() if name.startswith(prefix))  # noqa: SIM118 (no mapping)
        found = {name: file.get_tensor(name) for name in names}
        metadata = file.metadata() or {}
    if part not in header.digests:
        stored = ", ".join(sorted(header.digests)) or "none"
        raise CheckpointError(f"{header.path} has no weights called {part}; it has {stored}")
    if _digests(found).get(part) != header.digests[part]:
        wrong = sealed.damaged_tensors(found, metadata)
        which = f" ({', '.join(wrong[:3])}{', …' if len(wrong) > 3 else ''})" if wrong else ""
        what = f"is corrupt: its {part} weights do not match their digest{which}"
        raise CheckpointError(_damaged(header.path, what))
    # Copied even on the CPU: tensors mapped from the file would keep it and its disk space in use.
    return {name.removeprefix(prefix): tensor.to(device, copy=True) for name, tensor in found.items()}


def numbers_in(header: Header, part: str) -> int:
    """How many numbers the tensors of a part have; 0 where it is absent. Reads the names and shapes alone."""
    with _opened(header.path) as (file, _):
        names = [name for name in file.keys() if name.startswith(f"{part}.")]  # noqa: SIM118 (no mapping)
        return sum(int(math.prod(file.get_slice(name).get_shape())) for name in names)


def verify(header: Header) -> None:
    """Read all parts of a checkpoint; CheckpointError for a wrong digest or a value that is not finite."""
    import torch

    for part in header.digests:
        for name, tensor in read_part(header, part).items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(
                    _damaged(header.path, f"is corrupt: {part}.{name} has values that are not finite")
                )


def load_into(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors into a network; CheckpointError when names or shapes differ."""
    try:
        network.load_state_dict(dict(tensors))
    except RuntimeError as problem:
        first = str(problem).splitlines()[1].strip() if "\n" in str(problem) else str(problem)
        raise CheckpointError(f"{path} does not fit the network its own header describes: {first}") from None


def is_demo(target: Path) -> bool:
    """Whether `target` is the word `demo`, which means the packaged generator, and no path of this name."""
    return str(target) == "demo" and not target.exists()


def find(target: Path) -> Path:
    """The checkpoint file of a run (its newest), of a folder of checkpoints, or the file itself.

    `demo` is the small generator that gantx carries, unless there is a path of this name.

    Raises:
        MissingError: there is nothing of this name, or no checkpoint in it.
        UsageError: the folder has several other safetensors files.
    """
    if is_demo(target):
        if not DEMO.is_file():
            raise MissingError(f"the weights of the demo are not at {DEMO}: reinstall gantx")
        return DEMO
    if target.is_file():
        return target
    if not target.is_dir():
        kept = [*best_in(target.parent).values()]
        if target.name == "best" and kept:  # the folder of the only one in earlier versions
            if len(kept) > 1:
                named = ", ".join(path.name for path in kept)
                raise UsageError(f"{target.parent} has a best checkpoint for each score: name one of {named}")
            return kept[0]
        raise MissingError(f"no such checkpoint or run: {target}")
    latest = latest_in(target / "checkpoints") or latest_in(target)
    if latest is not None:
        return latest
    single = sorted(target.glob("*.safetensors"))
    if len(single) == 1:
        return single[0]
    if single:
        raise UsageError(f"{target} has {len(single)} safetensors files: name the one you mean")
    raise MissingError(
        f"no checkpoint in {target} yet: give a run, a folder of checkpoints, or a .safetensors file"
    )


def newest_run(folder: Path) -> Path:
    """The run of the highest number in a folder of runs that has a checkpoint.

    Raises:
        MissingError: there is none.
    """
    runs = [path for path in folder.glob("*/") if latest_in(path / "checkpoints")]
    if not runs:
        raise MissingError(f"no run with a checkpoint in {folder.absolute()}: name a run, or train one first")
    return max(runs, key=lambda run: (int(match[1]) if (match := re.match(r"(\d+)-", run.name)) else -1, run))


def latest_in(folder: Path) -> Path | None:
    """The checkpoint with the most images in a folder, or None."""
    found = all_in(folder)
    return found[-1] if found else None


def all_in(folder: Path) -> list[Path]:
    """All checkpoints of a folder by progress, oldest first."""
    return sorted(path for path in folder.glob("kimg-*.safetensors") if _NAME.fullmatch(path.name))


def images_in_name(path: Path) -> int | None:
    """The number of images in the name of a checkpoint; None for another name."""
    match = _NAME.fullmatch(path.name)
    return round(float(match[1]) * 1000) if match else None


def best_name(score: str) -> str:
    """File name of the best checkpoint by a score, such as `fid`."""
    return f"best-{score}.safetensors"


def best_in(folder: Path) -> dict[str, Path]:
    """The best checkpoints of a folder by the names of their scores."""
    found = ((_BEST.fullmatch(path.name), path) for path in sorted(folder.glob("best-*.safetensors")))
    return {match[1]: path for match, path in found if match and path.is_file()}


def prune(folder: Path, keep: int) -> None:
    """Remove all but the latest `keep` checkpoints, never the best; errors of removal are ignored."""
    for path in all_in(folder)[:-keep]:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def _opened(path: Path, framework: str = "pt") -> Iterator[tuple[Any, bool]]:
    """A safetensors file whose header is verified, and whether that has a digest."""
    try:
        has_digest = sealed.check_header(path)
        with utf8_path(path) as readable, safe_open(readable, framework=framework) as file:
            yield file, has_digest
    except sealed.Damaged:
        what = "is damaged: its header does not match its digest"
        raise CheckpointError(_damaged(path, what)) from None
    except SafetensorError as problem:
        what = recognized(path) or f"is not a readable safetensors file: {problem}"
        raise CheckpointError(_damaged(path, what)) from problem
    except FileNotFoundError as problem:
        raise MissingError(f"no such checkpoint: {path}") from problem
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read: {problem.strerror or problem}") from problem


def _damaged(path: Path, what: str) -> str:
    """What is wrong with a file, with the checkpoint before it if there is one."""
    before = [other for other in all_in(path.parent) if other.name < path.name]
    if _NAME.fullmatch(path.name) and before:
        return f"{path} {what}; the checkpoint before is {before[-1]}"
    if _BEST.fullmatch(path.name) and (newest := latest_in(path.parent)) is not None:
        return f"{path} {what}; the newest checkpoint is {newest}"
    needed = what.startswith(("is cut off", "is damaged", "is corrupt", "has a damaged header"))
    return f"{path} {what}" + ("; copy or download it again" if needed else "")


def _digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of the names, types, shapes and content of the tensors of each part."""
    import torch

    hashes: dict[str, Any] = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        part = hashes.setdefault(name.split(".")[0], hashlib.sha256())
        part.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        part.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return {part: value.hexdigest() for part, value in hashes.items()}
