"""Rehearse what a preset trains on an H100, on a machine without a GPU.

    python benchmarks/cuda_rehearsal.py transgan-s
    python benchmarks/cuda_rehearsal.py vitgan-cifar10 transgan-s --depth 1 --json

For every phase of an iteration, the loss of each of its passes is compiled with its backward pass for an
H100, and the operations of the rest of the step are counted: gradients that are gathered, clipping, the
optimiser, what the networks keep. The report says how many kernels there are, how many launches a step takes,
and what Inductor or Triton refuses. A preset whose attention window opens in the course of a run is rehearsed
with the window closed and open. Exits with 1 where anything failed.

Needs Linux on x86-64 and a PyTorch for CUDA with Triton; pretended_gpu.py says what this can find and what it
cannot. The phases of a full-size preset take many minutes: `--depth 1` keeps one block of each resolution,
since they are all alike, and `--no-kernels` counts without compiling.
"""

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pretended_gpu  # noqa: E402

from gantx.benchmarking.launches import LaunchCounter  # noqa: E402
from gantx.config import presets  # noqa: E402
from gantx.config.schema import RunConfig  # noqa: E402
from gantx.data.batches import Batches  # noqa: E402
from gantx.data.prepare import Prepared  # noqa: E402
from gantx.errors import GantxError, UsageError  # noqa: E402
from gantx.training.phases import phases  # noqa: E402
from gantx.training.state import TrainingState  # noqa: E402
from gantx.training.steps import Steps  # noqa: E402

CPU = torch.device("cpu")


@dataclass
class Phase:
    """What became of one kind of step.

    Attributes:
        name: of the phase.
        window: of attention, `closed` or `open`; None where there is none.
        interval: the step is taken at every iteration that this number divides.
        batch: its images.
        samples: images of a micro-batch, for each pass.
        kernels: distinct Triton kernels.
        compiled: launches of compiled code, forward and backward, in all micro-batches, by name.
        rest: launches of the rest of the step, by operation.
        inputs: launches that fill its inputs, outside of what is replayed, by operation.
        failures: what was refused.
    """

    name: str
    window: str | None
    interval: int
    batch: int
    samples: list[int]
    kernels: int = 0
    compiled: dict[str, int] = field(default_factory=dict)
    rest: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)

    @property
    def launches(self) -> int:
        """Launches of one step, from filled inputs to moved weights."""
        return sum(self.compiled.values()) + sum(self.rest.values())


@dataclass
class Report:
    """What became of a preset.

    Attributes:
        preset: its name.
        batch: real images of an iteration.
        precision: `bf16` or `fp32`.
        cut: what was made shallower: its value before.
        average: launches of an update of the average, which follows each step of G.
        launches: of an iteration in the mean, with the window open where there is one; None unless all phases
            were rehearsed.
        phases: each kind of step.
    """

    preset: str
    batch: int
    precision: str
    cut: dict[str, object]
    average: int
    launches: float | None
    phases: list[Phase]


def shallower(settings, depth):
    """The run with at most so many blocks at each resolution, and the values that this has changed."""
    changes, cut = {}, {}
    for side in ("generator", "discriminator"):
        section = getattr(settings, side)
        for key in ("depth", "depths", "global_blocks"):
            value = getattr(section, key, None)
            if value is None:
                continue
            less = min(value, depth) if isinstance(value, int) else [min(count, depth) for count in value]
            if less not in (value, list(value) if isinstance(value, tuple) else value):
                changes[f"{side}.{key}"] = less
                cut[f"{side}.{key}"] = value
    return presets.load(base=settings, settings=changes), cut


def rehearse_preset(settings: RunConfig, cut, *, windows, names, compile_kernels, refused, log) -> Report:
    """Rehearse the phases of a run.

    Args:
        settings: the run.
        cut: see Report.
        windows: `closed` and `open`, or one of them, where the attention window opens during the run.
        names: of the phases; empty for all of them.
        compile_kernels: False stops once the code is written.
        refused: folder that receives the source of kernels that Triton refuses; None to drop it.
        log: receives a line for each phase.
    """
    schedule = settings.training.attention_window
    found = []
    average = 0
    for window in windows if schedule is not None else [None]:
        state = TrainingState(settings, CPU)
        state.set_attention_window(schedule.steps[0][1] if window == "closed" else None)
        graphs = []  # for each phase, for each pass

        def traced(phase, graphs=graphs):
            graphs.append([[] for _ in phase.passes])
            passes = [
                part._replace(loss=pretended_gpu.traced(part.loss, into))
                for part, into in zip(phase.passes, graphs[-1], strict=True)
            ]
            return dataclasses.replace(phase, passes=tuple(passes))

        torch.compiler.reset()
        steps = Steps(
            [traced(s) for s in phases(settings, state.generator, state.discriminator, state.path_length)],
            state.average,
            settings.data.image_shape,
            state.statistics,
            changes={},
            capture=None,
            required=False,
            log=log,
        )
        batches = random_batches(settings)
        known = [step.phase.name for step in steps.steps]
        if unknown := sorted(set(names) - set(known)):
            raise UsageError(f"{settings.name} has no phase {unknown[0]}, but {', '.join(known)}")
        for step, of_passes in zip(steps.steps, graphs, strict=True):
            if names and step.phase.name not in names:
                continue
            phase = Phase(
                step.phase.name,
                window,
                step.phase.interval,
                step.phase.batch,
                [part.micro_batch_size for part in step.phase.passes],
            )
            log(f"{settings.name}: {title(phase)}")
            found.append(phase)
            try:
                count_operations(step, batches, phase)
            except Exception as problem:  # of Dynamo or AOTAutograd: a graph break, a type that does not fit
                message = f"{type(problem).__name__}: {problem}"
                phase.failures.append({"graph": "-", "where": "tracing", "message": message[:1000]})
                continue
            compile_graphs(of_passes, phase, compile_kernels, refused)
        with LaunchCounter() as counter:
            steps.average()
        average = counter.total
    last = [phase for phase in found if phase.window in (None, windows[-1])]
    every = settings.objective.n_critic  # the interval of G's own step
    launches = sum(phase.launches / phase.interval for phase in last) + average / every
    if names:
        launches = None
    return Report(
        settings.name, settings.training.batch, settings.training.precision, cut, average, launches, found
    )


def count_operations(step, batches, phase):
    """Run a step twice: the first time it is traced; the second time, what it does beside that is counted."""

    def load(iteration):
        positions = dict.fromkeys(step.phase.reals, iteration * step.phase.batch)
        step.load(batches, positions, seed=0, iteration=iteration)

    load(0)
    step()
    with LaunchCounter() as counter:
        load(1)
    phase.inputs = dict(counter.launches)
    with LaunchCounter() as counter:
        step()
    phase.rest = dict(counter.launches)


def compile_graphs(of_passes, phase, compile_kernels, refused):
    """Lower and compile the graphs of a phase."""
    for index, (graphs, samples) in enumerate(zip(of_passes, phase.samples, strict=True)):
        report = pretended_gpu.rehearse(graphs, compile_kernels=compile_kernels)
        phase.kernels += report.kernels
        for name, number in report.launches.items():
            phase.compiled[name] = phase.compiled.get(name, 0) + number * (phase.batch // samples)
        for graph, where, message in report.failures:
            what = f"{graph} of pass {index + 1}" if len(of_passes) > 1 else graph
            phase.failures.append({"graph": what, "where": where, "message": message})
        for name, source in report.refused.items() if refused is not None else ():
            refused.mkdir(parents=True, exist_ok=True)
            (refused / f"{name}.py").write_text(source, encoding="utf-8")


def random_batches(settings):
    """Two batches of random bytes, as a set that lies on the device."""
    count = 2 * settings.generator_batch + 2 * settings.training.batch
    images = np.random.default_rng(0).integers(0, 256, (count, *settings.data.image_shape), np.uint8)
    prepared = Prepared(images, None, (), "random", "random", "random", ())
    return Batches(prepared, seed=0, mirror=settings.data.mirror, device=CPU, resident="device")


def title(phase):
    """A phase in words."""
    return phase.name if phase.window is None else f"{phase.name}, window {phase.window}"


def print_report(report, compile_kernels, names):
    """A table of the phases, so many names of what each launches most often, and every failure."""
    print(f"{report.preset}: batch {report.batch}, {report.precision}")
    for key, value in report.cut.items():
        print(f"  cut: {key} was {list(value) if isinstance(value, tuple) else value}")
    head = ("phase", "every", "micro-batches", "kernels", "compiled", "rest", "launches", "inputs", "refused")
    rows = [
        (
            title(phase),
            phase.interval,
            "+".join(str(phase.batch // samples) for samples in phase.samples),
            phase.kernels,
            sum(phase.compiled.values()),
            sum(phase.rest.values()),
            phase.launches,
            sum(phase.inputs.values()),
            len(phase.failures) if compile_kernels or phase.failures else "-",
        )
        for phase in report.phases
    ]
    rows.append(("average of G", "", "", "", "", report.average, report.average, "", ""))
    widths = [max(len(str(row[place])) for row in (head, *rows)) for place in range(len(head))]
    for row in (head, *rows):
        cells = [str(cell).rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  " + "  ".join([row[0].ljust(widths[0]), *cells]))
    if report.launches is not None:
        print(f"  an iteration: {report.launches:,.0f} launches")
    for phase in report.phases if names else ():
        print(f"  {title(phase)} launches most often:")
        often = sorted({**phase.compiled, **phase.rest}.items(), key=lambda item: -item[1])
        for name, number in often[:names]:
            print(f"    {number:5d}  {name}")
    for phase in report.phases:
        for failure in phase.failures:
            print(f"  FAILED {title(phase)}, {failure['graph']}, {failure['where']}: {failure['message']}")
    print(flush=True)


def main():
    """Rehearse presets and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="+", metavar="PRESET|KEY=VALUE", help="presets, and settings")
    parser.add_argument("--batch", type=int, help="real images of a D step")
    parser.add_argument("--depth", type=int, help="keep at most so many blocks at each resolution")
    parser.add_argument(
        "--state", choices=("both", "closed", "open"), default="both", help="of the attention window"
    )
    parser.add_argument("--phase", action="append", metavar="NAME", help="rehearse this phase alone")
    parser.add_argument("--no-kernels", action="store_true", help="stop once the code is written")
    parser.add_argument("--refused", type=Path, help="folder for the source of kernels that Triton refuses")
    parser.add_argument("--names", type=int, default=0, help="show so many names of what is launched most")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    asked = parser.parse_intermixed_args()
    if (reason := pretended_gpu.missing()) is not None:
        print(f"error: {reason}", file=sys.stderr)
        return 3
    overrides = [word for word in asked.presets if "=" in word]
    windows = ("closed", "open") if asked.state == "both" else (asked.state,)
    fixed = {"training.precision": "bf16", "training.batch": asked.batch}
    reports = []
    try:
        for name in (word for word in asked.presets if "=" not in word):
            given = {key: value for key, value in fixed.items() if value is not None}
            settings, cut = presets.load(name, settings=given, overrides=overrides), {}
            if asked.depth is not None:
                settings, cut = shallower(settings, asked.depth)
            report = rehearse_preset(
                settings,
                cut,
                windows=windows,
                names=asked.phase or [],
                compile_kernels=not asked.no_kernels,
                refused=asked.refused,
                log=lambda line: print(line, file=sys.stderr, flush=True),
            )
            reports.append(report)
            if not asked.json:
                print_report(report, not asked.no_kernels, asked.names)
    except GantxError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    if asked.json:
        document = {
            "schema": "gantx.rehearsal/1",
            "gpu": pretended_gpu.H100.name,
            "versions": pretended_gpu.versions(),
            "kernels_compiled": not asked.no_kernels,
            "presets": [dataclasses.asdict(report) for report in reports],
        }
        print(json.dumps(document))
    return int(any(phase.failures for report in reports for phase in report.phases))


if __name__ == "__main__":
    sys.exit(main())
