"""The Python API: what `import gantx` offers. Importing it loads no torch; the first call does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gantx.checkpoint import Header
    from gantx.config.schema import RunConfig
    from gantx.evaluation.results import Result
    from gantx.generation.interpolation import Walk
    from gantx.generation.sampling import Weights
    from gantx.models.interfaces import Generator


def load(
    target: str | os.PathLike[str],
    *,
    weights: Weights = "ema",
    device: str = "auto",
    compile: bool = False,
) -> Model:
    """Load the generator of a checkpoint.

    Args:
        target: a run, a folder of checkpoints, or a .safetensors file.
        weights: `ema` for the running average, `raw` for what is trained.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        compile: let `sample` and `generate` use a compiled generator: quicker for many images, equal up to
            rounding. The first batch then takes up to minutes, and every batch is filled up to `batch`
            images. Keep to one or two sizes: each is compiled anew, which PyTorch does eight times at most.

    Raises:
        MissingError: there is no such checkpoint or device.
        CheckpointError: the file is corrupt, foreign or of an unknown version, or lacks these weights.
        UsageError: no such weights, or an unknown device.
    """
    from gantx.errors import UsageError
    from gantx.generation import sampling
    from gantx.runtime import devices

    if weights not in ("ema", "raw"):
        raise UsageError(f"no weights '{weights}': use ema or raw")
    place = devices.pick_device(device)
    network, header = sampling.open_generator(Path(target), place, weights)
    return Model(network, header, weights, place, compile)


def sample(target: str | os.PathLike[str], n: int | None = None, **how: Any) -> Tensor:
    """Images uint8 [n, 3, H, W] from a checkpoint: `load(target).sample(n, **how)`."""
    return load(target).sample(n, **how)


def evaluate(
    target: str | os.PathLike[str], metrics: Sequence[str] = (), *, device: str = "auto", **how: Any
) -> Result:
    """Score a checkpoint, or images that are already there, as `gantx eval` does.

    Args:
        target: a run, a folder of checkpoints, a .safetensors file, or images (folder, .zip, .npy).
        metrics: `fid`, `kid`, `is`, `pr`, `dc` or `modes`; the preset's by default.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        how: the other fields of `gantx.evaluation.request.Request`, such as `data` and `num`.

    Raises:
        GantxError: as `gantx.evaluation.request.evaluate` does, before any image is generated wherever that
            can be known.
    """
    from gantx.evaluation import request as evaluation
    from gantx.runtime import devices

    request = evaluation.Request(metrics=tuple(metrics), device=devices.pick_device(device), **how)
    return evaluation.evaluate(
        Path(target), request, log=lambda line: None, progress=lambda what, done, total: None
    )


class Model:
    """A generator with what its checkpoint says about it; made by `load`.

    Attributes:
        network: the generator, in evaluation mode, without gradients.
        header: of the checkpoint: path, progress, versions, digests.
        weights: `ema` or `raw`.
        device: where the network is.
        compiled: whether `sample` and `generate` use compiled code.
    """

    def __init__(
        self,
        network: Generator,
        header: Header,
        weights: Weights,
        device: torch.device,
        compile: bool = False,
    ) -> None:
        from gantx.generation import sampling

        self.network = network
        self.header = header
        self.weights = weights
        self.device = device
        self.compiled = compile
        self._generator = sampling.compiled(network) if compile else network

    def __repr__(self) -> str:
        """Family, resolution, number of parameters and images seen in one line."""
        _, height, width = self.network.image_shape
        count = sum(parameter.numel() for parameter in self.network.parameters())
        return (
            f"Model({self.config.generator.family}, {width}×{height}, {count:,} parameters, "
            f"{self.header.images:,} images seen, {self.weights}, {self.device})"
        )

    @property
    def config(self) -> RunConfig:
        """The resolved configuration of the run."""
        return self.header.config

    @property
    def has_styles(self) -> bool:
        """Whether latents become styles first: what truncation, walks in w and mixing need."""
        from gantx.models import interfaces

        return isinstance(self.network, interfaces.StyleBased)

    def sample(
        self,
        n: int | None = None,
        *,
        seeds: Sequence[int] | None = None,
        latents: Tensor | None = None,
        truncation: float | None = None,
        cutoff: int | None = None,
        batch: int | None = None,
    ) -> Tensor:
        """Generate images.

        Args:
            n: how many, of seeds 0 to n-1; 64 when nothing else is said.
            seeds: one per image; a seed means the same image, whatever else is asked for.
            latents: [N, *latent_shape], or styles [N, *style_shape], in place of seeds; any floating-point
                type.
            truncation: psi by which styles are drawn to their average: 1 for none, 0.7 for fewer failures.
            cutoff: only the first so many layers are truncated.
            batch: images computed at once; None for 64, or on CUDA as many as its memory suggests.

        Returns:
            uint8 [N, 3, H, W] on the CPU.

        Raises:
            UsageError: two of `n`, `seeds` and `latents`, numbers that are none, or truncation of a network
                without styles.
            DataError: latents of another shape, or not finite.
            MissingError: a GPU has no memory for the batch, or what compiling needs is not installed.
        """
        import torch

        from gantx.errors import UsageError
        from gantx.generation import sampling
        from gantx.generation.batches import fetch
        from gantx.generation.latents import whole_number

        if sum(given is not None for given in (n, seeds, latents)) > 1:
            raise UsageError("n, seeds and latents each say which images are meant: give one of them")
        what: Sequence[int] | Tensor
        if latents is not None:
            what = torch.as_tensor(latents)
        elif seeds is not None:
            what = list(seeds)
        else:
            what = range(64 if n is None else whole_number(n, "n", 1))
        if seeds is not None and not len(what):
            raise UsageError("there is nothing to generate: ask for one image or more")
        images = self.generate(what, truncation=truncation, cutoff=cutoff, batch=batch)
        return torch.cat(list(fetch(sampling.quantise(part) for part in images)))

    def generate(
        self,
        what: Sequence[int] | Tensor,
        *,
        truncation: float | None = None,
        cutoff: int | None = None,
        batch: int | None = None,
        log: Callable[[str], None] | None = None,
    ) -> Iterator[Tensor]:
        """As `sample`, in constant memory: yields what the network gives, batch by batch.

        Args:
            what: seeds; or latents or styles, as in `sample`.
            truncation: as in `sample`.
            cutoff: as in `sample`.
            batch: as in `sample`.
            log: receives a sentence where a GPU is slower than it should be; None for the logger `gantx`.

        Returns:
            Float images [n, 3, H, W], nominally in [-1, 1], on the device of the network.

        Raises:
            GantxError: as `sample` does; before the first image, all but what the memory of a GPU says.
        """
        from torch import Tensor

        from gantx.generation import sampling
        from gantx.generation.batches import to_log
        from gantx.generation.latents import as_latents, latent_shapes, whole_number
        from gantx.generation.truncation import parse_truncation, require_styles

        drawn = parse_truncation(truncation, cutoff)
        if drawn is not None:
            require_styles(self.network, "truncation")
        how: dict[str, Any] = {
            "truncation": drawn,
            "ratio": self.config.data.ratio,
            "device": self.device,
            "constant": self.compiled,
            "log": log or to_log,
        }
        if isinstance(what, Tensor):
            latents = as_latents(what, latent_shapes(self.network), "the tensor")
            size = self._batch(batch, len(latents))
            return sampling.from_latents(self._generator, latents, batch=size, **how)
        seeds = [whole_number(seed, "seed") for seed in what]
        size = self._batch(batch, len(seeds))
        return sampling.generate(self._generator, seeds, batch=size, **how)

    def _batch(self, wanted: int | None, count: int) -> int:
        """How many of `count` images to compute at once; UsageError where less than one is wanted."""
        from gantx.generation import sampling
        from gantx.generation.latents import whole_number

        if wanted is None:
            return sampling.batch_for(self.network, self.device, count)
        return whole_number(wanted, "batch", 1)

    def walk(
        self,
        seeds: Sequence[int],
        frames: int = 60,
        *,
        paths: int = 1,
        space: str | None = None,
        loop: bool = False,
        easing: str = "linear",
        truncation: float | str | None = None,
        cutoff: int | None = None,
    ) -> Walk:
        """Plan what `interpolate` generates; arguments and errors are the same."""
        from gantx.generation import interpolation

        return interpolation.plan(
            self.network,
            seeds,
            frames,
            paths=paths,
            space=space,
            loop=loop,
            easing=easing,
            truncation=interpolation.parse_sweep(None if truncation is None else str(truncation), cutoff),
        )

    def interpolate(
        self,
        seeds: Sequence[int] | Walk,
        frames: int = 60,
        *,
        batch: int | None = None,
        **how: Any,
    ) -> Iterator[Tensor]:
        """Generate a walk from seed to seed, in constant memory.

        Args:
            seeds: what the walk passes, or a walk of `self.walk`.
            frames: of the whole walk, first and last included.
            batch: images computed at once; None for 64.
            how: `paths`, how many walks run side by side, each through its share of the seeds; `space`, `z`
                or `w` (where there are styles); `loop`, return to the first seed; `easing`, `linear` or
                `smooth`; `truncation`, a number or a sweep such as "0:1"; `cutoff`, of it.

        Returns:
            uint8 [paths, 3, H, W] on the CPU for every frame. The frame of a seed is its image in `sample`.

        Raises:
            UsageError: too few frames, numbers that are none, or what the network cannot do.
        """
        from gantx.generation import interpolation, sampling
        from gantx.generation.latents import whole_number

        walk = seeds if isinstance(seeds, interpolation.Walk) else self.walk(seeds, frames, **how)
        size = whole_number(sampling.BATCH if batch is None else batch, "batch", 1)
        ratio = self.config.data.ratio
        return interpolation.generate(self.network, walk, batch=size, device=self.device, ratio=ratio)

    def attention(
        self,
        seed: int = 0,
        *,
        layer: str = "last",
        query: tuple[int, int] | None = None,
        truncation: float | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Generate the image of a seed, with its noise at the stored value, and its attention maps.

        Args:
            seed: of the image.
            layer: `last`, `all`, or the name of one.
            query: row and column of the query pixel, for self-attention; None for the centre.
            truncation: psi of the styles; default 0.7 for attention over latents.

        Returns:
            The whole square that is generated, as the maps cover it, uncropped where `data.ratio` is below 1:
            uint8 [1, 3, R, R]; by layer, attention [1, h, m, S, S] of positions to m latents, or
            [1, h, S, S] of the query to all positions.

        Raises:
            UsageError: the network has no attention to show, or no such layer or pixel.
        """
        from gantx.generation import attention_visualization
        from gantx.generation.truncation import parse_truncation

        view = attention_visualization.View(layer=layer, query=query, truncation=parse_truncation(truncation))
        return attention_visualization.observe(
            self.network, seed, attention_visualization.completed(self.network, view), self.device
        )

    def provenance(self, truncation: float | None = None, cutoff: int | None = None) -> dict[str, str]:
        """What a picture of this model says about itself, all but its seeds."""
        from gantx.generation import provenance
        from gantx.generation.truncation import parse_truncation

        return provenance.describe(self.header, self.weights, parse_truncation(truncation, cutoff))
