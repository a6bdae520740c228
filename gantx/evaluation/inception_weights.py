"""The weights of Inception: two published files, read without running Python from them, converted once.

NVIDIA publishes the network as TorchScript, pytorch-fid the same weights as a state dict. The content of a
file decides which of the two it is, not its name. Converted weights, with batch normalisation folded into the
convolutions, are kept as safetensors in the cache under the digest of the file they came from.
torchvision's own Inception has the same layers but other weights, and is refused.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_weights

from gantx.errors import DataError, GantxError, MissingError
from gantx.evaluation.inception import Convolution, Inception
from gantx.io import archives, sealed, torch_files
from gantx.io.atomic import replacing
from gantx.io.byte_names import utf8_path
from gantx.io.cache import cache_folder
from gantx.io.pickles import check_torch_file
from gantx.runtime.random import global_state_kept

FORMAT = 1  # version of converted files; raised when their contents change
_log = logging.getLogger("gantx")
_EPSILON = 1e-3  # of every batch normalisation

Carrier: TypeAlias = Literal["torchscript", "pytorch-fid"]
# Which published file goes with which resizing: the protocols in use pair them so.
CARRIERS: dict[str, Carrier] = {
    "clean": "torchscript",
    "legacy-tensorflow": "torchscript",
    "legacy-pytorch": "pytorch-fid",
}
_DESCRIPTIONS = {
    "torchscript": "NVIDIA's TorchScript file (inception-2015-12-05.pt)",
    "pytorch-fid": "pytorch-fid's state dict (pt_inception-2015-12-05-6726825d.pth)",
}


class Weights(NamedTuple):
    """Converted weights.

    Attributes:
        carrier: the kind of file they came from.
        tensors: state dict of `Inception`.
    """

    carrier: Carrier
    tensors: dict[str, Tensor]


def load(path: Path, resize: str, *, digest: str | None = None) -> Inception:
    """Build Inception with the weights of a file, from the cache when the file was converted before.

    Args:
        path: NVIDIA's TorchScript, pytorch-fid's state dict, or a converted file of gantx.
        resize: rule by which images will be resized: it determines which of the two files is needed, and how
            the network scales pixels.
        digest: SHA-256 of the file if known, else it is computed.

    Returns:
        The network on the CPU, in evaluation mode, without gradients.

    Raises:
        MissingError: the file cannot be read, or the cache not written.
        DataError: the file is none of the three, or not the one that goes with `resize`.
    """
    wanted = CARRIERS[resize]
    kept = cache_folder() / "assets" / f"folded-{FORMAT}-{digest or digest_of(path)}.safetensors"
    weights = _read_kept(kept)
    if weights is None:
        weights = read(path)
        if not _is_safetensors(path):
            _keep(kept, weights)
    if weights.carrier != wanted:
        raise DataError(
            f"{path} is {_DESCRIPTIONS[weights.carrier]}, but {resize} resizing goes with "
            f"{_DESCRIPTIONS[wanted]}: name that file, or choose a protocol with another resizing"
        )
    with global_state_kept():
        network = Inception(centred=wanted == "torchscript")
    network.load_state_dict(weights.tensors)
    return network.eval().requires_grad_(False)


def read(path: Path) -> Weights:
    """Read and convert a file of weights; see `load` for what it may be and for the errors."""
    if not path.is_file():
        raise MissingError(f"no such file of Inception weights: {path}")
    if _is_safetensors(path):
        return _read_converted(path)
    if _is_torchscript(path):
        return Weights("torchscript", _from_torchscript(path))
    return Weights("pytorch-fid", _from_state_dict(path))


def digest_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal; MissingError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as problem:
        raise MissingError(f"cannot read {path}: {problem.strerror or problem}") from problem


# --- reading the published files ----------------------------------------------------------------------------


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < 2**27


def _is_torchscript(path: Path) -> bool:
    """TorchScript is a zip that carries code beside its tensors; torch.save writes zips without."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        archive = archives.open_zip(path)
    except ValueError as problem:
        raise DataError(
            f"{path} is a damaged zip ({problem}): run `gantx assets fetch inception`"
        ) from problem
    with archive:
        return any("code" in name.split("/")[:-1] for name in archive.namelist())


def open_torchscript(path: Path, *, resize_inside: bool = False) -> Any:
    """NVIDIA's file as clean-fid opens it, an `InceptionV3W` on the CPU; DataError when it is another file.

    TorchScript may run tensor operations while it is read, but no Python.
    """
    from cleanfid.inception_torchscript import InceptionV3W

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # clean-fid looks for this name in a folder, and torch has deprecated TorchScript.
        place = Path(folder) / "inception-2015-12-05.pt"
        try:
            place.symlink_to(path.absolute())
        except OSError:  # Windows wants a privilege for links
            shutil.copyfile(path, place)
        warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        try:
            check_torch_file(path)
            return InceptionV3W(folder, download=False, resize_inside=resize_inside).eval()
        except (RuntimeError, ValueError, AttributeError) as problem:
            raise DataError(
                f"{path} is a TorchScript file that does not contain Inception: {_first_line(problem)}"
            ) from problem


def _from_torchscript(path: Path) -> dict[str, Tensor]:
    state = open_torchscript(path).base.state_dict()
    folded: dict[str, Tensor] = {}
    for ours, theirs in zip(_our_names(), _names(0), strict=True):
        weight, beta, mean, var = (
            _tensor(state, f"layers.{theirs}.{part}", path) for part in ("weight", "beta", "mean", "var")
        )
        folded |= _folded(ours, weight, torch.ones_like(beta), beta, mean, var)
    for part in ("weight", "bias"):
        folded[f"output.{part}"] = _tensor(state, f"output.{part}", path)
    return _checked(folded, path)


def _from_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        state = torch_files.load(path)
    except Exception as problem:  # torch raises many types for damaged and for hostile files
        raise DataError(
            f"{path} is neither NVIDIA's TorchScript Inception, nor a plain state dict, nor safetensors "
            f"(torch says: {_first_line(problem)}): run `gantx assets fetch inception`"
        ) from problem
    if not isinstance(state, Mapping):
        raise DataError(
            f"{path} contains a {type(state).__name__} where a state dict of Inception is expected"
        )
    classes = len(state["fc.weight"]) if isinstance(state.get("fc.weight"), Tensor) else 0
    if classes == 1000 or any(str(name).startswith("AuxLogits.") for name in state):
        raise DataError(
            f"{path} contains torchvision's Inception, whose features are not those of FID: "
            "run `gantx assets fetch inception`"
        )
    folded: dict[str, Tensor] = {}
    for ours, theirs in zip(_our_names(), _names(1), strict=True):
        weight = _tensor(state, f"{theirs}.conv.weight", path)
        gamma, beta, mean, var = (
            _tensor(state, f"{theirs}.bn.{part}", path)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        folded |= _folded(ours, weight, gamma, beta, mean, var)
    for part in ("weight", "bias"):
        folded[f"output.{part}"] = _tensor(state, f"fc.{part}", path)
    return _checked(folded, path)


def _tensor(state: Mapping[str, Tensor], name: str, path: Path) -> Tensor:
    found = state.get(name)
    if not isinstance(found, Tensor):
        some = ", ".join(list(map(str, state))[:3]) or "nothing"
        raise DataError(
            f"{path} does not contain the Inception of FID: {name} is missing (it has {some}, …): "
            "run `gantx assets fetch inception`"
        )
    return found.detach()


def _folded(
    name: str, weight: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor
) -> dict[str, Tensor]:
    """A convolution and the batch normalisation after it as one convolution with bias, in float64."""
    statistics = mean.double(), var.double(), _EPSILON, gamma.double(), beta.double()
    fused_weight, fused_bias = fuse_conv_bn_weights(weight.double(), None, *statistics)
    return {f"{name}.weight": fused_weight.detach().float(), f"{name}.bias": fused_bias.detach().float()}


def _checked(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    for name, wanted in _SHAPES.items():
        if name not in tensors or tensors[name].shape != wanted:
            found = list(tensors[name].shape) if name in tensors else "missing"
            raise DataError(
                f"{path} does not contain the Inception of FID: {name} is {found}, expected {list(wanted)}"
            )
    return {name: tensors[name].float().contiguous() for name in _SHAPES}


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]


# --- converted files ----------------------------------------------------------------------------------------


def _keep(path: Path, weights: Weights) -> None:
    with replacing(path) as beside:
        metadata = {"format": f"gantx.inception/{FORMAT}", "carrier": weights.carrier}
        sealed.save(beside, weights.tensors, metadata)


def _read_kept(path: Path) -> Weights | None:
    """The converted weights in the cache, or None where they are absent, damaged or without digests."""
    if not path.is_file():
        return None
    try:
        if sealed.check_header(path):
            return _read_converted(path)
    except (GantxError, sealed.Damaged, OSError):
        pass
    _log.warning(
        f"the converted weights {path} are damaged or of an older gantx, so they are converted again"
    )
    return None


def _read_converted(path: Path) -> Weights:
    try:
        sealed.check_header(path)
        with utf8_path(path) as readable, safe_open(readable, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copied: tensors mapped from the file would keep it alive.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except sealed.Damaged:
        raise DataError(f"{path} is damaged: its header does not match its digest") from None
    except (SafetensorError, OSError) as problem:
        raise DataError(f"{path} is not a readable safetensors file: {problem}") from problem
    if wrong := sealed.damaged_tensors(tensors, metadata):
        raise DataError(f"{path} is damaged: its {wrong[0]} does not match its digest")
    if metadata.get("format") != f"gantx.inception/{FORMAT}":
        raise DataError(
            f"{path} is a safetensors file, but not of Inception weights that gantx converted: "
            "run `gantx assets fetch inception`"
        )
    carrier: Carrier = "torchscript" if metadata.get("carrier") == "torchscript" else "pytorch-fid"
    return Weights(carrier, _checked(tensors, path))


# --- names --------------------------------------------------------------------------------------------------

# What the published files call the convolutions of each kind of block, in the order of ours.
_STEM = (
    ("conv", "conv_1", "conv_2", "conv_3", "conv_4"),
    ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
)
_BLOCK35 = (
    (
        "conv",
        "tower.conv",
        "tower.conv_1",
        "tower_1.conv",
        "tower_1.conv_1",
        "tower_1.conv_2",
        "tower_2.conv",
    ),
    (
        *("branch1x1", "branch5x5_1", "branch5x5_2"),
        *("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3", "branch_pool"),
    ),
)
_REDUCE35 = (
    ("conv", "tower.conv", "tower.conv_1", "tower.conv_2"),
    ("branch3x3", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
)
_BLOCK17 = (
    (
        *("conv", "tower.conv", "tower.conv_1", "tower.conv_2", "tower_1.conv"),
        *(f"tower_1.conv_{index}" for index in (1, 2, 3, 4)),
        "tower_2.conv",
    ),
    (
        *("branch1x1", "branch7x7_1", "branch7x7_2", "branch7x7_3"),
        *(f"branch7x7dbl_{index}" for index in (1, 2, 3, 4, 5)),
        "branch_pool",
    ),
)
_REDUCE17 = (
    ("tower.conv", "tower.conv_1", "tower_1.conv", "tower_1.conv_1", "tower_1.conv_2", "tower_1.conv_3"),
    ("branch3x3_1", "branch3x3_2", *(f"branch7x7x3_{index}" for index in (1, 2, 3, 4))),
)
_BLOCK8 = (
    (
        *("conv", "tower_conv", "tower_mixed_conv", "tower_mixed_conv_1", "tower_1_conv", "tower_1_conv_1"),
        *("tower_1_mixed_conv", "tower_1_mixed_conv_1", "tower_2_conv"),
    ),
    (
        *("branch1x1", "branch3x3_1", "branch3x3_2a", "branch3x3_2b", "branch3x3dbl_1", "branch3x3dbl_2"),
        *("branch3x3dbl_3a", "branch3x3dbl_3b", "branch_pool"),
    ),
)
_BLOCKS = (
    (("mixed", "Mixed_5b"), _BLOCK35),
    (("mixed_1", "Mixed_5c"), _BLOCK35),
    (("mixed_2", "Mixed_5d"), _BLOCK35),
    (("mixed_3", "Mixed_6a"), _REDUCE35),
    (("mixed_4", "Mixed_6b"), _BLOCK17),
    (("mixed_5", "Mixed_6c"), _BLOCK17),
    (("mixed_6", "Mixed_6d"), _BLOCK17),
    (("mixed_7", "Mixed_6e"), _BLOCK17),
    (("mixed_8", "Mixed_7a"), _REDUCE17),
    (("mixed_9", "Mixed_7b"), _BLOCK8),
    (("mixed_10", "Mixed_7c"), _BLOCK8),
)


def _names(file: Literal[0, 1]) -> list[str]:
    """The convolutions in the TorchScript file (0) or in pytorch-fid's (1), in the order of ours."""
    return [*_STEM[file], *(f"{block[file]}.{name}" for block, names in _BLOCKS for name in names[file])]


def _our_names() -> list[str]:
    with torch.device("meta"):
        network = Inception(centred=True)
    return [name for name, module in network.named_modules() if isinstance(module, Convolution)]


def _shapes() -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in Inception(centred=True).state_dict().items()}


_SHAPES = _shapes()
