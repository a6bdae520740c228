"""Published sets: CIFAR-10, CIFAR-100 and STL-10, from an archive, an unpacked folder or a download.

Nothing is unpacked, and no pickle of CIFAR is opened, before its MD5 is the published one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gantx.data.downloads import Progress, Remote, digest_of, download
from gantx.data.shapes import Split
from gantx.errors import DataError, MissingError, system_reason
from gantx.io.atomic import scratch_folder
from gantx.io.cache import cache_folder


@dataclass(frozen=True)
class PublishedSet:
    """A set of images; torchvision knows the address of its archive and the MD5 of its files.

    Attributes:
        name: its name for `--data`.
        title: its name in messages.
        dataset: name of its class in torchvision.datasets.
        folder: the folder its archive unpacks to.
    """

    name: str
    title: str
    dataset: str
    folder: str


SETS = {
    published.name: published
    for published in (
        PublishedSet("cifar10", "CIFAR-10", "CIFAR10", "cifar-10-batches-py"),
        PublishedSet("cifar100", "CIFAR-100", "CIFAR100", "cifar-100-python"),
        PublishedSet("stl10", "STL-10", "STL10", "stl10_binary"),
    )
}


_STL_CLASSES = (
    *("airplane", "bird", "car", "cat", "deer"),
    *("dog", "horse", "monkey", "ship", "truck"),
)  # of the labels 1 to 10, as its class_names.txt has them


def from_download(
    name: str, split: Split, progress: Progress | None, labelled: bool = False
) -> PublishedSource:
    """The set of this name, downloaded and unpacked into the cache when its first image is needed."""
    published = SETS[name]
    unpacked = partial(_unpacked_download, published, progress)
    return PublishedSource(published, name, unpacked, split, labelled)


def from_folder(path: Path, split: Split, labelled: bool = False) -> PublishedSource | None:
    """The unpacked set in `path`, or in the folder of its usual name there; None if there is none."""
    for published in SETS.values():
        if path.name == published.folder:
            return PublishedSource(published, str(path), lambda: path, split, labelled)
        if (inside := path / published.folder).is_dir():
            return PublishedSource(published, str(inside), lambda: inside, split, labelled)
    return None


def from_archive(path: Path, split: Split, labelled: bool = False) -> PublishedSource:
    """The set in a `.tar.gz`; DataError unless the MD5 of the file is that of a published archive."""
    digest = digest_of(path, "md5")
    for published in SETS.values():
        if digest == _torchvision(published).tgz_md5:
            unpacked = partial(_unpack, published, path, digest)
            return PublishedSource(published, str(path), unpacked, split, labelled)
    raise DataError(
        f"{path} is not the published archive of CIFAR-10 (Python version), CIFAR-100 (Python version) or "
        f"STL-10 (its MD5 is {digest}): download it again, or unpack your own images and give the folder"
    )


class PublishedSource:
    """The images of CIFAR-10, CIFAR-100 (fine labels) or STL-10.

    Most of STL-10 has no label: unlabeled counts as training, and then no image has one.

    Args:
        published: which set.
        location: where it comes from, for messages.
        unpacked: returns its unpacked folder; may download and unpack. Called when the first image, the
            number of images or a class name is needed, so never for a set that is already prepared.
        split: the published training or test images.
        labelled: of STL-10, take the labelled images alone, and their labels.
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self,
        published: PublishedSet,
        location: str,
        unpacked: Callable[[], Path],
        split: Split,
        labelled: bool = False,
    ) -> None:
        self.name = published.name
        self.location = location
        self._published = published
        self._unpacked = unpacked
        self._split = split
        self._labelled = labelled and published.name == "stl10"
        if self._labelled and split == "train":
            self.notes = ("STL-10 has labels for 5,000 of its training images: only these are used",)

    @cached_property
    def _content(self) -> _Content:
        folder = self._unpacked()
        try:
            if self._labelled:
                return _load_labelled_stl(self._published, folder, self._split)
            load = _load_stl if self._published.name == "stl10" else _load_cifar
            return load(self._published, folder, self._split)
        except OSError as problem:
            raise MissingError(f"cannot read {folder}: {system_reason(problem)}") from problem

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty for the whole of STL-10, most of which has no label."""
        return self._content.class_names

    @property
    def typical_bytes(self) -> int:
        """Bytes of one image."""
        return int(self._content.parts[0][0].size)

    def __len__(self) -> int:
        return sum(len(part) for part in self._content.parts)

    def fingerprint(self) -> str:
        """Fixed for each split: the images are verified against published digests before they are used."""
        text = f"published/{self._published.name}/{self._split}{'/labelled' if self._labelled else ''}\n"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def label(self, index: int) -> int | None:
        """The class as published, from 0; None for the whole of STL-10."""
        labels = self._content.labels
        return None if labels is None else labels[index]

    def identify(self, index: int) -> str:
        """The set, the split and the number of the image in it."""
        return f"{self._published.title} {self._split} image {index}"

    def read(self, index: int) -> NDArray[np.uint8]:
        """Image `index`, uint8 [H, W, 3]."""
        image: NDArray[np.uint8] = self.read_range(index, index + 1)[0]
        return image

    def read_range(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Images start..stop-1, uint8 [stop - start, H, W, 3]."""
        pieces, offset = [], 0
        for part in self._content.parts:
            pieces.append(part[max(0, start - offset) : max(0, stop - offset)])
            offset += len(part)
        return np.concatenate(pieces)


@dataclass(frozen=True)
class _Content:
    parts: tuple[NDArray[np.uint8], ...]  # each [n, H, W, 3], perhaps a view of a mapped file
    labels: Sequence[int] | None
    class_names: tuple[str, ...]


def _load_cifar(published: PublishedSet, folder: Path, split: Split) -> _Content:
    dataset = _torchvision(published)
    meta = (dataset.meta["filename"], dataset.meta["md5"])
    _verify(published, folder, [*map(tuple, dataset.train_list), *map(tuple, dataset.test_list), meta])
    # torchvision checks every digest again before it unpickles.
    images = dataset(root=str(folder.parent), train=split == "train")
    return _Content((images.data,), [int(label) for label in images.targets], tuple(images.classes))


def _load_stl(published: PublishedSet, folder: Path, split: Split) -> _Content:
    dataset = _torchvision(published)
    digests = dict([*dataset.train_list, *dataset.test_list])
    files = ("train_X.bin", "unlabeled_X.bin") if split == "train" else ("test_X.bin",)
    _verify(published, folder, [(name, digests[name]) for name in files])
    # The files contain images of 96 x 96 as [N, 3, W, H]; mapped, because they take 2.9 GB.
    maps = [np.memmap(folder / name, np.uint8, mode="r").reshape(-1, 3, 96, 96) for name in files]
    return _Content(tuple(pixels.transpose(0, 3, 2, 1) for pixels in maps), None, ())


def _load_labelled_stl(published: PublishedSet, folder: Path, split: Split) -> _Content:
    dataset = _torchvision(published)
    digests = dict([*dataset.train_list, *dataset.test_list])
    names = (f"{split}_X.bin", f"{split}_y.bin")
    _verify(published, folder, [(name, digests[name]) for name in names])
    pixels = np.memmap(folder / names[0], np.uint8, mode="r").reshape(-1, 3, 96, 96)
    labels = np.fromfile(folder / names[1], np.uint8).astype(np.int64) - 1
    return _Content((pixels.transpose(0, 3, 2, 1),), labels.tolist(), _STL_CLASSES)


def _verify(published: PublishedSet, folder: Path, digests: Iterable[tuple[str, str]]) -> None:
    from torchvision.datasets.utils import check_integrity

    for name, digest in digests:
        if not check_integrity(str(folder / name), digest):
            state = "does not have the published MD5" if (folder / name).is_file() else "is missing"
            raise DataError(
                f"{folder / name} {state}: delete {folder} and unpack the published archive of "
                f"{published.title} again"
            )


def _unpacked_download(published: PublishedSet, progress: Progress | None) -> Path:
    """Download the archive unless it is there, and unpack it unless that was done before."""
    dataset = _torchvision(published)
    archive = cache_folder() / "downloads" / str(dataset.filename)
    unpacked = _unpacked_folder(published, dataset.tgz_md5)
    if unpacked.is_dir():
        return unpacked
    remote = Remote(
        url=dataset.url,
        algorithm="md5",
        digest=dataset.tgz_md5,
        title=published.title,
        instead="fetch that file in another way and give its path to --data",
    )
    download(remote, archive, progress)
    return _unpack(published, archive, dataset.tgz_md5)


def _unpack(published: PublishedSet, archive: Path, digest: str) -> Path:
    """Unpack a verified archive into the cache once; returns the folder of its files."""
    unpacked = _unpacked_folder(published, digest)
    if unpacked.is_dir():
        return unpacked
    try:
        unpacked.parent.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(unpacked.parent) as beside:
            with tarfile.open(archive, "r:gz") as tar:
                tar.extractall(beside, filter="data")
            os.rename(beside, unpacked.parent)  # noqa: PTH104 -- must fail when another process was first
    except OSError as problem:
        if problem.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise MissingError(
                f"cannot unpack {archive} into {unpacked.parent.parent} ({system_reason(problem)}): "
                "free space there or set GANTX_CACHE to another folder"
            ) from problem
    except tarfile.TarError as problem:
        raise DataError(f"{archive} cannot be unpacked ({problem}): download it again") from problem
    return unpacked


def _unpacked_folder(published: PublishedSet, digest: str) -> Path:
    return cache_folder() / "unpacked" / f"{published.name}-{digest[:8]}" / published.folder


def _torchvision(published: PublishedSet) -> Any:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as problem:  # RuntimeError: built for another torch
        raise MissingError(
            f"reading {published.title} needs a torchvision that fits the installed torch ({problem}): "
            "reinstall both, or unpack the images into a folder"
        ) from problem
    return getattr(datasets, published.dataset)
