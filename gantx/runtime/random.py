"""Random numbers: declared by their consumers, drawn in one place, sliced for micro-batches.

No module of gantx calls a random function on its own. A consumer declares a `Spec`, the loop draws it for
the whole global batch from (seed, stream, step), and the consumer receives plain tensors. A run that resumes
needs no generator state, and N ranks draw the same numbers as one. Training draws into persistent tensors,
one call per kind of distribution (`RandomInputs`); elsewhere every leaf has its own generator, seeded also
from its name (`draw`, `for_seeds`), so that a new random feature never changes the numbers of others.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias, Union

import torch
from torch import Tensor

from gantx.runtime.flat import flat_zeros
from gantx.runtime.precision import usual_defaults


class Draw(NamedTuple):
    """One random tensor that a consumer needs.

    Attributes:
        kind: "normal" (mean 0, variance 1), "uniform" (in [0, 1)) or "integers" (in [low, high)).
        shape: the whole shape; a per-sample draw has the batch as its first axis.
        per: "sample" or "batch"; a per-batch draw is shared by all samples and never sliced.
        low: smallest integer, for "integers".
        high: one more than the largest integer, for "integers".
    """

    kind: str
    shape: tuple[int, ...]
    per: str = "sample"
    low: int = 0
    high: int = 0


Spec: TypeAlias = dict[str, Union[Draw, "Spec"]]
Draws: TypeAlias = dict[str, Union[Tensor, "Draws"]]


@contextlib.contextmanager
def global_state_kept() -> Iterator[None]:
    """Leave torch's global generator and defaults alone while networks are built, to load weights next.

    Layers draw their initial weights from that generator; inside, the defaults are float32 and the CPU.
    """
    with torch.random.fork_rng(devices=[]), usual_defaults():
        yield


def draw(spec: Spec, *, seed: int, stream: str, step: int, device: torch.device) -> Draws:
    """Draw everything in `spec` for the whole global batch.

    Args:
        spec: names to draws; may nest.
        seed: seed of the run.
        stream: name of the consumer (a phase), so that consumers do not share numbers.
        step: the consumer's step.
        device: where the tensors are made.

    Returns:
        A dictionary shaped like `spec`: float32 tensors, int64 for "integers".
    """
    generator = torch.Generator(device)
    return _draw(spec, f"{seed}/{stream}/{step}", generator)


class RandomInputs:
    """The draws of a spec in tensors that live as long as the run: one call per kind of distribution.

    The numbers depend on (seed, stream, step) and on the whole spec, but not on the order of its names.

    Args:
        spec: names to draws; may nest.
        device: where the tensors are.

    Attributes:
        draws: a dictionary shaped like `spec`; `fill` writes into its tensors.
        tensors: the buffers of which they are views.
    """

    def __init__(self, spec: Spec, device: torch.device) -> None:
        leaves = sorted(_leaves(spec, ""))
        self._generator = torch.Generator(device) if device.type != "meta" else None
        self._floats: dict[str, Tensor] = {}
        tensors: dict[str, Tensor] = {}
        for kind in ("normal", "uniform"):
            chosen = [(path, wanted) for path, wanted in leaves if wanted.kind == kind]
            flat, views = flat_zeros([wanted.shape for _, wanted in chosen], device)
            tensors |= {path: view for (path, _), view in zip(chosen, views, strict=True)}
            if chosen:
                self._floats[kind] = flat
        chosen = [(path, wanted) for path, wanted in leaves if wanted.kind == "integers"]
        shapes = [wanted.shape for _, wanted in chosen]
        (self._integers, views), (self._spans, spans), (self._lows, lows) = (
            flat_zeros(shapes, device, torch.int64) for _ in range(3)
        )
        self._spans.fill_(1)  # of the padding
        for (path, wanted), view, span, low in zip(chosen, views, spans, lows, strict=True):
            tensors[path] = view
            span.fill_(wanted.high - wanted.low)
            low.fill_(wanted.low)
        if unknown := [wanted.kind for path, wanted in leaves if path not in tensors]:
            raise KeyError(unknown[0])
        self.draws = _nested(spec, "", tensors)
        self.tensors = [*self._floats.values(), self._integers]

    def fill(self, *, seed: int, stream: str, step: int) -> None:
        """Draw everything anew, for the whole global batch.

        Args:
            seed: seed of the run.
            stream: name of the consumer (a phase), so that consumers do not share numbers.
            step: the consumer's step.
        """
        generator = self._generator
        assert generator is not None
        for kind, flat in self._floats.items():
            generator.manual_seed(_seed_of(f"{seed}/{stream}/{step}//{kind}"))
            if kind == "normal":
                flat.normal_(generator=generator)
            else:
                flat.uniform_(generator=generator)
        if len(self._integers):
            generator.manual_seed(_seed_of(f"{seed}/{stream}/{step}//integers"))
            # 63 random bits: the remainder favours small numbers by less than one part in 10^17.
            self._integers.random_(generator=generator).remainder_(self._spans).add_(self._lows)


def _leaves(spec: Spec, path: str) -> Iterator[tuple[str, Draw]]:
    for name, wanted in spec.items():
        here = f"{path}/{name}"
        if isinstance(wanted, dict):
            yield from _leaves(wanted, here)
        else:
            yield here, wanted


def _nested(spec: Spec, path: str, tensors: dict[str, Tensor]) -> Draws:
    return {
        name: _nested(wanted, f"{path}/{name}", tensors)
        if isinstance(wanted, dict)
        else tensors[f"{path}/{name}"]
        for name, wanted in spec.items()
    }


def take(draws: Draws, spec: Spec, rows: slice) -> Draws:
    """Return the samples `rows` of every per-sample draw; per-batch draws pass through whole."""
    part: Draws = {}
    for name, value in draws.items():
        wanted = spec[name]
        if isinstance(value, dict):
            assert isinstance(wanted, dict)
            part[name] = take(value, wanted, rows)
        else:
            part[name] = value[rows] if isinstance(wanted, Draw) and wanted.per == "sample" else value
    return part


def for_seeds(
    spec_of_one: Spec, seeds: Sequence[int], device: torch.device, *, pinned: bool = False
) -> Draws:
    """Draw one image's worth of randomness per seed and stack it along the batch.

    The numbers of a seed depend only on the seed: they are drawn on the CPU for every device.

    Args:
        spec_of_one: the draws of a batch of one, latents included.
        seeds: one per image.
        device: where the stacked tensors go.
        pinned: make them in page-locked memory, from which `place` copies to CUDA without waiting.
    """
    return place(_rows(spec_of_one, "", seeds, torch.Generator("cpu"), pinned), device)


def place(draws: Draws, device: torch.device) -> Draws:
    """The same draws on `device`; from page-locked memory the copy is asynchronous."""
    return {
        name: place(value, device) if isinstance(value, dict) else value.to(device, non_blocking=True)
        for name, value in draws.items()
    }


def _rows(spec: Spec, path: str, seeds: Sequence[int], generator: torch.Generator, pinned: bool) -> Draws:
    """One row per seed of every draw, written directly into the stacked tensor, without a copy."""
    made: Draws = {}
    for name, wanted in spec.items():
        here = f"{path}/{name}"
        if isinstance(wanted, dict):
            made[name] = _rows(wanted, here, seeds, generator, pinned)
        else:
            count, *rest = wanted.shape
            dtype = torch.int64 if wanted.kind == "integers" else torch.float32
            stacked = torch.empty((len(seeds) * count, *rest), dtype=dtype, device="cpu", pin_memory=pinned)
            for seed, row in zip(seeds, stacked.split(count), strict=True):
                generator.manual_seed(_seed_of(f"image/{seed}{here}"))
                _KINDS[wanted.kind](wanted, generator, row)
            made[name] = stacked
    return made


def _draw(spec: Spec, path: str, generator: torch.Generator) -> Draws:
    made: Draws = {}
    for name, wanted in spec.items():
        here = f"{path}/{name}"
        if isinstance(wanted, dict):
            made[name] = _draw(wanted, here, generator)
        else:
            generator.manual_seed(_seed_of(here))
            made[name] = _KINDS[wanted.kind](wanted, generator, None)
    return made


def _seed_of(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "little") >> 1


def _normal(wanted: Draw, generator: torch.Generator, out: Tensor | None = None) -> Tensor:
    return torch.randn(
        wanted.shape, generator=generator, dtype=torch.float32, device=generator.device, out=out
    )


def _uniform(wanted: Draw, generator: torch.Generator, out: Tensor | None = None) -> Tensor:
    return torch.rand(
        wanted.shape, generator=generator, dtype=torch.float32, device=generator.device, out=out
    )


def _integers(wanted: Draw, generator: torch.Generator, out: Tensor | None = None) -> Tensor:
    return torch.randint(
        wanted.low, wanted.high, wanted.shape, generator=generator, device=generator.device, out=out
    )


_KINDS: dict[str, Callable[[Draw, torch.Generator, Tensor | None], Tensor]] = {
    "normal": _normal,
    "uniform": _uniform,
    "integers": _integers,
}
