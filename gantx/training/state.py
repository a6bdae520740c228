"""Everything that changes while a run trains, and nothing else: what a checkpoint holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gantx import checkpoint, models
from gantx.checkpoint import Header
from gantx.config import RunConfig
from gantx.errors import CheckpointError
from gantx.training.ema import averaged
from gantx.training.stage import Player, Statistics


class TrainingState:
    """The networks, their optimisers, the average, and how far the run has come.

    Attributes:
        generator: G with its optimiser.
        discriminator: D with its optimiser.
        average: the running average of G.
        statistics: observations since the last report.
        path_length: running mean of the generator's path lengths, 0-d; zero without their penalty.
        iteration: iterations done.
        images: real images D has seen.
        seconds: time spent training, resumed parts included.
    """

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        # Weights are drawn on the CPU, so that a seed means the same networks on every device.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            generator = models.build(config.generator)
            discriminator = models.build(config.discriminator)
        self.average: nn.Module = averaged(generator).to(device)
        self.generator = Player(generator.to(device), config.optimizer.generator)
        self.discriminator = Player(discriminator.to(device), config.optimizer.discriminator)
        self.statistics = Statistics()
        self.path_length = torch.zeros((), device=device)
        self.iteration = 0
        self.seconds = 0.0

    @property
    def images(self) -> int:
        """Real images D has seen."""
        return self.iteration * self.config.training.batch

    def set_rates(self, factor: float) -> None:
        """Scale both learning rates by the schedule's factor."""
        self.generator.set_rate(factor)
        self.discriminator.set_rate(factor)

    def set_attention_window(self, window: int | None) -> None:
        """Limit the attention of a generator that relaxes it; the average always attends everywhere."""
        network = self.generator.network
        if not isinstance(network, models.RelaxesAttention):
            return
        if window is None:
            network.attention_window = None
        elif network.attention_window is None:
            network.attention_window = torch.tensor(window, device=self.device)
        else:
            network.attention_window.fill_(window)

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint stores, under the keys of the checkpoint format."""
        found: dict[str, Tensor] = {}
        networks = {
            "generator": self.generator.network,
            "generator_ema": self.average,
            "discriminator": self.discriminator.network,
        }
        for name, network in networks.items():
            found |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
        for name, player in (("generator", self.generator), ("discriminator", self.discriminator)):
            keys = [key for key, _ in player.network.named_parameters()]
            for index, moments in player.optimizer.state_dict()["state"].items():
                for moment, value in moments.items():
                    found[f"optimizer.{name}.{keys[index]}.{moment}"] = value
        found |= {f"state.statistics.{name}": value for name, value in self.statistics.sums.items()}
        if self.config.objective.path_length is not None:
            found["state.path_length"] = self.path_length
        if self.discriminator.spilled:
            found["state.spilled"] = self.discriminator.gradient
        return found

    def progress(self) -> dict[str, Any]:
        """The numbers that go into a checkpoint's header."""
        return {
            "images": self.images,
            "iteration": self.iteration,
            "seconds": round(self.seconds, 3),
            "device": self.device.type,
            "observations": self.statistics.counts,
            "spilled": self.discriminator.spilled,
        }

    def save(self, path: Path, data: dict[str, Any]) -> None:
        """Write a checkpoint; DivergedError when a tensor is not finite."""
        checkpoint.write(path, self.tensors(), config=self.config, progress=self.progress(), data=data)

    def restore(self, header: Header) -> None:
        """Continue from a checkpoint; CheckpointError when it does not fit."""
        networks = {
            "generator": self.generator.network,
            "generator_ema": self.average,
            "discriminator": self.discriminator.network,
        }
        for name, network in networks.items():
            checkpoint.load_into(network, checkpoint.read_part(header, name, self.device), header.path)
        self._restore_optimizers(header)
        self.iteration = int(header.progress["iteration"])
        self.seconds = float(header.progress["seconds"])
        self.statistics.counts = dict(header.progress["observations"])
        self.discriminator.spilled = bool(header.progress.get("spilled", False))
        stored = checkpoint.read_part(header, "state", self.device) if "state" in header.digests else {}
        self.statistics.sums = {name: stored[f"statistics.{name}"] for name in self.statistics.counts}
        if self.config.objective.path_length is not None:
            self.path_length.copy_(stored["path_length"])
        if self.discriminator.spilled:
            self.discriminator.gradient.copy_(stored["spilled"])

    def _restore_optimizers(self, header: Header) -> None:
        if "optimizer" not in header.digests:
            raise CheckpointError(f"{header.path} holds no optimizer state, so training cannot go on from it")
        stored = checkpoint.read_part(header, "optimizer")
        for name, player in (("generator", self.generator), ("discriminator", self.discriminator)):
            keys = {key: index for index, (key, _) in enumerate(player.network.named_parameters())}
            moments: dict[int, dict[str, Tensor]] = {}
            for full, value in stored.items():
                if found := re.fullmatch(rf"{name}\.(.+)\.(\w+)", full):
                    moments.setdefault(keys[found[1]], {})[found[2]] = value
            state = player.optimizer.state_dict()
            player.optimizer.load_state_dict({**state, "state": moments})
