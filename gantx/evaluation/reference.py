"""Reference statistics: the features of real images, and their mean and covariance.

They are computed once for a set of pixels, a feature network and a protocol, and kept in the cache under a
digest of exactly these; `gantx stats` writes the same file to a given path. All of its bytes are covered by
digests (gantx.io.sealed). Statistics of other tools (.npz with `mu` and `sigma`) can be read, but do not
record what they were made of; the checksums of the .npz are verified.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gantx.data.prepare import Prepared
from gantx.errors import DataError, MissingError, UsageError, first_line
from gantx.evaluation.features import FeatureNetwork
from gantx.evaluation.frechet import Gaussian, Moments
from gantx.evaluation.protocols import Protocol, channels_stamp, ratio_stamp
from gantx.generation import sampling
from gantx.io import sealed
from gantx.io.arrays import read_npz
from gantx.io.atomic import replacing
from gantx.io.byte_names import utf8_path
from gantx.io.cache import cache_folder
from gantx.io.channels import to_rgb

FORMAT = "gantx.reference/1"
KEPT = 50_000  # features stored at most; the moments are always those of all images
_SEED = 0  # of the choice and the flips of reference images

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Reference:
    """Statistics of real images in the features of one network.

    Attributes:
        count: images the moments are made of; None when the file does not record it.
        mean: float64 [D].
        covariance: float64 [D, D], divided by N - 1; or as another tool made it.
        features: float32 [n, D] of at most `KEPT` images, or None when only moments were kept.
        stamp: what the statistics were made of; goes into the record of every score taken with them.
        sealed: whether the file they come from was verified by its digests; False for one that was written
            before gantx kept any.
    """

    count: int | None
    mean: Tensor
    covariance: Tensor
    features: Tensor | None
    stamp: dict[str, Any]
    sealed: bool = True

    def covariance_by(self, ddof: int) -> Tensor:
        """The covariance divided by N - ddof."""
        if ddof == 1 or self.count is None:
            return self.covariance
        return self.covariance * ((self.count - 1) / (self.count - ddof))


def describe(
    prepared: Prepared,
    network: FeatureNetwork,
    protocol: Protocol,
    *,
    split: str,
    mirrored: bool,
    ratio: float = 1.0,
) -> dict[str, Any]:
    """The stamp of the statistics of `prepared`; cached ones are used if theirs is equal.

    Args:
        prepared: the real images.
        network: that computes their features.
        protocol: by which they are chosen.
        split: part of the data set they are.
        mirrored: whether the generator was trained with mirrored images.
        ratio: height / width of the images within the prepared squares.
    """
    return {
        "extractor": network.name,
        "weights_sha256": network.digest,
        "resize": network.resize,
        "feature_dim": network.dim,
        "pixels": prepared.digest,
        "resolution": prepared.images.shape[-1],
        "split": split,
        "mirror": protocol.mirror and mirrored,
        "n_ref": min(len(prepared.images), protocol.reference_num or len(prepared.images)),
        **ratio_stamp(ratio),
        **channels_stamp(prepared.images.shape[1]),
    }


def reference_for(
    prepared: Prepared,
    network: FeatureNetwork,
    stamp: dict[str, Any],
    *,
    device: torch.device,
    progress: Progress,
    use_cache: bool = True,
    log: Callable[[str], None] = lambda text: None,
) -> tuple[Reference, bool]:
    """The statistics that `stamp` describes, from the cache or measured now and kept there.

    Cached statistics that do not match their digests, or have none, are measured again.

    Args:
        prepared: the real images.
        network: that computes their features.
        stamp: from `describe`.
        device: where the network is.
        progress: called with (done, total) images.
        use_cache: read the cache; it is written either way.
        log: receives a line if cached statistics are measured again.

    Returns:
        The statistics, and whether they came from the cache.
    """
    path = cache_folder() / "reference" / f"{_key(stamp)}.safetensors"
    if use_cache and path.is_file():
        try:
            found = read(path)
        except DataError:
            found = None
        if found is not None and found.sealed and found.stamp == stamp and found.features is not None:
            return found, True
        what = "damaged" if found is None or found.sealed else "of an older gantx, without digests"
        log(f"reference: the cached statistics {path} are {what}, so they are measured again")
    measured = measure(prepared, network, stamp, device=device, progress=progress)
    write(path, measured)
    return measured, False


def measure(
    prepared: Prepared,
    network: FeatureNetwork,
    stamp: dict[str, Any],
    *,
    device: torch.device,
    progress: Progress,
) -> Reference:
    """Compute the statistics that `stamp` describes; see `reference_for`."""
    total, count = len(prepared.images), int(stamp["n_ref"])
    rng = np.random.default_rng(_SEED)
    rows = np.sort(rng.permutation(total)[:count]) if count < total else np.arange(total)
    flips = rng.random(count) < 0.5 if stamp["mirror"] else np.zeros(count, bool)
    kept = np.sort(rng.permutation(count)[:KEPT]) if count > KEPT else np.arange(count)
    moments = Moments(network.dim)
    features = torch.empty(len(kept), network.dim, dtype=torch.float32)
    filled = 0
    for start in range(0, count, network.batch):
        stop = min(start + network.batch, count)
        prepared.verify(rows[start:stop])
        pixels = sampling.crop(torch.from_numpy(prepared.images[rows[start:stop]]), stamp.get("ratio", 1.0))
        flipped = torch.from_numpy(flips[start:stop])
        pixels = torch.where(flipped[:, None, None, None], pixels.flip(3), pixels)
        found = network(to_rgb(pixels.to(device))).features.cpu()
        moments.add(found)
        first, last = np.searchsorted(kept, (start, stop))
        features[filled : filled + last - first] = found[torch.from_numpy(kept[first:last] - start)]
        filled += int(last - first)
        progress(stop, count)
    return Reference(count, moments.mean, moments.covariance(), features, stamp)


def write(path: Path, reference: Reference, *, with_features: bool = True) -> None:
    """Write statistics as safetensors, atomically; MissingError when that is impossible."""
    tensors = {"mean": reference.mean, "covariance": reference.covariance}
    if with_features and reference.features is not None:
        tensors["features"] = reference.features
    metadata = {"format": FORMAT, "count": str(reference.count), "stamp": json.dumps(reference.stamp)}
    with replacing(path) as beside:
        sealed.save(beside, tensors, metadata)


def read(path: Path) -> Reference:
    """Read statistics from a file of `write`, or an .npz with `mu` and `sigma`.

    Raises:
        MissingError: there is no such file.
        DataError: it is neither, or damaged.
    """
    if not path.is_file():
        raise MissingError(f"no reference statistics at {path}: make them with gantx stats DATA -o {path}")
    return _read_npz(path) if zipfile.is_zipfile(path) else _read_safetensors(path)


def check(reference: Reference, network: FeatureNetwork, wanted: dict[str, Any], path: Path) -> None:
    """Refuse statistics that were made in another way; UsageError names both.

    Args:
        reference: read from `path`.
        network: that computes the features of the generated images.
        wanted: further fields of the stamp and their values; a file that does not record them passes.
        path: for messages.
    """
    if reference.mean.shape != (network.dim,):
        raise UsageError(
            f"{path} contains statistics of {len(reference.mean)} features, but {network.name} has "
            f"{network.dim}: make new ones with gantx stats"
        )
    # Statistics of gantx without these are of RGB squares; those of other tools record nothing.
    stamp = reference.stamp if reference.count is None else {"ratio": 1.0, "channels": 3, **reference.stamp}
    for field, ours in {"weights_sha256": network.digest, "resize": network.resize, **wanted}.items():
        theirs = stamp.get(field, ours)
        if theirs != ours:
            name, option = field.partition("_")[0], ""
            if field == "channels":
                name, option = "number of channels", f" --channels {ours}"
            raise UsageError(
                f"{path} was made with another {name} ({theirs}, here {ours}), so scores would not be "
                f"comparable: make new statistics with gantx stats{option}"
            )


def _read_safetensors(path: Path) -> Reference:
    again = "make it again with gantx stats"
    try:
        has_digest = sealed.check_header(path)
        with utf8_path(path) as readable, safe_open(readable, framework="pt") as file:
            metadata = file.metadata() or {}
            names = set(file.keys())
            if metadata.get("format") != FORMAT or not {"mean", "covariance"} <= names:
                raise DataError(f"{path} contains no reference statistics: make them with gantx stats")
            tensors = {name: file.get_tensor(name).clone() for name in names}
        if wrong := sealed.damaged_tensors(tensors, metadata):
            raise DataError(
                f"{path} is damaged: its {' and '.join(wrong)} do not match their digest: {again}"
            )
        stamp, count = json.loads(metadata["stamp"]), int(metadata["count"])
        found = Reference(
            count, tensors["mean"], tensors["covariance"], tensors.get("features"), stamp, has_digest
        )
        _require_whole(found)
    except sealed.Damaged:
        raise DataError(f"{path} is damaged: its header does not match its digest: {again}") from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as problem:
        raise DataError(f"{path} is damaged ({first_line(problem)}): {again}") from problem
    if not has_digest:
        _require_moments(found.mean, found.covariance, path)
    return found


def _require_whole(reference: Reference) -> None:
    """ValueError when statistics of gantx are not such as `write` writes."""
    mean, covariance, features = reference.mean, reference.covariance, reference.features
    if not isinstance(reference.stamp, dict):
        raise ValueError("its stamp is no record")
    if reference.count is None or not 2 <= reference.count < 2**53:
        raise ValueError(f"statistics of {reference.count} images")
    if mean.dtype != torch.float64 or covariance.dtype != torch.float64:
        raise ValueError("its moments are not in double precision")
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"a mean {list(mean.shape)} and a covariance {list(covariance.shape)}")
    if features is not None and (features.dtype != torch.float32 or features.shape[1:] != mean.shape):
        raise ValueError(f"features {list(features.shape)} of {str(features.dtype).removeprefix('torch.')}")
    if not all(bool(part.isfinite().all()) for part in (mean, covariance, features) if part is not None):
        raise ValueError("values that are not finite")


def _read_npz(path: Path) -> Reference:
    try:
        arrays = read_npz(path, "mu", "sigma")
        mean, covariance = (torch.from_numpy(array.astype(np.float64)) for array in arrays)
    except (OSError, ValueError, TypeError) as problem:
        raise DataError(f"{path} is not an .npz with `mu` and `sigma`: {problem}") from problem
    _require_moments(mean, covariance, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Reference(None, mean, covariance, None, {"file_sha256": digest, "n_ref": None})


def _require_moments(mean: Tensor, covariance: Tensor, path: Path) -> None:
    """DataError when the two cannot be the mean and the covariance of anything."""
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise DataError(
            f"{path}: mu {list(mean.shape)} and sigma {list(covariance.shape)} do not belong together"
        )
    Gaussian.of_moments(mean, covariance)  # DataError when they are invalid


def _key(stamp: dict[str, Any]) -> str:
    text = json.dumps({"format": FORMAT, "seed": _SEED, "kept": KEPT, **stamp}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
