"""clean-fid's own feature path, slower, to check ours against (gantx eval --engine cleanfid)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gantx.errors import UsageError
from gantx.evaluation.assets import ASSETS, locate
from gantx.evaluation.features import FeatureNetwork, FeatureOutput
from gantx.evaluation.inception import FEATURES
from gantx.evaluation.inception_weights import open_torchscript
from gantx.runtime.precision import full_precision

_MODES = {"clean": "clean", "legacy-tensorflow": "legacy_tensorflow"}


def open_cleanfid(
    choice: str, *, resize: str, weights: Path | None, device: torch.device, allow_unverified: bool
) -> FeatureNetwork:
    """As `gantx.evaluation.features.open_features`, by clean-fid.

    Raises:
        UsageError: other features than Inception's, or PyTorch's resizing, for which clean-fid would download
            weights by itself.
        MissingError: the weights are not there.
        DataError: the file does not contain them.
    """
    if choice != "inception" or resize not in _MODES:
        raise UsageError(
            f"clean-fid's engine measures in Inception with clean or TensorFlow's resizing, not in {choice} "
            f"with {resize}: omit --engine"
        )
    located = locate(ASSETS["inception"], weights, allow_unverified=allow_unverified)
    return _CleanFid(located.path, located.digest, located.verified, resize, device)


class _CleanFid:
    """Inception as `cleanfid.fid.get_model_features` runs it: TorchScript, images resized one by one."""

    name = "inception"
    dim = FEATURES
    has_logits = False
    batch = 32

    def __init__(self, path: Path, digest: str, verified: bool, resize: str, device: torch.device) -> None:
        self.digest, self.verified, self.resize = digest, verified, resize
        self._model = open_torchscript(path, resize_inside=resize == "legacy-tensorflow").to(device)
        self._device = device

    def __call__(self, images: Tensor) -> FeatureOutput:
        """See `FeatureNetwork`."""
        from cleanfid.fid import get_model_features

        # clean-fid draws latents from the global generator; the images here are already generated.
        with full_precision(), torch.random.fork_rng():
            features = get_model_features(
                lambda _: images,
                self._model,
                mode=_MODES[self.resize],
                z_dim=1,
                num_gen=len(images),
                batch_size=len(images),
                device=self._device,
                verbose=False,
            )
        return FeatureOutput(torch.from_numpy(features).float(), None)
