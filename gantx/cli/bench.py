"""`gantx bench`: how fast this machine trains, samples and scores a preset."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gantx.cli.help import Command, Group
from gantx.cli.options import AsJson, Device
from gantx.cli.status import StatusDisplay, load_torch
from gantx.cli.tables import print_table

if TYPE_CHECKING:
    from gantx.benchmarking.machine import Machine
    from gantx.benchmarking.sampling import SamplingFigures
    from gantx.benchmarking.scoring import ScoringFigures
    from gantx.benchmarking.training import TrainingFigures
    from gantx.config.schema import RunConfig

app = typer.Typer(
    help="Measure how fast this machine trains, samples and scores a preset.", cls=Group, no_args_is_help=True
)

Preset = Annotated[str, typer.Option(help="A recipe from `gantx presets ls`.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings, dotted: training.precision=fp32."),
]


@app.command("train", cls=Command)
def train(
    preset: Preset,
    overrides: Overrides = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Real images of one discriminator step (the preset's).")
    ] = None,
    device: Device = "auto",
    compile: Annotated[
        str | None, typer.Option(help="auto, on or off: compile the training step (auto: on CUDA).")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Measured iterations, rounded up to whole periods of lazy penalties."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure training: images per second, time of each step, share of peak arithmetic, memory.

    Weights and pixels are random; nothing is read or written.

    Examples:

      gantx bench train --preset transgan-s

      gantx bench train --preset transgan-tiny --batch 16 --device cpu --compile off

      gantx bench train --preset transgan-xl --batch 128 training.generator_batch=256 --json
    """
    changes = {"training.batch": batch, "training.compile": compile}
    settings = _settings(preset, overrides, changes)

    load_torch()
    from gantx.benchmarking import training
    from gantx.runtime import devices

    with StatusDisplay() as status:
        figures = training.measure(settings, devices.pick_device(device), steps=steps, log=status.log)
    if as_json:
        _print_json("train", figures)
    else:
        _show_training(figures)


@app.command("sample", cls=Command)
def sample(
    preset: Preset,
    overrides: Overrides = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images generated at once (as many as `gantx sample` would).")
    ] = None,
    number: Annotated[
        int | None,
        typer.Option("-n", min=1, help="Images of the file (50,000 on a GPU, else 512)."),
    ] = None,
    device: Device = "auto",
    compile: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile the generator, as `gantx sample` does.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure sampling: the generator alone, and the whole path from seeds to one .npy file.

    Weights are random; the file is made in the folder for temporary files and removed.

    Examples:

      gantx bench sample --preset transgan-s --batch 512 --compile

      gantx bench sample --preset transgan-tiny -n 256 --device cpu
    """
    settings = _settings(preset, overrides, {})

    load_torch()
    from gantx.benchmarking import sampling
    from gantx.runtime import devices

    place = devices.pick_device(device)
    with StatusDisplay() as status:
        figures = sampling.measure(
            settings, place, batch=batch, number=number, compile=compile, log=status.log
        )
    if as_json:
        _print_json("sample", figures)
    else:
        _show_sampling(figures)


@app.command("eval", cls=Command)
def evaluate(
    preset: Preset,
    overrides: Overrides = None,
    batch: Annotated[int, typer.Option(min=1, help="Images generated and scored at once.")] = 64,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure scoring: the generator, the resizing and the feature network.

    Generator and Inception have random weights, so nothing is downloaded.

    Examples:

      gantx bench eval --preset vitgan-cifar10 --batch 128

      gantx bench eval --preset transgan-tiny --device cpu evaluation.features=random
    """
    settings = _settings(preset, overrides, {})

    load_torch()
    from gantx.benchmarking import scoring
    from gantx.runtime import devices

    with StatusDisplay() as status:
        figures = scoring.measure(settings, devices.pick_device(device), batch=batch, log=status.log)
    if as_json:
        _print_json("eval", figures)
    else:
        _show_scoring(figures)


def _settings(preset: str, overrides: list[str] | None, changes: dict[str, Any]) -> RunConfig:
    """The preset with the changes of the command line."""
    from gantx.config import presets

    given = {key: value for key, value in changes.items() if value is not None}
    return presets.load(preset, overrides=overrides or [], settings=given)


def _print_json(what: str, figures: Any) -> None:
    print(json.dumps({"schema": "gantx.bench/1", "what": what, **dataclasses.asdict(figures)}))


def _show_training(figures: TrainingFigures) -> None:
    how = "compiled" if figures.compiled else "eager"
    _head(figures.preset, figures.machine, f"batch {figures.batch}, {figures.precision}, {how}")
    headings = ("step", "every", "images", "ms", "GFLOP", "TFLOP/s", "of the ceiling")
    rows = []
    for phase in figures.stages:
        numbers = (phase.milliseconds, phase.gflop, phase.teraflops)
        share = _percent(phase.share_of_ceiling)
        rows.append((phase.name, str(phase.every), str(phase.batch), *map(_short, numbers), share))
    rows.append(("average of G", "", "", _short(figures.average_milliseconds), "", "", ""))
    whole = (figures.iteration_milliseconds, figures.iteration_milliseconds * figures.teraflops)
    share = _percent(figures.share_of_ceiling)
    sums = (*map(_short, whole), _short(figures.teraflops), share)
    rows.append(("whole iteration", "1", str(figures.batch), *sums))
    print_table(headings, rows, right=set(headings[1:]))
    print()
    idle = "-" if figures.idle_share is None else _percent(figures.idle_share)
    _rows(
        {
            "throughput": (
                f"{_short(figures.images_per_second)} images/s over {figures.iterations} iterations"
            ),
            "ceiling": f"{_short(figures.ceiling_teraflops)} TFLOP/s in matrix products, {figures.precision}",
            "peak memory": f"{figures.peak_memory_gib:.2f} GiB",
            "compilation" if figures.compiled else "warm-up": f"{figures.warm_up_seconds:.1f} s",
            "host gaps": idle,
        }
    )


def _show_sampling(figures: SamplingFigures) -> None:
    how = "compiled" if figures.compiled else "eager"
    _head(figures.preset, figures.machine, f"batch {figures.batch}, {how}")
    _rows(
        {
            "generator": f"{_short(figures.generator_images_per_second)} images/s",
            "seeds to file": (
                f"{_short(figures.file_images_per_second)} images/s "
                f"({figures.number:,} images in {figures.file_seconds:.1f} s)"
            ),
            "of the generator": _percent(figures.share_of_generator),
            "peak memory": f"{figures.peak_memory_gib:.2f} GiB",
            "compilation" if figures.compiled else "warm-up": f"{figures.warm_up_seconds:.1f} s",
        }
    )


def _show_scoring(figures: ScoringFigures) -> None:
    _head(figures.preset, figures.machine, f"batch {figures.batch}")
    resizing = figures.resizing_images_per_second
    _rows(
        {
            "generator": f"{_short(figures.generator_images_per_second)} images/s",
            "resizing": "-" if resizing is None else f"{_short(resizing)} images/s",
            "features": f"{_short(figures.features_images_per_second)} images/s ({figures.features})",
            "together": (
                f"{_short(figures.images_per_second)} images/s: {figures.number:,} images in "
                f"{_short(figures.seconds)} s"
            ),
            "peak memory": f"{figures.peak_memory_gib:.2f} GiB",
        }
    )


def _head(preset: str, machine: Machine, how: str) -> None:
    threads = f"{machine.threads} thread{'s' if machine.threads != 1 else ''} of {machine.cores} cores"
    print(f"{preset}: {how}")
    print(f"on {machine.name} ({machine.device}), {threads}, {machine.system}")
    print(", ".join(f"{name} {version}" for name, version in machine.versions.items()))
    print()


def _rows(figures: dict[str, str]) -> None:
    for label, value in figures.items():
        print(f"{label:<18}{value}")


def _short(value: float) -> str:
    """Three significant digits, and all digits before the decimal point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
