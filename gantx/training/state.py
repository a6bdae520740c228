"""The state of training: exactly the contents of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gantx import checkpoint, models
from gantx.checkpoint import Header
from gantx.config.schema import RunConfig
from gantx.errors import CheckpointError
from gantx.models.interfaces import Discriminator, Generator, RelaxesAttention
from gantx.runtime.precision import set_compute_dtype
from gantx.training.ema import Average
from gantx.training.optimized_network import OptimizedNetwork
from gantx.training.phase import Statistics


class TrainingState:
    """The networks, their optimisers, the average, and how far the run has come.

    Attributes:
        generator: G with its optimiser.
        discriminator: D with its optimiser.
        average: the running average of G, which computes in float32.
        statistics: observations since the last report.
        path_length: running mean of the generator's path lengths, 0-d; zero without their penalty.
        iteration: iterations done.
        images: real images D has seen.
        seconds: time spent training, resumed parts included.
        rollbacks: how often the run went back after it diverged; each halves the learning rates.
    """

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        # Weights are drawn on the CPU, so that a seed means the same networks on every device.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            generator = models.build(config.generator, config.data.channels)
            discriminator = models.build(config.discriminator, config.data.channels)
        optimizers = config.optimizer
        self.generator: OptimizedNetwork[Generator] = OptimizedNetwork(
            generator.to(device), optimizers.generator
        )
        self.discriminator: OptimizedNetwork[Discriminator] = OptimizedNetwork(
            discriminator.to(device), optimizers.discriminator
        )
        self.average = Average(self.generator)
        if config.training.precision == "bf16":
            for network in (self.generator.network, self.discriminator.network):
                set_compute_dtype(network, torch.bfloat16)
        self.statistics = Statistics()
        self.path_length = torch.zeros((), device=device)
        self.iteration = 0
        self.seconds = 0.0
        self.rollbacks = 0
        self._window: int | None = None

    @property
    def images(self) -> int:
        """Real images D has seen."""
        return self.iteration * self.config.training.batch

    def set_learning_rates(self, factor: float) -> None:
        """Scale both learning rates by the schedule's factor, and by the rollbacks."""
        factor *= 0.5**self.rollbacks
        self.generator.set_learning_rate(factor)
        self.discriminator.set_learning_rate(factor)

    def set_attention_window(self, window: int | None) -> bool:
        """Set the attention window of a generator that has one; its average always attends everywhere.

        Returns:
            Whether the window was switched on or off, which needs a new capture of the steps.
        """
        network = self.generator.network
        if not isinstance(network, RelaxesAttention) or window == self._window:
            return False
        toggled = (window is None) != (self._window is None)
        if window is None:
            network.attention_window = None
        elif network.attention_window is None:
            network.attention_window = torch.tensor(window, device=self.device)
        else:
            network.attention_window.fill_(window)
        self._window = window
        return toggled

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint stores, under the keys of the checkpoint format."""
        tensors: dict[str, Tensor] = {}
        networks = {
            "generator": self.generator.network,
            "generator_ema": self.average.network,
            "discriminator": self.discriminator.network,
        }
        for name, network in networks.items():
            tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
        for name, optimized in self._optimized().items():
            state = optimized.optimizer_state()
            tensors |= {f"optimizer.{name}.{key}": value for key, value in state.items()}
        sums = self.statistics.sums
        tensors |= {f"state.statistics.{name}": sums[name] for name in self.statistics.counts}
        if self.config.objective.path_length is not None:
            tensors["state.path_length"] = self.path_length
        return tensors

    def _optimized(self) -> dict[str, OptimizedNetwork[nn.Module]]:
        return {"generator": self.generator, "discriminator": self.discriminator}

    def progress(self) -> dict[str, Any]:
        """The numbers that go into a checkpoint's header."""
        return {
            "images": self.images,
            "iteration": self.iteration,
            "seconds": round(self.seconds, 3),
            "device": self.device.type,
            "observations": self.statistics.counts,
            **({"rollbacks": self.rollbacks} if self.rollbacks else {}),
        }

    def save(self, path: Path, data: dict[str, Any]) -> None:
        """Write a checkpoint; DivergedError when a tensor is not finite."""
        checkpoint.write(path, self.tensors(), config=self.config, progress=self.progress(), data=data)

    def restore(self, header: Header) -> None:
        """Resume from a checkpoint; CheckpointError when it does not fit."""
        networks = {
            "generator": self.generator.network,
            "generator_ema": self.average.network,
            "discriminator": self.discriminator.network,
        }
        for name, network in networks.items():
            checkpoint.load_into(network, checkpoint.read_part(header, name, self.device), header.path)
        self._restore_optimizers(header)
        stored = checkpoint.read_part(header, "state", self.device) if "state" in header.digests else {}
        try:
            self.iteration = int(header.progress["iteration"])
            self.seconds = float(header.progress["seconds"])
            self.rollbacks = int(header.progress.get("rollbacks", 0))
            counts = dict(header.progress["observations"])
            self.statistics.restore({name: stored[f"statistics.{name}"] for name in counts}, counts)
            if self.config.objective.path_length is not None:
                self.path_length.copy_(stored["path_length"])
        except KeyError as problem:
            raise CheckpointError(
                f"{header.path} lacks {problem}, so training cannot resume from it"
            ) from problem

    def _restore_optimizers(self, header: Header) -> None:
        if "optimizer" not in header.digests:
            raise CheckpointError(f"{header.path} has no optimizer state, so training cannot resume from it")
        stored = checkpoint.read_part(header, "optimizer")
        for name, optimized in self._optimized().items():
            own = {
                key.removeprefix(f"{name}."): value
                for key, value in stored.items()
                if key.startswith(f"{name}.")
            }
            try:
                optimized.load_optimizer_state(own)
            except RuntimeError as problem:
                raise CheckpointError(
                    f"{header.path} has an optimizer state of other shapes than its {name}"
                ) from problem
