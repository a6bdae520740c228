"""Prepares images: one uint8 array of square images, computed once and stored in the cache.

The cache of a set is a folder `prepared/<fingerprint>` with `images.npy` (uint8 [N, C, R, R]), `labels.npy`
if it has labels, `meta.json`, and `skipped.txt` if images were skipped. It is written under a temporary name
and renamed when complete. `meta.json` has digests of the pixels by blocks, of the labels and of itself. They
are verified when the set is mapped, those of the pixels of a large set before the first image of a block is
used.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from gantx.config.schema import DataConfig
from gantx.data.blocks import BlockDigests, VerifiedBlocks
from gantx.data.crop import size_of
from gantx.data.labels import Labels, digest_of
from gantx.data.pixels import Tally, Unusable, at_ratio, read_all
from gantx.data.sources import HasLabelFiles, Source, open_source
from gantx.errors import DataError, MissingError, system_reason
from gantx.io.atomic import replacing, scratch_folder
from gantx.io.cache import cache_folder

Log = Callable[[str], None]
Progress = Callable[[int, int], None]

FORMAT = 1  # version of the cache's layout and of gantx.data.pixels; incremented when either changes
FEW = 100  # images; a smaller set is trained on with a warning
_AT_ONCE = 2**30  # bytes of pixels that are verified before the first of them is used
_NAMED = 3  # images that a message names


class UnusableImage(DataError):
    """Images of the set that cannot be used; the advice names settings, which not every command has.

    Attributes:
        fact: which images, and why, without the advice.
        small: whether all of them are smaller than the resolution; otherwise some cannot be read.
    """

    def __init__(self, fact: str, advice: str, *, small: bool = False) -> None:
        super().__init__(fact + advice)
        self.fact = fact
        self.small = small


@dataclass(frozen=True)
class Prepared:
    """A prepared set of images.

    Attributes:
        images: uint8 [N, C, R, R], mapped read-only from the cache.
        labels: int64 [N] in [0, len(class_names)), or None.
        class_names: names of the labels; empty without labels.
        fingerprint: digest of the source and of the settings of the preparation; name of the cache folder.
        digest: digest of the pixels: equal for equal images from any source.
        name: the source's short name.
        skipped: names of the images that could not be used and were skipped.
        blocks: verifies the pixels of a large set; None where that is done.
        unread_labels: the files that give labels and were not read; "" if there are none.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    fingerprint: str
    digest: str
    name: str
    skipped: tuple[str, ...]
    blocks: VerifiedBlocks | None = None
    unread_labels: str = ""

    def verify(self, rows: NDArray[np.int64] | None = None) -> None:
        """Verify the pixels of some images, or of all; costs nothing where that was done before.

        Raises:
            DataError: they are damaged; the set is marked to be prepared again.
        """
        if self.blocks is None or (self.blocks.all() if rows is None else self.blocks.of(rows)):
            return
        meta = cache_folder() / "prepared" / self.fingerprint / "meta.json"
        with contextlib.suppress(OSError):
            meta.unlink()
        raise DataError(
            f"the prepared images in {meta.parent} are damaged: start again, and they are prepared again"
        )

    @property
    def labelled_digest(self) -> str:
        """Digest of pixels and labels: equal for equal images of equal classes from any source."""
        return self.digest if self.labels is None else digest_of(self.digest, self.labels)


def prepare(
    data: DataConfig, *, log: Log, progress: Progress | None = None, labels: bool = False
) -> Prepared:
    """Map the prepared images of `data` from the cache; prepare them first if they are not there.

    Several processes may prepare one set at once; each returns the complete set.

    Args:
        data: which images, and how they are prepared.
        log: takes one line of log.
        progress: called with (done, total) during preparation: bytes while an archive is downloaded, then
            images.
        labels: read the files that give labels, if there are any, in place of the labels by folder; of
            STL-10, take only the images that have labels.

    Raises:
        UsageError: no source is set.
        MissingError: the source does not exist, cannot be downloaded, or the cache cannot be written.
        DataError: no image, or an archive that is not the published one.
        UnusableImage: images that are unreadable, or smaller than the resolution without
            `data.allow_upscale`, unless `data.on_bad_image` is "skip". All of them are looked for; the
            first few are named, and a file lists the others.
    """
    source = open_source(data, progress, labelled=labels)
    for note in source.notes:
        log(f"data: {note}")
    files = source.label_files if isinstance(source, HasLabelFiles) else None
    found = labels_of(source) if labels else None
    fingerprint = _fingerprint(source, data, files.digest() if files and found else None)
    folder = cache_folder() / "prepared" / fingerprint
    prepared = _load(folder, data.image_shape, source.name)
    origin = "from cache"
    if prepared is None:
        if folder.exists():
            log(f"data: the cache in {folder} is damaged or of another version, so it is made again")
        log(f"data: preparing {source.location} at {_size(data)}")
        started = time.perf_counter()
        _build(source, found, data, folder, log, progress)
        prepared = _load_patiently(folder, data.image_shape, source.name)
        if prepared is None:
            raise MissingError(f"the prepared images vanished from {folder}: start again")
        origin = f"prepared in {time.perf_counter() - started:.1f} s, cached in {folder}"
    if prepared.skipped:
        first = ", ".join(prepared.skipped[:5]) + (", …" if len(prepared.skipped) > 5 else "")
        log(f"data: {len(prepared.skipped):,} unusable left out: {first} (see {folder / 'skipped.txt'})")
    if files is not None and not labels and files.mention_labels():
        prepared = replace(prepared, unread_labels=str(files))
    classes = f", {len(prepared.class_names):,} classes" if prepared.labels is not None else ""
    log(
        f"data: {len(prepared.images):,} image{'' if len(prepared.images) == 1 else 's'}{classes}, "
        f"{_size(data)} ({origin})"
    )
    return prepared


def check(data: DataConfig, *, log: Log, progress: Progress | None = None, labels: bool = False) -> int:
    """Whether `prepare` would succeed: read every image, but store none; the number of usable images.

    A set that is in the cache is not read again. Takes and raises what `prepare` does.
    """
    source = open_source(data, progress, labelled=labels)
    for note in source.notes:
        log(f"data: {note}")
    files = source.label_files if isinstance(source, HasLabelFiles) else None
    found = labels_of(source) if labels else None
    if labels and not (source.class_names if found is None else found.names):
        raise without_labels(data)
    of_files = files.digest() if files and found else None
    folder = cache_folder() / "prepared" / _fingerprint(source, data, of_files)
    if (prepared := _load(folder, data.image_shape, source.name)) is not None:
        count = len(prepared.images)
    else:
        total = len(source)
        read = _read(source, data, total, lambda pixels: None, progress)
        _log_changes(read.tally, data, total, log)
        count = len(read.kept)
    log(f"data: {count:,} image{'' if count == 1 else 's'}, {_size(data)}")
    return count


def without_labels(data: DataConfig) -> DataError:
    """What to say of a set without labels that a conditional run is to be trained on."""
    return DataError(
        f"{data.source} has no labels: put the images of each class into a folder of their own, or add "
        "dataset.json or labels.csv, or train with conditioning.classes=null"
    )


def labels_of(source: Source) -> Labels | None:
    """The labels that files give to the images of a source; None without such files.

    Raises:
        DataError: a file is damaged, contradicts itself, or has no label for an image.
    """
    if not isinstance(source, HasLabelFiles) or source.label_files is None:
        return None
    return source.label_files.labels(source.image_names) or _NO_LABELS


def require_enough(count: int, data: DataConfig, log: Log) -> None:
    """Warn of a set that is too small to learn from; DataError for a single image, unless it is asked for."""
    if count == 1 and not data.allow_single:
        raise DataError(
            "the set has one image, which a GAN can only repeat: add images, or set data.allow_single=true"
        )
    if count < FEW:
        log(f"data: {count:,} images are few: a GAN learns little from fewer than {FEW}; add images")


def _size(data: DataConfig) -> str:
    """Size of the images, and of their squares and their channels if these differ, for the log."""
    width, height = size_of(data.resolution, data.ratio)
    side = data.resolution
    channels = {1: ", grey", 3: "", 4: ", RGBA"}[data.channels]
    return f"{width}×{height}" + (f" in squares of {side}×{side}" if height != width else "") + channels


# --- the cache --------------------------------------------------------------------------------------------


_NO_LABELS = Labels((), ())  # what a file of labels says of a set without any


def _fingerprint(source: Source, data: DataConfig, labels: str | None = None) -> str:
    """Name of the cache of a set; `labels` is the digest of the files that its labels are read from."""
    text = f"{source.fingerprint()}/{data.resolution}/{data.on_bad_image}/{data.allow_upscale}"
    if data.ratio != 1:  # so that sets prepared before there were ratios stay valid
        text += f"/{data.ratio!r}"
    if data.channels != 3:  # likewise, before there were other channels
        text += f"/channels/{data.channels}"
    if labels is not None:  # likewise, before there were such files
        text += f"/labels/{labels}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _load(folder: Path, shape: tuple[int, int, int], name: str) -> Prepared | None:
    """The set in `folder`, or None if it is missing, incomplete, or of another version."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT or meta.pop("sha256") != _seal(meta):
            return None
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / "labels.npy", allow_pickle=False) if meta["labels"] else None
        size = (folder / "images.npy").stat().st_size
        whole = (
            images.dtype == np.uint8
            and images.shape == (meta["count"], *shape)
            and size == images.offset + images.nbytes
            and (labels is None or (labels.dtype == np.int64 and labels.shape == images.shape[:1]))
        )
        skipped, class_names = tuple(meta["skipped"]), tuple(meta["class_names"])
        digest = str(meta["digest"])
        if not whole or (labels is not None and meta["labels_digest"] != _digest(labels)):
            return None
        blocks = VerifiedBlocks(images, meta["blocks"])
        if images.nbytes <= _AT_ONCE and not blocks.all():
            return None
    except Exception:  # numpy may raise anything for a damaged header
        return None
    return Prepared(images, labels, class_names, folder.name, digest, name, skipped, blocks)


def _seal(meta: dict[str, Any]) -> str:
    """Digest of all entries of meta.json."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _digest(labels: NDArray[np.int64]) -> str:
    return hashlib.sha256(labels.tobytes()).hexdigest()


def _load_patiently(folder: Path, shape: tuple[int, int, int], name: str) -> Prepared | None:
    """Like `_load`, but wait a second for another process that is replacing the folder."""
    for _ in range(20):
        if (prepared := _load(folder, shape, name)) is not None:
            return prepared
        time.sleep(0.05)
    return None


def _build(
    source: Source,
    labels: Labels | None,
    data: DataConfig,
    folder: Path,
    log: Log,
    progress: Progress | None,
) -> None:
    """Write the set to a temporary folder, then rename it to `folder`; on failure nothing is left."""
    total = len(source)  # may download, and raise its own errors
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        needed, free = total * math.prod(data.image_shape), shutil.disk_usage(folder.parent).free
        if needed > free:
            raise MissingError(
                f"the prepared images take {needed / 1e9:.1f} GB but {folder.parent} has {free / 1e9:.1f} GB "
                "free: free space there or set GANTX_CACHE to another folder"
            )
        with scratch_folder(folder) as beside:
            _write(source, labels, data, total, beside, log, progress)
            _install(beside, folder, lambda: _load(folder, data.image_shape, source.name) is not None)
    except OSError as problem:
        raise MissingError(
            f"cannot write the prepared images into {folder.parent} ({system_reason(problem)}): free "
            "space there or set GANTX_CACHE to another folder"
        ) from problem


def _write(
    source: Source,
    labels: Labels | None,
    data: DataConfig,
    total: int,
    folder: Path,
    log: Log,
    progress: Progress | None,
) -> None:
    # Plain writes: a full disk raises an exception here, but kills a process that writes to a mapped file.
    with (folder / "images.npy").open("wb") as file:
        _write_header(file, total, data.image_shape)
        body = file.tell()
        blocks = BlockDigests()

        def write(pixels: memoryview) -> None:
            file.write(pixels)
            blocks.update(pixels)

        found = _read(source, data, total, write, progress)
        file.seek(0)
        # numpy pads the header, so that its size stays the same.
        _write_header(file, len(found.kept), data.image_shape)
        assert file.tell() == body
    class_names = source.class_names if labels is None else labels.names
    numbers = None
    if class_names:
        chosen = [source.label(index) if labels is None else labels.numbers[index] for index in found.kept]
        numbers = np.array(chosen, np.int64)
        np.save(folder / "labels.npy", numbers)
    _log_changes(found.tally, data, total, log)
    if found.unusable:
        _list(source, found.unusable, folder / "skipped.txt")
    meta: dict[str, Any] = {
        "format": FORMAT,
        "count": len(found.kept),
        "resolution": data.resolution,
        "source": source.location,
        "labels": bool(class_names),
        "class_names": list(class_names),
        "digest": found.digest,
        "skipped": [source.identify(image.index) for image in found.unusable],
        "blocks": blocks.result(),
        "labels_digest": None if numbers is None else _digest(numbers),
    }
    meta["sha256"] = _seal(meta)
    (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


@dataclass(frozen=True)
class _Found:
    """What reading a source came to.

    Attributes:
        kept: indices of the usable images.
        unusable: the others.
        tally: how many images were changed.
        digest: of the pixels.
    """

    kept: list[int]
    unusable: list[Unusable]
    tally: Tally
    digest: str


def _read(
    source: Source,
    data: DataConfig,
    total: int,
    write: Callable[[memoryview], object],
    progress: Progress | None,
) -> _Found:
    """Read all images and pass the pixels of the usable ones to `write`.

    Raises:
        UnusableImage: some cannot be used and are not to be skipped.
        DataError: none can be used.
    """
    kept: list[int] = []
    unusable: list[Unusable] = []
    tally = Tally()
    digest = hashlib.blake2b(digest_size=16)
    with closing(read_all(source, data, total)) as chunks:
        for chunk in chunks:
            write(chunk.pixels.data)
            digest.update(chunk.pixels.data)
            kept += chunk.kept
            unusable += chunk.unusable
            tally.add(chunk.tally)
            if progress is not None:
                progress(len(kept) + len(unusable), total)
    if unusable and data.on_bad_image == "error":
        raise _refusal(source, data, unusable, total)
    if not kept:
        first = unusable[0]
        raise DataError(
            f"none of the {total:,} images in {source.location} can be used; the first is "
            f"{source.identify(first.index)}: {first.reason}"
        )
    return _Found(kept, unusable, tally, digest.hexdigest())


def _log_changes(tally: Tally, data: DataConfig, total: int, log: Log) -> None:
    if tally.cropped:
        shape = "square: the centre square" if data.ratio == 1 else f"of the ratio {data.ratio:g}: the centre"
        log(f"data: {tally.cropped:,} of {total:,} images are not {shape} is used")
    if tally.enlarged:
        least = f"{data.resolution} pixels{at_ratio(data)}"
        log(f"data: {tally.enlarged:,} of {total:,} images are smaller than {least}: enlarged")
    if tally.alpha and data.channels != 4:
        log(
            f"data: {tally.alpha:,} of {total:,} images have transparency: composited over white "
            "(data.channels=4 keeps it)"
        )
    if tally.grey == total and data.channels != 1:
        log("data: every image is grey: data.channels=1 trains on one channel")


def _list(source: Source, unusable: list[Unusable], file: Path) -> None:
    """Write the name of each image and why it cannot be used, a line each."""
    lines = [f"{source.identify(image.index)}: {image.reason}\n" for image in unusable]
    file.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")


def _refusal(source: Source, data: DataConfig, unusable: list[Unusable], total: int) -> UnusableImage:
    """The error that names the images of a set that cannot be used: the first few, and in a file all."""
    small = [image.small for image in unusable]
    advice = "data.on_bad_image=skip to leave such images out"
    if all(small):
        advice = f": lower data.resolution, set data.allow_upscale=true to enlarge such images, or {advice}"
    else:
        advice = f"; repair or remove {'it' if len(unusable) == 1 else 'them'}, or set {advice}"
    first = unusable[0]
    name = source.identify(first.index)
    if len(unusable) == 1:
        fact = f"{name} is {first.reason}" if first.small else f"cannot use {name}: {first.reason}"
        return UnusableImage(fact, advice, small=first.small)
    named = "; ".join(f"{source.identify(image.index)}: {image.reason}" for image in unusable[:_NAMED])
    if len(unusable) > _NAMED:
        rest = cache_folder() / f"unusable-{_fingerprint(source, data)}.txt"
        try:
            with replacing(rest) as beside:
                _list(source, unusable, beside)
            named += f"; … (all in {rest})"
        except MissingError:  # a full disk must not hide the images
            named += "; …"
    return UnusableImage(
        f"cannot use {len(unusable):,} of {total:,} images: {named}", advice, small=all(small)
    )


def _write_header(file: BinaryIO, count: int, shape: tuple[int, int, int]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, header)


def _install(made: Path, folder: Path, is_whole: Callable[[], bool]) -> None:
    """Rename `made` to `folder` and replace a damaged set there; keep a complete one of another process."""
    for _ in range(10):  # other processes may be replacing the same damaged set
        try:
            made.rename(folder)
            return
        except OSError as problem:
            # A folder that existed a moment ago counts, even if another process has moved it since.
            if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not folder.is_dir():
                raise
        if is_whole():
            return
        with scratch_folder(folder) as aside, contextlib.suppress(FileNotFoundError):
            folder.rename(aside / "damaged")
    raise MissingError(f"cannot replace the damaged cache in {folder}: delete that folder")
