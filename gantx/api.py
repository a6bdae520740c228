"""The public Python API. torch is imported by the first call, not by `import gantx`."""

from __future__ import annotations

import math
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
    device: str | torch.device = "auto",
    compile: bool = False,
) -> Model:
    """Load the generator of a checkpoint.

    Args:
        target: a run, a folder of checkpoints, or a .safetensors file.
        weights: `ema` for the running average, `raw` for the trained weights.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        compile: compile the generator for `sample` and `generate`: faster for many images, equal up to
            rounding. The first batch can take minutes, and every batch is padded to `batch` images. Use one
            or two batch sizes: each is compiled separately, and PyTorch compiles at most eight.

    Raises:
        MissingError: there is no such checkpoint or device.
        CheckpointError: the file is corrupt, foreign, of an unknown version, or lacks these weights.
        UsageError: no such weights, or an unknown device.
    """
    from gantx import checkpoint
    from gantx.errors import UsageError
    from gantx.runtime.device_names import require_device_name

    if weights not in ("ema", "raw"):
        raise UsageError(f"no weights '{weights}': use ema or raw")
    require_device_name(str(device))
    checkpoint.read_header(checkpoint.find(Path(target)))

    from gantx.generation import sampling
    from gantx.runtime import devices

    place = devices.pick_device(str(device))
    network, header = sampling.open_generator(Path(target), place, weights)
    return Model(network, header, weights, place, compile)


def sample(target: str | os.PathLike[str], n: int | None = None, **how: Any) -> Tensor:
    """Images uint8 [n, C, H, W] from a checkpoint: `load(target).sample(n, **how)`."""
    return load(target).sample(n, **how)


def evaluate(
    target: str | os.PathLike[str],
    metrics: str | Sequence[str] = (),
    *,
    device: str | torch.device = "auto",
    **how: Any,
) -> Result:
    """Score a checkpoint or stored images, as `gantx eval` does.

    Args:
        target: a run, a folder of checkpoints, a .safetensors file, or images (folder, .zip, .npy).
        metrics: of `fid`, `kid`, `is`, `pr`, `dc` and `modes`, also as "fid,kid"; the preset's by default.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        how: the other fields of `gantx.evaluation.request.Request`, such as `data` and `num`; files may be
            named by text.

    Returns:
        The scores, each by name from `score`; the protocol that they follow; warnings.

    Raises:
        GantxError: as `gantx.evaluation.request.evaluate`, before any image is generated where possible.
    """
    from gantx.evaluation import request as evaluation
    from gantx.evaluation.scores import parse_metrics
    from gantx.runtime import devices
    from gantx.runtime.precision import usual_defaults

    files = {name: Path(how[name]) for name in ("reference", "weights") if how.get(name) is not None}
    request = evaluation.Request(
        metrics=parse_metrics([metrics] if isinstance(metrics, str) else metrics),
        device=devices.pick_device(str(device)),
        **{**how, **files},
    )
    with usual_defaults():
        return evaluation.evaluate(
            Path(target), request, log=lambda line: None, progress=lambda what, done, total: None
        )


class Model:
    """A generator with the metadata of its checkpoint; returned by `load`.

    Attributes:
        network: the generator, in evaluation mode, without gradients.
        header: header of the checkpoint: path, configuration, progress, versions, digests.
        weights: `ema` or `raw`.
        device: device of the network.
        compiled: whether `sample` and `generate` use a compiled generator.
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
        self._label: int | None = None  # of `of_class`
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
        """Whether the network maps latents to styles, as truncation, walks in w and style mixing require."""
        from gantx.models import interfaces

        return isinstance(self.network, interfaces.StyleBased)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that the model can be asked for; empty for an unconditional model."""
        from gantx.generation.labels import name_of

        conditioning = self.config.conditioning
        count = conditioning.classes if self.network.classes else 0
        return tuple(name_of(conditioning, label) for label in range(count)) if isinstance(count, int) else ()

    def of_class(self, label: str | int | None = None, *, seed: int = 0) -> Model:
        """The model that generates one class: all its methods then need no label.

        Args:
            label: name or number of a class; None for the class that `seed` has by itself.
            seed: of an image.

        Returns:
            An unconditional model, unless a class is asked of it, is returned unchanged.

        Raises:
            UsageError: there is no such class, or the model is unconditional.
        """
        from gantx.generation.labels import drawn_labels, parse_class, with_label

        conditioning = self.config.conditioning
        if label is not None:
            chosen = parse_class(conditioning, label)
        elif drawn := drawn_labels(conditioning, [seed]):
            (chosen,) = drawn
        else:
            return self
        bound = Model(with_label(self.network, chosen), self.header, self.weights, self.device, self.compiled)
        bound._label = chosen
        return bound

    def sample(
        self,
        n: int | None = None,
        *,
        seeds: Sequence[int] | None = None,
        latents: Tensor | None = None,
        label: str | int | Sequence[str | int] | None = None,
        truncation: float | None = None,
        cutoff: int | None = None,
        batch: int | None = None,
    ) -> Tensor:
        """Generate images.

        Args:
            n: number of images, with seeds 0 to n-1; 64 if `seeds` and `latents` are omitted too.
            seeds: one per image; the image of a seed does not depend on the other seeds or the batch.
            latents: [N, *latent_shape], or styles [N, *style_shape], in place of seeds; any floating-point
                type.
            label: class of a conditional model, by name or number, or one for each image; by default each
                seed has a class, in the proportions of the training data.
            truncation: psi, the factor of a style's distance to the average style: 1 for none, 0.7 for fewer
                failures.
            cutoff: number of leading layers that are truncated; None for all.
            batch: images computed at once; None for 64, or on CUDA a size chosen by its memory.

        Returns:
            uint8 [N, C, H, W] on the CPU, with `data.channels` channels.

        Raises:
            UsageError: more than one of `n`, `seeds` and `latents`, invalid numbers, or truncation of a
                network without styles.
            DataError: latents of another shape, or not finite.
            MissingError: a GPU has too little memory for the batch, or compilation lacks a requirement.
        """
        import torch
        from torch import Tensor

        from gantx.errors import UsageError
        from gantx.generation import sampling
        from gantx.generation.latents import whole_number
        from gantx.generation.sampling import fetch
        from gantx.runtime import memory
        from gantx.runtime.seeds import Seeds

        if sum(given is not None for given in (n, seeds, latents)) > 1:
            raise UsageError("n, seeds and latents each say which images are meant: give one of them")
        what: Sequence[int] | Tensor
        if latents is not None:
            what = torch.as_tensor(latents)
        elif seeds is not None:
            what = seeds if isinstance(seeds, range | Seeds) else list(seeds)
        else:
            what = Seeds([range(64 if n is None else whole_number(n, "n", 1))])
        if seeds is not None and not len(what):
            raise UsageError("there is nothing to generate: ask for one image or more")
        if not isinstance(what, Tensor):
            size = len(what) * math.prod(sampling.cropped_shape(self.network, self.config.data.ratio))
            advice = "ask for fewer, or iterate over `generate`, which keeps one batch"
            memory.require(2 * size, f"a tensor of {len(what):,} images", advice)  # and the batches in it
        images = self.generate(what, label=label, truncation=truncation, cutoff=cutoff, batch=batch)
        return torch.cat(list(fetch(sampling.quantise(part) for part in images)))

    def generate(
        self,
        what: int | Sequence[int] | Tensor,
        *,
        label: str | int | Sequence[str | int] | None = None,
        truncation: float | None = None,
        cutoff: int | None = None,
        batch: int | None = None,
        log: Callable[[str], None] | None = None,
    ) -> Iterator[Tensor]:
        """As `sample`, in constant memory: yields the output of the network batch by batch.

        Args:
            what: a number of images, seeds, or latents or styles, as in `sample`.
            label: as in `sample`; latents need one.
            truncation: as in `sample`.
            cutoff: as in `sample`.
            batch: as in `sample`.
            log: receives a warning if generation on a GPU is slowed down; None for the logger `gantx`.

        Returns:
            Float images [n, C, H, W], nominally in [-1, 1], on the device of the network.

        Raises:
            GantxError: as `sample`; all except insufficient GPU memory before the first image.
        """
        import torch
        from torch import Tensor

        from gantx.generation import sampling
        from gantx.generation.latents import as_latents, latent_shapes, whole_number
        from gantx.generation.sampling import to_log
        from gantx.generation.truncation import parse_truncation, require_styles
        from gantx.runtime.seeds import Seeds, seeds_of

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
            labels = self._labels(label, None, len(latents))
            chosen = None if labels is None else torch.tensor(list(labels), device=self.device)
            return sampling.from_latents(self._generator, latents, batch=size, labels=chosen, **how)
        if isinstance(what, int):
            what = range(whole_number(what, "n", 1))
        given = what if isinstance(what, range | Seeds) else [whole_number(seed, "seed") for seed in what]
        seeds = seeds_of(given)
        whole_number(min((part.start for part in seeds.ranges), default=0), "seed")
        size = self._batch(batch, len(seeds))
        labels = self._labels(label, seeds, len(seeds))
        return sampling.generate(self._generator, seeds, batch=size, labels=labels, **how)

    def _labels(
        self, label: str | int | Sequence[str | int] | None, seeds: Sequence[int] | None, count: int
    ) -> Sequence[int] | None:
        """One label for each image; drawn for seeds if none is named, None for an unconditional network."""
        from gantx.errors import UsageError
        from gantx.generation.labels import DrawnLabels, parse_class
        from gantx.generation.latents import whole_number

        conditioning = self.config.conditioning
        if label is None:
            return DrawnLabels(conditioning, seeds) if self.network.classes and seeds is not None else None
        if isinstance(label, str | int):
            return [parse_class(conditioning, label)] * count
        if not self.network.classes:
            raise UsageError("this model has no classes to choose from: omit the label")
        if len(label) != count:
            raise UsageError(
                f"label has {len(label)} entries for {count} images: give one class, or a name or number for "
                "each image"
            )
        return [
            parse_class(conditioning, each if isinstance(each, str) else whole_number(each, "label"))
            for each in label
        ]

    def _batch(self, wanted: int | None, count: int) -> int:
        """Number of images to compute at once, of `count`; UsageError if `wanted` is below 1."""
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
        label: str | int | Sequence[str | int] | None = None,
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
            classes=self._classes_of_walk(label, seeds),
        )

    def _classes_of_walk(
        self, label: str | int | Sequence[str | int] | None, seeds: Sequence[int]
    ) -> list[int]:
        """The labels of a walk; that of its first seed if none is named, [] for an unconditional network."""
        from gantx.errors import UsageError
        from gantx.generation.labels import drawn_labels, parse_class, parse_classes

        conditioning = self.config.conditioning
        if label is None:
            drawn = drawn_labels(conditioning, seeds[:1]) if self.network.classes else None
            return drawn or []
        if self._label is not None:
            raise UsageError(f"this model generates the class {self.of_one_class} alone: omit the label")
        if isinstance(label, str):
            return parse_classes(conditioning, label)
        each = [parse_class(conditioning, one) for one in ([label] if isinstance(label, int) else label)]
        if not each:
            raise UsageError("label has no entries: name a class, or several to walk through")
        return each

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
            seeds: seeds of the walk in order, or a plan from `self.walk`.
            frames: of the whole walk, first and last included.
            batch: images computed at once; None for 64.
            how: `paths`, number of parallel walks, each through its share of the seeds; `space`, `z` or `w`
                (for networks with styles); `loop`, return to the first seed; `easing`, `linear` or
                `smooth`; `truncation`, a number or a sweep such as "0:1"; `cutoff`, its number of layers;
                `label`, the class of a conditional model, or several to walk through at the same time, by
                name or number: "cat", "cat,dog" or [3, 5], and by default the class of the first seed.

        Returns:
            uint8 [paths, C, H, W] on the CPU for every frame. The frame of a seed is its image in `sample`,
            of the same class.

        Raises:
            UsageError: too few frames, invalid numbers, or a capability that the network does not have.
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
        label: str | int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Generate the image of a seed, with its noise at the stored value, and its attention maps.

        Args:
            seed: of the image.
            layer: `last`, `all`, or the name of one.
            query: row and column of the query pixel, for self-attention; None for the pixel whose attention
                varies most, which usually lies on the object.
            truncation: psi of the styles; default 0.7 for attention over latents.
            label: class of a conditional model, by name or number; that of the seed by default.

        Returns:
            The whole square image, which the maps cover, uncropped where `data.ratio` is not 1: uint8
            [1, 3, R, R]; by layer, attention [1, h, m, S, S] of positions to m latents, or
            [1, h, S, S] of the query to all positions.

        Raises:
            UsageError: the network has no attention maps, or no such layer, pixel or class.
        """
        from gantx.generation import attention_visualization
        from gantx.generation.truncation import parse_truncation

        network = self.of_class(label, seed=seed).network
        view = attention_visualization.View(layer=layer, query=query, truncation=parse_truncation(truncation))
        view = attention_visualization.completed(network, view)
        return attention_visualization.observe(network, seed, view, self.device)

    def provenance(self, truncation: float | None = None, cutoff: int | None = None) -> dict[str, str]:
        """Provenance that is stored in a picture of this model, without its seeds."""
        from gantx.generation import provenance
        from gantx.generation.truncation import parse_truncation

        text = provenance.describe(self.header, self.weights, parse_truncation(truncation, cutoff))
        return text if self._label is None else {**text, "gantx:classes": str(self._label)}

    @property
    def of_one_class(self) -> str | None:
        """Name of the class of a model that `of_class` returned."""
        from gantx.generation.labels import name_of

        return None if self._label is None else name_of(self.config.conditioning, self._label)
