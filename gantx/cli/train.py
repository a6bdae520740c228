"""`gantx train`: start a run, go on with one, or show what a run would be."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gantx.cli.status import StatusDisplay
from gantx.errors import UsageError

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
        typer.Option(help="Folder, zip or archive of images, a known data set such as cifar10, or `shapes`."),
    ] = None,
    config: Annotated[list[Path] | None, typer.Option(help="YAML file of settings; may be repeated.")] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Same as a trailing KEY=VALUE.")
    ] = None,
    kimg: Annotated[float | None, typer.Option(help="Length of the run in thousand real images.")] = None,
    batch: Annotated[int | None, typer.Option(help="Real images of one discriminator step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.")] = None,
    compile: Annotated[
        str | None, typer.Option(help="auto, on or off: compile the training step (auto: long runs on CUDA).")
    ] = None,
    on_bad_image: Annotated[str | None, typer.Option(help="error or skip.")] = None,
    name: Annotated[str | None, typer.Option(help="Name in the run folder; the preset's by default.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    runs: Annotated[Path, typer.Option(help="Folder in which numbered run folders are made.")] = Path("runs"),
    out: Annotated[Path | None, typer.Option(help="Exactly this run folder instead.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", "-n", help="Show configuration, sizes, and what some steps take here; write nothing."
        ),
    ] = False,
    probe: Annotated[bool, typer.Option(help="Let --dry-run try steps, for about a minute.")] = True,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved configuration as YAML; write nothing.")
    ] = False,
) -> None:
    """Train a GAN on a folder of images.

    Examples:

      gantx train --preset transgan-tiny --data shapes

      gantx train --preset transgan-s --data ./cifar --kimg 2000 augment.policy=[]

      gantx train --resume runs/0001-transgan-s-cifar
    """
    from gantx.config import presets

    flags: dict[str, Any] = {
        "name": name,
        "data.source": data,
        "data.on_bad_image": on_bad_image,
        "training.kimg": kimg,
        "training.batch": batch,
        "training.seed": seed,
        "training.precision": precision,
        "training.compile": compile,
    }
    changes = {key: value for key, value in flags.items() if value is not None}
    texts = [*(assign or []), *(overrides or [])]

    if resume is not None:
        if preset or config or out or dry_run or print_config:
            raise UsageError(
                "--resume knows the run's configuration: leave --preset, --config, --out, --dry-run and "
                "--print-config away"
            )
        if resume.is_file():
            from gantx.io.file_kinds import recognized

            what = recognized(resume) or "is a file, not a run"
            raise UsageError(f"{resume} {what}; --resume takes the folder that `gantx train` made")
        from gantx.training import run

        _follow(device, partial(run.resume, resume, changes=changes, overrides=texts))
        return

    if preset is None and not config:
        raise UsageError("no recipe: add --preset NAME (`gantx presets ls` lists them) or --config FILE")
    settings = presets.load(preset, config or [], texts, changes)
    if print_config:
        print(settings.to_yaml(), end="")
        return
    if dry_run:
        from gantx.training.dry_run import sizes

        print(settings.to_yaml())
        _show_plan(sizes(settings))
        if probe:
            _probe(settings, device)
        return

    from gantx.training import run

    _follow(device, partial(run.start, settings, parent=runs, out=out))


def _follow(device: str, work: Callable[..., Path]) -> None:
    """Let `work` train, showing what happens before the run has a log of its own; print its folder."""
    from gantx.runtime import devices

    place = devices.pick_device(device)
    with StatusDisplay() as status:
        folder = work(
            device=place,
            command=sys.argv,
            log=status.log,
            progress=partial(status.show, "preparing images"),
        )
    print(folder)


def _probe(settings: RunConfig, device: str) -> None:
    """Show what some steps take."""
    from gantx.runtime import devices
    from gantx.training.dry_run import measured

    with StatusDisplay() as status:
        place = devices.pick_device(device)
        status.log(f"trying steps on {place} (--no-probe leaves them away)")
        figures = measured(settings, place, status.log)
    _show_plan(figures)


def _show_plan(figures: dict[str, Any]) -> None:
    for label, value in figures.items():
        print(f"{label:<18}{value}", flush=True)
