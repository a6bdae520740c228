"""Schedules: pure functions of the number of real images that D has seen."""

from __future__ import annotations

from gantx.config.schema import AttentionWindowConfig, EMAConfig, OptimizerConfig


def due(interval_kimg: float, before: int, after: int) -> bool:
    """Whether progress from `before` to `after` images crosses a multiple of `interval_kimg` thousand."""
    interval = interval_kimg * 1000
    return int(before / interval) != int(after / interval)


def learning_rate_factor(optimizer: OptimizerConfig, images: int, kimg: float, batch: int = 0) -> float:
    """Factor on the learning rate: linear warm-up, constant, linear decay (all optional).

    Args:
        optimizer: the settings.
        images: real images seen before this step.
        kimg: length of the run.
        batch: real images of this step; warm-up counts them, so that the first step has a rate above zero.
    """
    factor = 1.0
    if optimizer.warmup_kimg > 0:
        factor = min(1.0, (images + batch) / (optimizer.warmup_kimg * 1000))
    start, progress = optimizer.decay_from, images / (kimg * 1000)
    if start < 1 and progress > start:
        remaining = max(0.0, (1 - progress) / (1 - start))
        factor *= optimizer.decay_to + (1 - optimizer.decay_to) * remaining
    return factor


def attention_window(schedule: AttentionWindowConfig | None, images: int, kimg: float) -> int | None:
    """Distance in tokens that the locality window allows; None if attention is unlimited.

    Source: TransGAN v1; the steps are those of its code, in images instead of epochs.
    """
    if schedule is None:
        return None
    scale = window_scale(schedule, kimg)
    for until, window in schedule.steps:
        if images < until * 1000 * scale:
            return window
    return None


def window_scale(schedule: AttentionWindowConfig, kimg: float) -> float:
    """Factor on the schedule's lengths: below 1 if the run is shorter than the schedule was written for."""
    return min(1.0, kimg / schedule.of_kimg)


def ema_beta(ema: EMAConfig, images: int, batch: int) -> float:
    """Weight of the old average in the update that follows a step on `batch` images.

    Args:
        ema: the settings.
        images: real images seen before this step.
        batch: real images of one D step.

    Source: TransGAN v2's training code (half-life with a ramp, as in StyleGAN2); a constant in v1's.
    """
    if images < ema.start_kimg * 1000:
        return 0.0
    if ema.kind == "constant":
        return ema.beta
    half_life = ema.half_life_kimg * 1000
    if ema.ramp is not None:
        half_life = min(half_life, images * ema.ramp)
    return float(0.5 ** (batch / max(half_life, 1e-8)))
