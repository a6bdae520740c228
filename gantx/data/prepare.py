"""Prepares images: one uint8 array of square RGB images, computed once and stored in the cache.

Each image goes through these steps, in this order; docs/data.md describes them to users:

1. It is rotated according to its EXIF orientation. Of an animation the first frame is used.
2. The largest centred rectangle of `data.ratio` is cropped: a square unless the ratio is below 1.
3. It is converted to 8-bit RGB (`to_rgb`). Colour profiles are ignored.
4. It is resized with Lanczos, which is antialiased in Pillow and keeps the most detail of its filters.
   An image smaller than the resolution is refused unless `data.allow_upscale` is set.
5. If the ratio is below 1, it is centred in a black square (gantx.data.crop).

The cache of a set is a folder `prepared/<fingerprint>` with `images.npy` (uint8 [N, 3, R, R]), `labels.npy`
if it has labels, `meta.json`, and `skipped.txt` if images were skipped. It is written under a temporary name
and renamed when complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from gantx.config.schema import DataConfig
from gantx.data.crop import height_of, rectangle, rows_of
from gantx.data.labels import Labels, digest_of
from gantx.data.sources import HasLabelFiles, ReadsRanges, Source, open_source
from gantx.errors import DataError, GantxError, MissingError
from gantx.io.cache import cache_folder
from gantx.runtime import cores

Log = Callable[[str], None]
Progress = Callable[[int, int], None]

FORMAT = 1  # version of the cache's layout and of the steps above; incremented when either changes
_WORTH_A_THREAD = 4096  # bytes; smaller images spend their time in Python, under the global interpreter lock


class UnusableImage(DataError):
    """An image of the set that cannot be used; the advice names settings, which not every command has.

    Attributes:
        fact: which image, and why, without the advice.
        small: whether it is smaller than the resolution; otherwise it cannot be read.
    """

    def __init__(self, fact: str, advice: str, *, small: bool = False) -> None:
        super().__init__(fact + advice)
        self.fact = fact
        self.small = small


@dataclass(frozen=True)
class Prepared:
    """A prepared set of images.

    Attributes:
        images: uint8 [N, 3, R, R], mapped read-only from the cache.
        labels: int64 [N] in [0, len(class_names)), or None.
        class_names: names of the labels; empty without labels.
        fingerprint: digest of the source and of the settings of the preparation; name of the cache folder.
        digest: digest of the pixels: equal for equal images from any source.
        name: the source's short name.
        skipped: names of the images that could not be read and were skipped.
        unread_labels: the files that give labels and were not read; "" if there are none.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    fingerprint: str
    digest: str
    name: str
    skipped: tuple[str, ...]
    unread_labels: str = ""

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
        DataError: no image, an unreadable image (unless `data.on_bad_image` is "skip"), an image smaller
            than the resolution (unless `data.allow_upscale`), or an archive that is not the published one.
    """
    source = open_source(data, progress, labelled=labels)
    for note in source.notes:
        log(f"data: {note}")
    files = source.label_files if isinstance(source, HasLabelFiles) else None
    found = of_files = None
    if labels and isinstance(source, HasLabelFiles) and files is not None:
        found, of_files = files.labels(source.image_names) or _NO_LABELS, files.digest()
    fingerprint = _fingerprint(source, data, of_files)
    folder = cache_folder() / "prepared" / fingerprint
    prepared = _load(folder, data.resolution, source.name)
    origin = "from cache"
    if prepared is None:
        if folder.exists():
            log(f"data: the cache in {folder} is damaged or of another version, so it is made again")
        log(f"data: preparing {source.location} at {_size(data)}")
        started = time.perf_counter()
        _build(source, found, data, folder, log, progress)
        prepared = _load_patiently(folder, data.resolution, source.name)
        if prepared is None:
            raise MissingError(f"the prepared images vanished from {folder}: start again")
        origin = f"prepared in {time.perf_counter() - started:.1f} s, cached in {folder}"
    if prepared.skipped:
        first = ", ".join(prepared.skipped[:5]) + (", …" if len(prepared.skipped) > 5 else "")
        log(f"data: {len(prepared.skipped):,} unreadable left out: {first} (see {folder / 'skipped.txt'})")
    if files is not None and not labels and files.mention_labels():
        prepared = replace(prepared, unread_labels=str(files))
    classes = f", {len(prepared.class_names):,} classes" if prepared.labels is not None else ""
    log(
        f"data: {len(prepared.images):,} image{'' if len(prepared.images) == 1 else 's'}{classes}, "
        f"{_size(data)} ({origin})"
    )
    return prepared


def _size(data: DataConfig) -> str:
    """Size of the images, and of their squares if that differs, for the log."""
    width, height = data.resolution, height_of(data.resolution, data.ratio)
    return f"{width}×{height}" + (f" in squares of {width}×{width}" if height != width else "")


def _at_ratio(data: DataConfig) -> str:
    return "" if data.ratio == 1 else f" at the ratio {data.ratio:g}"


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded image of any mode to 8-bit RGB by fixed rules.

    - Greyscale and black-and-white: the value is repeated in three channels.
    - 16-bit greyscale: divided by 257 and rounded. Mode I counts as 16-bit once a value exceeds 255.
    - Palette: its colours are looked up.
    - Any transparency (alpha, or a transparent colour): composited over white, the usual background of such
      images; the colours stored under transparent pixels are arbitrary.
    - CMYK, YCbCr and HSV: converted by Pillow's formulas, colour profiles ignored.

    Raises:
        ValueError: mode F, values outside 16 bits, and modes Pillow cannot convert: their range is unknown.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        return _from_integers(np.asarray(image)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        white.alpha_composite(layer)
        return white.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_integers(values: NDArray[np.integer]) -> Image.Image:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"integer pixels from {low} to {high} do not fit 16 bits")
    if values.dtype.itemsize == 2 or high > 255:
        values = (values.astype(np.int32) + 128) // 257  # v / 257 rounded; 257 is odd, so there are no ties
    return Image.fromarray(values.astype(np.uint8))


# --- one image --------------------------------------------------------------------------------------------


@dataclass
class _Tally:
    """Numbers of images that were changed, for the log."""

    cropped: int = 0
    enlarged: int = 0


def _fit(image: Image.Image | NDArray[np.uint8], data: DataConfig, tally: _Tally) -> NDArray[np.uint8]:
    """Crop, convert and resize one image to uint8 [H, R, 3]; _TooSmall if it must not be enlarged to that."""
    wanted = data.resolution, height_of(data.resolution, data.ratio)  # width, height
    if isinstance(image, np.ndarray):
        if image.shape[1::-1] == wanted:
            return image
        image = Image.fromarray(image)
    image.load()
    if not image.info.keys().isdisjoint(_ORIENTED) or hasattr(image, "tag_v2"):
        image = _upright(image)
    width, height = image.size
    rows, columns = rectangle(height, width, data.ratio)
    kept = columns.stop - columns.start, rows.stop - rows.start
    if kept[0] < wanted[0] or kept[1] < wanted[1]:
        if not data.allow_upscale:
            raise _TooSmall(width, height)
        tally.enlarged += 1
    if kept != (width, height):
        tally.cropped += 1
        image = image.crop((columns.start, rows.start, columns.stop, rows.stop))
    image = to_rgb(image)
    if kept != wanted:
        image = image.resize(wanted, Image.Resampling.LANCZOS)
    return np.asarray(image)


_ORIENTED = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # unreadable EXIF may raise anything; the pixels may still be valid
        return image


class _TooSmall(Exception):
    """An image is smaller than the resolution and must not be enlarged."""


def _reason(problem: Exception) -> str:
    """The reason why an image could not be read, as part of a sentence."""
    if isinstance(problem, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"it has more than the {Image.MAX_IMAGE_PIXELS:,} pixels that gantx decodes"
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return " ".join(str(problem).split()).rstrip(".") or type(problem).__name__


# --- many images ------------------------------------------------------------------------------------------


@dataclass
class _Chunk:
    """The usable images of a range of the source.

    Attributes:
        pixels: uint8 [n, 3, R, R].
        kept: their indices in the source.
        skipped: index and reason of the others.
        tally: how many were changed.
    """

    pixels: NDArray[np.uint8]
    kept: list[int]
    skipped: list[tuple[int, str]]
    tally: _Tally


def _read_chunk(source: Source, data: DataConfig, start: int, stop: int) -> _Chunk:
    resolution, rows = data.resolution, rows_of(data.resolution, data.ratio)
    tally = _Tally()
    images = source.read_range(start, stop) if isinstance(source, ReadsRanges) else None
    if images is not None and data.ratio == 1 and images.shape[1:3] == (resolution, resolution):
        return _Chunk(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), list(range(start, stop)), [], tally)
    # Rows outside the image stay black.
    pixels = np.zeros((stop - start, resolution, resolution, 3), np.uint8)
    kept: list[int] = []
    skipped: list[tuple[int, str]] = []
    for index in range(start, stop):
        try:
            image = source.read(index) if images is None else images[index - start]
            pixels[len(kept), rows] = _fit(image, data, tally)
        except _TooSmall as size:
            width, height = size.args
            raise UnusableImage(
                f"{source.identify(index)} is {width}×{height} pixels, smaller than the resolution "
                f"{resolution}{_at_ratio(data)}",
                ": lower data.resolution, or set data.allow_upscale=true to enlarge such images",
                small=True,
            ) from None
        except GantxError:
            raise
        except Exception as problem:  # decoders may raise anything for a broken file
            if data.on_bad_image == "error":
                raise UnusableImage(
                    f"cannot use {source.identify(index)}: {_reason(problem)}",
                    "; repair or remove it, or set data.on_bad_image=skip to leave such images out",
                ) from problem
            skipped.append((index, _reason(problem)))
            continue
        kept.append(index)
    return _Chunk(np.ascontiguousarray(pixels[: len(kept)].transpose(0, 3, 1, 2)), kept, skipped, tally)


def _read_all(source: Source, data: DataConfig, total: int) -> Generator[_Chunk, None, None]:
    """Chunks of the source in order, decoded ahead in threads if images are large, up to a bound."""
    length = max(1, min(256, 2**22 // (3 * data.resolution**2)))
    workers = min(32, len(cores.allowed())) if source.typical_bytes >= _WORTH_A_THREAD else 1
    ahead: deque[Future[_Chunk]] = deque()
    Image.init()
    # Filters of warnings apply to all threads: they are set once, around everything that decodes.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers, "decode") as pool:
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            for start in range(0, total, length):
                ahead.append(pool.submit(_read_chunk, source, data, start, min(start + length, total)))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


# --- the cache --------------------------------------------------------------------------------------------


_NO_LABELS = Labels((), ())  # what a file of labels says of a set without any


def _fingerprint(source: Source, data: DataConfig, labels: str | None = None) -> str:
    """Name of the cache of a set; `labels` is the digest of the files that its labels are read from."""
    text = f"{source.fingerprint()}/{data.resolution}/{data.on_bad_image}/{data.allow_upscale}"
    if data.ratio != 1:  # so that sets prepared before there were ratios stay valid
        text += f"/{data.ratio!r}"
    if labels is not None:  # likewise, before there were such files
        text += f"/labels/{labels}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _load(folder: Path, resolution: int, name: str) -> Prepared | None:
    """The set in `folder`, or None if it is missing, incomplete, or of another version."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT:
            return None
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / "labels.npy", allow_pickle=False) if meta["labels"] else None
        size = (folder / "images.npy").stat().st_size
        whole = (
            images.dtype == np.uint8
            and images.shape == (meta["count"], 3, resolution, resolution)
            and size == images.offset + images.nbytes
            and (labels is None or (labels.dtype == np.int64 and labels.shape == images.shape[:1]))
        )
        skipped, class_names = tuple(meta["skipped"]), tuple(meta["class_names"])
        digest = str(meta["digest"])
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    if not whole:
        return None
    return Prepared(images, labels, class_names, folder.name, digest, name, skipped)


def _load_patiently(folder: Path, resolution: int, name: str) -> Prepared | None:
    """Like `_load`, but wait a second for another process that is replacing the folder."""
    for _ in range(20):
        if (prepared := _load(folder, resolution, name)) is not None:
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
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        needed, free = total * 3 * data.resolution**2, shutil.disk_usage(folder.parent).free
        if needed > free:
            raise MissingError(
                f"the prepared images take {needed / 1e9:.1f} GB but {folder.parent} has {free / 1e9:.1f} GB "
                "free: free space there or set GANTX_CACHE to another folder"
            )
        _sweep(folder)
        beside.mkdir()
        _write(source, labels, data, total, beside, log, progress)
        _install(beside, folder, lambda: _load(folder, data.resolution, source.name) is not None)
    except OSError as problem:
        raise MissingError(
            f"cannot write the prepared images into {folder.parent} ({problem.strerror or problem}): free "
            "space there or set GANTX_CACHE to another folder"
        ) from problem
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _sweep(folder: Path, seconds: float = 3600.0) -> None:
    """Remove temporary folders of preparations that were killed: those unchanged for an hour."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        times = [path.stat().st_mtime for path in (left, *left.glob("*"))]
        if time.time() - max(times) > seconds:
            shutil.rmtree(left, ignore_errors=True)


def _write(
    source: Source,
    labels: Labels | None,
    data: DataConfig,
    total: int,
    folder: Path,
    log: Log,
    progress: Progress | None,
) -> None:
    kept: list[int] = []
    skipped: list[tuple[int, str]] = []
    cropped = enlarged = 0
    digest = hashlib.blake2b(digest_size=16)
    # Plain writes: a full disk raises an exception here, but kills a process that writes to a mapped file.
    with (folder / "images.npy").open("wb") as file, closing(_read_all(source, data, total)) as chunks:
        _write_header(file, total, data.resolution)
        body = file.tell()
        for chunk in chunks:
            file.write(chunk.pixels.data)
            digest.update(chunk.pixels.data)
            kept += chunk.kept
            skipped += chunk.skipped
            cropped += chunk.tally.cropped
            enlarged += chunk.tally.enlarged
            if progress is not None:
                progress(len(kept) + len(skipped), total)
        if not kept:
            raise DataError(
                f"none of the {total:,} images in {source.location} can be used; the first is "
                f"{source.identify(skipped[0][0])}: {skipped[0][1]}"
            )
        file.seek(0)
        _write_header(
            file, len(kept), data.resolution
        )  # numpy pads the header, so that its size stays the same
        assert file.tell() == body
    class_names = source.class_names if labels is None else labels.names
    if class_names:
        chosen = [source.label(index) if labels is None else labels.numbers[index] for index in kept]
        np.save(folder / "labels.npy", np.array(chosen, np.int64))
    if cropped:
        shape = "square: the centre square" if data.ratio == 1 else f"of the ratio {data.ratio:g}: the centre"
        log(f"data: {cropped:,} of {total:,} images are not {shape} is used")
    if enlarged:
        least = f"{data.resolution} pixels{_at_ratio(data)}"
        log(f"data: {enlarged:,} of {total:,} images are smaller than {least}: enlarged")
    names = [source.identify(index) for index, _ in skipped]
    if skipped:
        lines = [f"{name}: {reason}\n" for name, (_, reason) in zip(names, skipped, strict=True)]
        (folder / "skipped.txt").write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    meta = {
        "format": FORMAT,
        "count": len(kept),
        "resolution": data.resolution,
        "source": source.location,
        "labels": bool(class_names),
        "class_names": list(class_names),
        "digest": digest.hexdigest(),
        "skipped": names,
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _write_header(file: BinaryIO, count: int, resolution: int) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, resolution, resolution)}
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
        aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        try:
            folder.rename(aside)
        except FileNotFoundError:
            continue
        shutil.rmtree(aside, ignore_errors=True)
    raise MissingError(f"cannot replace the damaged cache in {folder}: delete that folder")
