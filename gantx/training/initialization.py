"""Starting a run from the weights of another: `initialization.checkpoint`, or `gantx train --init`.

What fits by name and shape is taken; the optimisers, the counters and all other weights are new. The run
saves itself at once, so that it does not need the other checkpoint any more. Imports no torch by itself.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from gantx import checkpoint
from gantx.checkpoint import Header
from gantx.config import presets
from gantx.config.schema import InitializationConfig, RunConfig
from gantx.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from gantx.training.state import TrainingState

_NAMED = 4  # tensors that the log names
MOST_ABSENT = 2**26  # weights of a network that a file describes and does not have
# Values that were resolved on the machine of the other run.
_MACHINE = {
    "training.threads": "auto",
    "training.compile": "auto",
    "training.cuda_graphs": "auto",
    "training.deterministic": None,
}


def configuration_of(header: Header) -> RunConfig:
    """The configuration of a checkpoint for a new run: what depended on its machine is open again."""
    return presets.load(base=header.config, settings=_MACHINE)


def located(settings: RunConfig) -> RunConfig:
    """Replace `initialization.checkpoint` by the path of the file, with its digest; others are unchanged.

    Raises:
        MissingError: there is no such checkpoint.
        CheckpointError: it cannot be read, or has another digest than the configuration says.
        UsageError: neither of its networks is of the family of this run's.
    """
    if settings.initialization is None:
        return settings
    header = _read(settings.initialization)
    theirs, ours = _families(header.config), _families(settings)
    if all(one != other for one, other in zip(theirs, ours, strict=True)):
        raise UsageError(
            f"no weight of {header.path} fits this run: its networks are of the families "
            f"{' and '.join(theirs)}, those of the run {' and '.join(ours)}; choose another preset"
        )
    found = InitializationConfig(checkpoint=str(header.path.resolve()), digest=_digest(header))
    return settings.model_copy(update={"initialization": found})


def require_size(settings: RunConfig) -> None:
    """Check that the file of `initialization` describes no larger networks than it has, before any is built.

    Args:
        settings: of a new run, which may have taken them over.

    Raises:
        MissingError: the file is gone.
        CheckpointError: it describes larger networks, or cannot be read.
    """
    if settings.initialization is None:
        return
    from gantx.generation.sampling import check_size
    from gantx.models import bounded

    header = _read(settings.initialization)
    for names, section in (
        (("generator", "generator_ema"), header.config.generator),
        (("discriminator",), header.config.discriminator),
    ):
        parts = [name for name in names if name in header.digests]
        for part in parts:
            check_size(header, part)
        if not parts:
            try:
                bounded.check_within(section, MOST_ABSENT, header.config.data.channels)
            except bounded.TooLargeError:
                raise CheckpointError(
                    f"{header.path} has a damaged header: it describes a network of more than "
                    f"{MOST_ABSENT:,} weights and has none of it"
                ) from None


def _families(config: RunConfig) -> tuple[str, str]:
    return config.generator.family, config.discriminator.family


def same_origin(settings: RunConfig, begun: RunConfig) -> RunConfig:
    """Settings with the origin that a begun run has, if they name the same file or the folder it is in."""
    named, stored = settings.initialization, begun.initialization
    if named is None or stored is None:
        return settings
    path, file = Path(named.checkpoint).resolve(), Path(stored.checkpoint)
    if path != file and path not in file.parents:
        return settings
    return settings.model_copy(update={"initialization": stored})


def initialize(state: TrainingState) -> list[str]:
    """Copy the weights that fit into the networks of a new run.

    Args:
        state: of the run, before its first iteration.

    Returns:
        One or two lines of log: what was taken, and what was not.

    Raises:
        MissingError: the checkpoint is gone.
        CheckpointError: it is damaged, or not the one the run was started with.
    """
    assert state.config.initialization is not None
    header = _read(state.config.initialization)
    own, other = state.config, header.config
    # Of a file that was exported for sampling there is only the average.
    trained = "generator" if "generator" in header.digests else "generator_ema"
    average = "generator_ema" if "generator_ema" in header.digests else "generator"
    same_generator = own.generator.family == other.generator.family
    same_discriminator = own.discriminator.family == other.discriminator.family
    parts: list[tuple[str, nn.Module, str, bool]] = [
        ("generator", state.generator.network, trained, same_generator),
        ("its average", state.average.network, average, same_generator),
        ("discriminator", state.discriminator.network, "discriminator", same_discriminator),
    ]
    counts, fresh = [], []
    for name, network, part, same_family in parts:
        missing = _load_fitting(network, header, part) if same_family else list(network.state_dict())
        total = len(network.state_dict())
        counts.append(f"{name} {total - len(missing)} of {total} tensors")
        if name != "its average":
            fresh += [f"{name}.{key}" for key in missing]
    lines = [
        f"init: {', '.join(counts)} from {header.path} ({other.name} at {header.images / 1000:g} kimg); "
        "the optimisers are new"
    ]
    if fresh:
        more = f" and {len(fresh) - _NAMED:,} more" if len(fresh) > _NAMED else ""
        lines.append(
            f"init: not in that checkpoint or of another shape, so drawn: {', '.join(fresh[:_NAMED])}{more}"
        )
    return lines


def _load_fitting(network: nn.Module, header: Header, part: str) -> list[str]:
    """Copy the tensors of a part that fit into a network; returns the names of the others."""
    own = network.state_dict()
    if part not in header.digests:
        return list(own)
    stored = checkpoint.read_part(header, part)
    fitting = {key for key in own if key in stored and stored[key].shape == own[key].shape}
    # The state of a spectral norm belongs to the weight that it normalises.
    fitting = {key for key in fitting if ".spectral." not in key or _normalized(key) in fitting}
    network.load_state_dict({key: stored[key] for key in fitting}, strict=False)
    return [key for key in own if key not in fitting]


def _normalized(key: str) -> str:
    return f"{key.partition('.spectral.')[0]}.weight"


def _read(settings: InitializationConfig) -> Header:
    header = checkpoint.read_header(checkpoint.find(Path(settings.checkpoint)))
    if not {"generator", "generator_ema", "discriminator"} & header.digests.keys():
        raise CheckpointError(f"{header.path} has no weights of networks, so no run can start from it")
    if settings.digest is not None and settings.digest != _digest(header):
        raise CheckpointError(
            f"{header.path} is not the checkpoint that initialization.digest names: give its path with "
            "initialization.checkpoint, or leave the digest out"
        )
    return header


def _digest(header: Header) -> str:
    """SHA-256 of the digests of the networks."""
    parts = {name: value for name, value in header.digests.items() if name not in ("optimizer", "state")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
