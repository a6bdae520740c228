"""The weights of the feature networks: where they are published, finding, downloading and verifying them.

Each is a published file, identified by its SHA-256. It is searched for in gantx's own folder, then where
other tools store it; there only a file with the right digest is accepted. Nothing is downloaded unless
`fetch` is called.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from gantx.data.downloads import Remote, digest_of, download
from gantx.errors import DataError, MissingError, UsageError, closest
from gantx.io.atomic import replacing
from gantx.io.cache import cache_folder
from gantx.io.lock import alone


@dataclass(frozen=True)
class Asset:
    """One published file of weights.

    Attributes:
        name: as given to `gantx assets fetch`.
        file: its name, as published.
        url: where it is published.
        sha256: digest of its content.
        size: its bytes.
        purpose: a one-line description.
        elsewhere: returns the paths at which other tools store it.
    """

    name: str
    file: str
    url: str
    sha256: str
    size: int
    purpose: str
    elsewhere: Callable[[], tuple[Path, ...]] = tuple


class Located(NamedTuple):
    """A file of weights that may be used.

    Attributes:
        path: where it is.
        digest: SHA-256 of its content.
        verified: the digest is the published one.
    """

    path: Path
    digest: str
    verified: bool


State: TypeAlias = Literal["verified", "present", "wrong", "missing"]


class Status(NamedTuple):
    """What is known about a file of weights.

    Attributes:
        asset: which.
        state: "present" is a file that has not been verified yet.
        path: where it is; where it belongs when it is missing.
    """

    asset: Asset
    state: State
    path: Path


def _left_by_cleanfid() -> tuple[Path, ...]:
    folder = Path() if os.name == "nt" else Path("/tmp")  # fixed in clean-fid, whatever TMPDIR says
    return (folder.absolute() / "inception-2015-12-05.pt",)


def _left_by_torch_hub() -> tuple[Path, ...]:
    """As torch.hub.get_dir, but without importing torch; torch-fidelity names it `weights-…`."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        home = Path(os.environ.get("TORCH_HOME") or Path(caches) / "torch").expanduser()
    except RuntimeError:  # this user has no home folder
        return ()
    names = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
    return tuple(home / "hub" / "checkpoints" / name for name in names)


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="inception",
            file="inception-2015-12-05.pt",
            url="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
            "inception-2015-12-05.pt",
            sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
            size=95_607_719,
            purpose="Inception of 2015 as TorchScript (NVIDIA): clean and TensorFlow-like resizing",
            elsewhere=_left_by_cleanfid,
        ),
        Asset(
            name="inception-pytorch",
            file="pt_inception-2015-12-05-6726825d.pth",
            url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
            "pt_inception-2015-12-05-6726825d.pth",
            sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            size=95_628_359,
            purpose="the same network for PyTorch (pytorch-fid): PyTorch-like resizing",
            elsewhere=_left_by_torch_hub,
        ),
    )
}


def named(name: str) -> Asset:
    """The asset of this name; UsageError with the closest one when there is none."""
    if name not in ASSETS:
        raise UsageError(f"no asset '{name}'{closest(name, ASSETS)}: there are {', '.join(ASSETS)}")
    return ASSETS[name]


def path_of(asset: Asset) -> Path:
    """Where gantx keeps the file, whether it exists or not."""
    return cache_folder() / "assets" / asset.file


def locate(asset: Asset, given: Path | None = None, *, allow_unverified: bool = False) -> Located:
    """Find the weights on this machine and verify them; a digest is computed once, then remembered.

    If `given` is given, only that file is considered; otherwise gantx's own folder, then the folders of other
    tools, where only a file of the right digest is accepted.

    Args:
        asset: which weights.
        given: a file that the user names.
        allow_unverified: take `given`, or the file in gantx's folder, whatever its digest.

    Raises:
        MissingError: `given` cannot be read, or nothing is found.
        DataError: the file is not the published one.
    """
    if given is not None:
        return _accept(asset, given, allow_unverified)
    ours, theirs = path_of(asset), asset.elsewhere()
    for path in (ours, *theirs):
        # Other tools may leave another file under that name: comparing sizes first avoids reading most.
        with contextlib.suppress(OSError):
            if path.stat().st_size == asset.size and _digest(path) == asset.sha256:
                return Located(path, asset.sha256, True)
    if _is_file(ours):
        return _accept(asset, ours, allow_unverified)
    looked = [f"{path}{' (another file is there)' if _is_file(path) else ''}" for path in (ours, *theirs)]
    raise MissingError(
        f"the weights {asset.file} are not on this machine: run `gantx assets fetch {asset.name}` "
        f"({asset.size / 1e6:.0f} MB), or give the file to gantx eval or stats by --weights FILE; looked for "
        f"at {' and '.join(looked)}, SHA-256 {asset.sha256}"
    )


def fetch(asset: Asset, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """Download the weights into gantx's folder unless they are there; returns their path.

    An interrupted download is resumed, and several processes may fetch at once (gantx.data.downloads).

    Args:
        asset: which weights.
        progress: called with (received, total) bytes.

    Raises:
        MissingError: they cannot be downloaded or kept; the message describes how to install them manually.
    """
    path = path_of(asset)
    with contextlib.suppress(OSError):
        if _digest(path) == asset.sha256:
            return path
    remote = Remote(
        url=asset.url,
        algorithm="sha256",
        digest=asset.sha256,
        title=f"{asset.file} (SHA-256 {asset.sha256})",
        instead=f"download it in another way and put it at {path}, or name it by --weights FILE",
        size=asset.size,
    )
    download(remote, path, progress)
    with contextlib.suppress(OSError):
        _remember(path, _facts(path), asset.sha256)
    return path


def status(asset: Asset) -> Status:
    """What is known without reading whole files: the best file that `locate` would consider."""
    found = []
    for path in (path_of(asset), *asset.elsewhere()):
        if not _is_file(path):
            continue
        known = _recall(path)
        if known == asset.sha256:
            return Status(asset, "verified", path)
        if path == path_of(asset):
            found.append(Status(asset, "present" if known is None else "wrong", path))
        elif known is None and path.stat().st_size == asset.size:
            found.append(Status(asset, "present", path))
    return found[0] if found else Status(asset, "missing", path_of(asset))


def verify(asset: Asset) -> list[Status]:
    """Read every file of that name again, in gantx's folder and those of other tools.

    Returns:
        "verified" or "wrong" for each file, or a single "missing".

    Raises:
        MissingError: a file cannot be read.
    """
    paths = [path for path in (path_of(asset), *asset.elsewhere()) if _is_file(path)]
    found = []
    for path in paths:
        with _reading(path):
            digest = _digest(path, anew=True)
        found.append(Status(asset, "verified" if digest == asset.sha256 else "wrong", path))
    return found or [Status(asset, "missing", path_of(asset))]


def _accept(asset: Asset, path: Path, allow_unverified: bool) -> Located:
    """The file at `path` if it is the published one or `allow_unverified`; DataError otherwise."""
    with _reading(path):
        digest, size = _digest(path), path.stat().st_size
    if digest == asset.sha256 or allow_unverified:
        return Located(path, digest, digest == asset.sha256)
    twin = next((other.file for other in ASSETS.values() if other.sha256 == digest), None)
    if twin is not None:
        reason = f"it is {twin}"
    elif size < asset.size:
        reason = f"it has only {size:,} of {asset.size:,} bytes"
    else:
        reason = f"its SHA-256 is {digest} instead of {asset.sha256}"
    raise DataError(
        f"{path} is not the published {asset.file} ({reason}): get that one by `gantx assets fetch "
        f"{asset.name}`, or use this file as it is with --allow-unverified-weights"
    )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise MissingError(f"cannot read the weights {path}: {problem.strerror or problem}") from problem


def _is_file(path: Path) -> bool:
    with contextlib.suppress(OSError):  # a folder that may not be searched
        return path.is_file()
    return False


# --- remembered digests -----------------------------------------------------------------------------------


def _digest(path: Path, *, anew: bool = False) -> str:
    """SHA-256 of a file, remembered while the file is unchanged; OSError when it cannot be read."""
    before = _facts(path)
    if not anew and (known := _recall(path)) is not None:
        return known
    digest = digest_of(path, "sha256")
    if _facts(path) == before:  # else it was changed while it was read
        _remember(path, before, digest)
    return digest


def _facts(path: Path) -> list[int]:
    """Size and times, which change with the content; the ctime cannot be set back."""
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]


def _memory() -> Path:
    return cache_folder() / "assets" / "digests.json"


def _remembered() -> dict[str, Any]:
    """The file of digests, path to [*facts, digest, check]; empty where it is missing or damaged."""
    try:
        known = json.loads(_memory().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _recall(path: Path) -> str | None:
    """The remembered digest of a file that has not changed since."""
    match _remembered().get(str(path.resolve())):
        case [int(size), int(modified), int(changed), str(digest), str(check)]:
            facts = [size, modified, changed]
            if check == _check(path, facts, digest) and facts == _facts(path):
                return digest
    return None


def _check(path: Path, facts: list[int], digest: str) -> str:
    """A digest of an entry, so that a damaged one is not believed."""
    return hashlib.sha256(json.dumps([str(path.resolve()), *facts, digest]).encode()).hexdigest()[:16]


def _remember(path: Path, facts: list[int], digest: str) -> None:
    """Store a digest, and drop those of files that no longer exist."""
    memory = _memory()
    with contextlib.suppress(MissingError, OSError):  # a cache that cannot be written costs only time
        memory.parent.mkdir(parents=True, exist_ok=True)
        with alone(memory.with_name(".digests.lock")), replacing(memory) as beside:
            known = {key: value for key, value in _remembered().items() if _is_file(Path(key))}
            known[str(path.resolve())] = [*facts, digest, _check(path, facts, digest)]
            beside.write_text(json.dumps(known, indent=1), encoding="utf-8")
