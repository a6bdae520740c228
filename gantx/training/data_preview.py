"""Shows the real images as a run would: as prepared, and as D receives them after augmentation."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gantx.config.schema import RunConfig
from gantx.data.batches import Batches
from gantx.data.crop import box_of
from gantx.data.prepare import Log, Prepared, Progress, prepare
from gantx.errors import UsageError
from gantx.io import imaging
from gantx.runtime.random import draw
from gantx.training.augment import augment
from gantx.training.augment import spec as augment_spec

USUAL = 32  # images, if so many are there


def write_preview(
    settings: RunConfig, path: Path, count: int | None, *, log: Log, progress: Progress | None = None
) -> None:
    """Write a PNG of the first images of a run; below them, the same images after `augment.policy`.

    Args:
        settings: the run; its seed decides which images come first.
        path: the file to write.
        count: number of images; None for `USUAL`, or for all images of a smaller set.
        log: takes one line of log.
        progress: called with (done, total) while images are prepared.

    Raises:
        MissingError: the file cannot be written, or the source does not exist.
        DataError: some images cannot be used.
        UsageError: the set has fewer than `count`.
    """
    imaging.check_output(path)
    prepared = prepare(settings.data, log=log, progress=progress)
    count = min(USUAL, len(prepared.images)) if count is None else count
    if len(prepared.images) < count:
        raise UsageError(f"the set has {len(prepared.images):,} images: show at most as many (-n)")
    plain, augmented = previewed(settings, prepared, count)
    columns, lines = imaging.grid_shape(count, f"{min(count, 8)}x{-(-count // 8)}")
    sheet = imaging.grid(plain[:, :, *box_of(settings.data.resolution, settings.data.ratio)], columns, lines)
    if augmented is None:
        log("the recipe has no augmentation (augment.policy is empty): D sees these images")
    else:
        gap = sheet.new_full((sheet.shape[0], 4 * imaging.GAP, sheet.shape[2]), 255)
        sheet = torch.cat([sheet, gap, imaging.grid(augmented, columns, lines)], 1)
    imaging.write_png(path, sheet, {})


def previewed(settings: RunConfig, prepared: Prepared, count: int) -> tuple[Tensor, Tensor | None]:
    """The first images of a run, on the CPU.

    Args:
        settings: the run; its seed decides which images come first.
        prepared: its images.
        count: number of images.

    Returns:
        Prepared images, uint8 [count, C, R, R], and the same after `augment.policy`; None if that is empty.
    """
    device = torch.device("cpu")
    data, seed = settings.data, settings.training.seed
    batches = Batches(prepared, seed=seed, mirror=data.mirror, device=device, resident="stream")
    images = batches.at("preview", 0, count)
    policy, chances = settings.augment.policy, settings.augment.chances
    if not policy:
        return _to_bytes(images), None
    wanted = augment_spec(policy, count, data.resolution, chances)
    draws = draw(wanted, seed=seed, stream="preview", step=0, device=device)
    return _to_bytes(images), _to_bytes(augment(images, draws, policy, chances))


def _to_bytes(images: Tensor) -> Tensor:
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
