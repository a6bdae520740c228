"""`gantx train`: start a run, resume one, or plan one."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gantx.cli import output
from gantx.cli.options import Channels, ConfigFiles, Device
from gantx.cli.path_arguments import file_path, path_or_name
from gantx.cli.status import StatusDisplay, load_torch
from gantx.errors import UsageError
from gantx.runtime.signals import StopAtOnce, time_limit

if TYPE_CHECKING:
    from gantx.config.schema import RunConfig


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings, dotted: training.batch=32."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="A recipe from `gantx presets ls`.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            parser=path_or_name,
            help="Folder, zip or archive of images, a known data set such as cifar10, or `shapes`.",
        ),
    ] = None,
    config: ConfigFiles = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Same as a trailing KEY=VALUE.")
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option(
            min=4,
            max=2048,
            help="Height and width of the images; the sizes of the networks follow.",
        ),
    ] = None,
    channels: Channels = None,
    kimg: Annotated[float | None, typer.Option(help="Length of the run in thousand real images.")] = None,
    batch: Annotated[int | None, typer.Option(help="Real images of one discriminator step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all random numbers.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.")] = None,
    compile: Annotated[
        str | None, typer.Option(help="auto, on or off: compile the training step (auto: long runs on CUDA).")
    ] = None,
    on_bad_image: Annotated[str | None, typer.Option(help="error or skip.")] = None,
    name: Annotated[str | None, typer.Option(help="Name in the run folder; the preset's by default.")] = None,
    device: Device = "auto",
    runs: Annotated[Path, typer.Option(parser=file_path, help="Parent of the numbered run folders.")] = Path(
        "runs"
    ),
    out: Annotated[
        Path | None, typer.Option(parser=file_path, help="Path of the run folder, in place of --runs.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            parser=file_path,
            metavar="RUN|CKPT|auto",
            help="Resume this run, or go back to this checkpoint of it; auto: resume the run in --out, or "
            "start it there.",
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            parser=file_path,
            metavar="CKPT",
            help="Start from the weights of this run or checkpoint that fit, with new optimisers; without "
            "--preset and --config also from its configuration.",
        ),
    ] = None,
    allow_changes: Annotated[
        bool,
        typer.Option(
            "--allow-changes",
            help="With --resume: go on with other learning rates, losses or augmentation from here.",
        ),
    ] = False,
    max_time: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Save and stop (exit code 75) after 90s, 45m, 3h50m or 1d2h."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", "-n", help="Show configuration, sizes and measured steps; write nothing."),
    ] = False,
    probe: Annotated[bool, typer.Option(help="Let --dry-run measure steps, for about a minute.")] = True,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved configuration as YAML; write nothing.")
    ] = False,
) -> None:
    """Train a GAN on a folder of images.

    Examples:

      gantx train --preset transgan-tiny --data shapes

      gantx train --preset transgan-s --data ./cifar --kimg 2000 augment.policy=[]

      gantx train --preset vitgan-cifar10 --data ./flowers --resolution 64

      gantx train --preset transgan-tiny --data ./scans --channels 1

      gantx train --resume runs/0001-transgan-s-cifar

      gantx train --resume runs/0001-transgan-s-cifar/checkpoints/kimg-000800.000.safetensors

      gantx train --init runs/0001-transgan-s-cifar --data ./birds

      gantx train --preset transgan-s --data ./cifar --out runs/a --resume auto --max-time 3h50m
    """
    refuse_several_processes(os.environ)
    limit = None if max_time is None else parse_time(max_time)
    flags: dict[str, Any] = {
        "name": name,
        "data.source": data,
        "data.channels": channels,
        "data.on_bad_image": on_bad_image,
        "training.kimg": kimg,
        "training.batch": batch,
        "training.seed": seed,
        "training.precision": precision,
        "training.compile": compile,
    }
    changes = {key: value for key, value in flags.items() if value is not None}
    texts = [*(assign or []), *(overrides or [])]

    if not probe and not dry_run:
        raise UsageError("--no-probe is for --dry-run: omit it, or add --dry-run")
    auto = resume == _AUTO
    if auto and out is None:
        raise UsageError("--resume auto needs the folder of the run: add --out DIR")
    if resume is not None and not auto:
        if preset or config or out or dry_run or print_config or resolution:
            raise UsageError(
                "--resume takes the configuration of the run: omit --preset, --config, --resolution, --out, "
                "--dry-run and --print-config"
            )
        if init:
            raise UsageError("--init starts a new run: omit --resume, or write --resume auto with --out DIR")
        from gantx.training.preconditions import require_run, run_of

        folder, back_to = (run_of(resume), resume) if resume.is_file() else (resume, None)
        require_run(folder)
        with time_limit(limit), StopAtOnce(_BEFORE, leaves=True):
            load_torch()
            from gantx.training import run

            how: dict[str, Any] = {"changes": changes, "overrides": texts, "allow_changes": allow_changes}
            _follow(device, partial(run.resume, folder, back_to=back_to, **how))
        return

    if allow_changes and not auto:
        raise UsageError("--allow-changes is for a run that goes on: add --resume RUN, or leave it out")
    begun = out if auto and out is not None and (out / "config.yaml").is_file() else None
    settings = _configuration(preset, config or [], texts, changes, resolution, init, begun)
    if print_config:
        print(settings.to_yaml(), end="")
        return
    if dry_run:
        if begun is None and settings.data.source is not None:
            from gantx.training.preconditions import require_new_run

            require_new_run(settings, out, runs)
        _dry_run(settings)
        if probe:
            _probe(settings, device)
        return

    if begun is None:
        from gantx.training.preconditions import require_new_run

        require_new_run(settings, out, runs)
    with time_limit(limit), StopAtOnce(_BEFORE, leaves=True):
        load_torch()
        from gantx.training import run

        if auto and out is not None:
            how = {"changes": changes, "overrides": texts, "allow_changes": allow_changes}
            work = partial(run.start_or_resume, settings, out, **how)
        else:
            work = partial(run.start, settings, parent=runs, out=out)
        _follow(device, work)


def _configuration(
    preset: str | None,
    config: list[Path],
    overrides: list[str],
    changes: dict[str, Any],
    resolution: int | None,
    init: Path | None,
    begun: Path | None,
) -> RunConfig:
    """The configuration of a new run; one that is `begun` in its folder does not need `init` any more."""
    from gantx.config import presets

    base = None
    if init is not None:
        changes = {**changes, "initialization.checkpoint": str(init), "initialization.digest": None}
        if preset is None and not config:
            from gantx import checkpoint
            from gantx.training.initialization import configuration_of

            if begun is not None:
                base = presets.load(files=[begun / "config.yaml"])
            else:
                base = configuration_of(checkpoint.read_header(checkpoint.find(init)))
    elif preset is None and not config:
        raise UsageError("no recipe: add --preset NAME (`gantx presets ls` lists them) or --config FILE")
    if resolution is None:
        settings = presets.load(preset, config, overrides, changes, base)
    else:
        settings, chosen = presets.load_at_resolution(resolution, preset, config, overrides, changes, base)
        if chosen:
            with StatusDisplay() as status:
                status.log(f"resolution {resolution}: {chosen}")
    if begun is None:
        from gantx.training.initialization import located

        settings = located(settings)
    return settings


def refuse_several_processes(environment: Mapping[str, str]) -> None:
    """Refuse to be one of several processes that a launcher started: each would train a run of its own.

    Args:
        environment: the variables that launchers set.

    Raises:
        UsageError: there are several processes.
    """
    sizes = [environment[name] for name in _SIZES if name in environment]
    ranked = any(name in environment for name in _RANKS)
    if any(size != "1" for size in sizes) or (ranked and not sizes):
        raise UsageError(
            "gantx cannot train a run on several GPUs or in several processes yet: start `gantx train` once, "
            "without torchrun, mpirun or several tasks of srun, on one GPU (--device cuda:0)"
        )


# What torchrun, mpirun (Open MPI, MPICH) and srun tell their processes.
_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_RANKS = ("LOCAL_RANK", "RANK")

_AUTO = Path("auto")
_BEFORE = "stopped before the training began; the same command starts again"
_TIME = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def parse_time(text: str) -> float:
    """Seconds of a length of time such as 90s, 45m, 3h50m or 1d2h; UsageError for anything else."""
    match = _TIME.fullmatch(text.strip())
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0, 0)
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if not 0 < total < 10**9:
        raise UsageError(f"--max-time '{text}' is not a length of time: write 90s, 45m, 3h50m or 1d2h")
    return float(total)


def _follow(device: str, work: Callable[..., Path]) -> None:
    """Train by calling `work`, with its messages on stderr, and print the folder of the run."""
    from gantx.runtime import devices

    place = devices.pick_device(device)
    with StatusDisplay() as status:
        folder = work(
            device=place,
            command=sys.argv,
            log=status.log,
            progress=partial(status.show, "preparing images"),
        )
    output.print_result(str(folder))


def _dry_run(settings: RunConfig) -> None:
    """Print the configuration and what follows from it; fail for images that training would refuse."""
    import torch

    from gantx.data.prepare import check, require_enough
    from gantx.data.published import SETS
    from gantx.training.dry_run import sizes
    from gantx.training.initialization import require_size
    from gantx.training.periodic_eval import require_evaluation

    require_size(settings)
    print(settings.to_yaml())
    if settings.data.source not in (None, *SETS):  # which would be downloaded
        with StatusDisplay() as status:
            count = check(
                settings.data,
                log=status.log,
                progress=partial(status.show, "reading images"),
                labels=settings.conditioning.classes is not None,
            )
            require_enough(count, settings.data, status.log)
    if settings.data.source is not None:
        require_evaluation(settings, torch.device("cpu"))
    _show_plan(sizes(settings))


def _probe(settings: RunConfig, device: str) -> None:
    """Measure some steps and print their time and memory."""
    from gantx.runtime import devices
    from gantx.training.dry_run import measured

    with StatusDisplay() as status:
        place = devices.pick_device(device)
        status.log(f"measuring steps on {place} (omitted with --no-probe)")
        figures = measured(settings, place, status.log)
    _show_plan(figures)


def _show_plan(figures: dict[str, Any]) -> None:
    for label, value in figures.items():
        print(f"{label:<18}{value}", flush=True)
