"""Downloads of published files over HTTP: resumable, verified, complete or absent.

While FILE is downloaded, the bytes received so far are in `.FILE.part` beside it; it stays there when the
download is interrupted in any way, and the next one requests the rest only. Nothing is renamed to FILE before
its digest is the published one.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from gantx.errors import MissingError, system_reason
from gantx.io.atomic import replacing
from gantx.io.lock import alone
from gantx.version import __version__

Progress = Callable[[int, int], None]

_TIMEOUT = 30.0  # seconds without a byte after which a connection counts as interrupted
_CHUNK = 1 << 18  # bytes


@dataclass(frozen=True)
class Remote:
    """A published file.

    Attributes:
        url: its address.
        algorithm: hash function of its digest, by its name in hashlib.
        digest: the published digest, in lower-case hexadecimal.
        title: its name in messages.
        instead: what to do if it cannot be downloaded; the end of the message.
        size: its number of bytes, if that is published too.
    """

    url: str
    algorithm: str
    digest: str
    title: str
    instead: str
    size: int | None = None


def digest_of(path: Path, algorithm: str) -> str:
    """The digest of a file's content in hexadecimal; OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def download(remote: Remote, target: Path, progress: Progress | None = None) -> None:
    """Download `remote` to `target`, unless the right file is there; a wrong file is replaced.

    Several processes may ask for the same file at once: one downloads, the others wait for it.

    Args:
        remote: what to download.
        target: path of the file; its folder is created.
        progress: called with (received, total) bytes, also while another process downloads.

    Raises:
        MissingError: no network, an error of the server, an interrupted connection, other content than the
            published one, or no space.
    """
    part = target.with_name(f".{target.name}.part")

    def waiting() -> None:
        if progress is not None and remote.size is not None:
            progress(_length(part), remote.size)

    try:
        if _fits(remote, target):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with alone(target.with_name(f".{target.name}.lock"), waiting):
            if _fits(remote, target):  # another process was quicker
                return
            try:
                _complete(remote, part, progress)
            finally:
                if _length(part) == 0:
                    part.unlink(missing_ok=True)
            with replacing(target) as beside:
                part.replace(beside)
    except OSError as problem:
        raise MissingError(
            f"cannot keep {remote.title} in {target.parent} ({system_reason(problem)}): see to space "
            "and permissions there, or set GANTX_CACHE to another folder"
        ) from problem


def _complete(remote: Remote, part: Path, progress: Progress | None) -> None:
    """Complete `part` to the published content; it may have its beginning already."""
    resumed = _length(part) > 0
    if resumed and _fits(remote, part):  # a process ended just before it was renamed
        return
    while True:
        _receive(remote, part, progress)
        if (found := digest_of(part, remote.algorithm)) == remote.digest:
            return
        part.unlink()
        if not resumed:
            name = remote.algorithm.upper()
            raise _failure(remote, f"what came has the {name} {found} instead of {remote.digest}")
        resumed = False  # the beginning was of other content: start again without it


def _receive(remote: Remote, part: Path, progress: Progress | None) -> None:
    """Append the rest of the file to `part`; if the server cannot resume, start from the first byte."""
    have = _length(part)
    if remote.size is not None and have >= remote.size:
        have = 0
    try:
        response, start = _ask(remote.url, have)
    except (OSError, HTTPException) as problem:
        raise _failure(remote, _cause(problem)) from problem
    with response:
        total = _promised(remote, response, start)
        with part.open("ab" if start else "wb") as file:
            _check_space(remote, part, start, total)
            done = start
            while piece := _read(remote, response, done, total):
                file.write(piece)
                done += len(piece)
                if progress is not None and total is not None:
                    progress(min(done, total), total)
                if total is not None and done > total:
                    break  # the digest will not match
    if total is not None and done < total:
        raise _failure(remote, _cut(done, total, "the connection ended"))


def _ask(url: str, have: int) -> tuple[HTTPResponse, int]:
    """Request the bytes from `have` on; returns the response and the offset of its first byte in the file."""
    if have:
        try:
            response = _open(url, {"Range": f"bytes={have}-"})
        except HTTPError as problem:
            problem.close()
            if problem.code != 416:  # 416: the server's file ends before that byte
                raise
        else:
            if response.status != 206:
                return response, 0
            if response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                return response, have
            response.close()
    return _open(url, {}), 0


def _open(url: str, headers: dict[str, str]) -> HTTPResponse:
    always = {"User-Agent": f"gantx/{__version__}", "Accept-Encoding": "identity"}
    response: HTTPResponse = urlopen(Request(url, headers=always | headers), timeout=_TIMEOUT)
    return response


def _promised(remote: Remote, response: HTTPResponse, start: int) -> int | None:
    """The size of the file; MissingError if the response cannot be the published file."""
    if response.headers.get_content_type() == "text/html":
        raise _failure(remote, "the answer is a web page: perhaps the network asks for a log-in")
    if response.length is None:
        return remote.size
    total = start + response.length
    if remote.size is not None and total != remote.size:
        raise _failure(remote, f"the server offers {total:,} bytes instead of {remote.size:,}")
    return total


def _check_space(remote: Remote, part: Path, start: int, total: int | None) -> None:
    needed, free = (total or 0) - start, shutil.disk_usage(part.parent).free
    if needed > free:
        raise MissingError(
            f"{remote.title} takes another {needed / 1e6:,.0f} MB but {part.parent} has {free / 1e6:,.0f} MB "
            "free: free space there or set GANTX_CACHE to another folder"
        )


def _read(remote: Remote, response: HTTPResponse, done: int, total: int | None) -> bytes:
    """The next bytes as soon as some arrive; b"" at the end."""
    try:
        return response.read1(_CHUNK)
    except (OSError, HTTPException) as problem:
        raise _failure(remote, _cut(done, total, _cause(problem))) from problem


def _cut(done: int, total: int | None, cause: str) -> str:
    of = "" if total is None else f" of {total:,}"
    return f"{cause} after {done:,}{of} bytes, which are kept: the same command resumes there"


def _failure(remote: Remote, cause: str) -> MissingError:
    return MissingError(f"cannot download {remote.title} from {remote.url} ({cause}): {remote.instead}")


def _cause(problem: Exception) -> str:
    """The cause of a failure in one line, without urllib's wrapping."""
    if isinstance(problem, HTTPError):
        return f"the server says {problem.code} {' '.join(str(problem.reason).split())}"
    if isinstance(problem, TimeoutError):
        return f"no answer for {_TIMEOUT:g} seconds"
    return " ".join(str(getattr(problem, "reason", problem)).split()) or type(problem).__name__


def _fits(remote: Remote, path: Path) -> bool:
    return path.is_file() and digest_of(path, remote.algorithm) == remote.digest


def _length(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
