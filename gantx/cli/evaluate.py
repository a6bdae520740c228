"""`gantx eval`: score a generator, or images, and check thresholds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gantx.cli.options import AsJson, Best, Device, require_checkpoint, require_file
from gantx.cli.path_arguments import file_path, path_or_name
from gantx.cli.status import StatusDisplay, load_torch
from gantx.cli.tables import print_table
from gantx.errors import MissingError, UsageError
from gantx.io.atomic import require_folder
from gantx.io.escaping import printable

if TYPE_CHECKING:
    from gantx.evaluation.results import Result


def evaluate(
    target: Annotated[
        Path | None,
        typer.Argument(
            parser=file_path,
            help="A run, a checkpoint, demo, or images (folder, .zip, .npy); the newest run by default.",
        ),
    ] = None,
    best: Best = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="fid, kid, is, pr, dc, modes: fid,kid, or repeated. The preset's by default."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(parser=path_or_name, help="The real images; those of the run by default.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            parser=file_path,
            help="Statistics of real images in place of --data: a file of `gantx stats`, or an .npz.",
        ),
    ] = None,
    num: Annotated[int | None, typer.Option(min=2, help="How many images are scored.")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="clean-50k, stylegan-50k-full, transgan-test, vitgan-release or ganformer-50k."),
    ] = None,
    features: Annotated[
        str | None, typer.Option(parser=path_or_name, help="inception, random, or an .onnx file.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(parser=file_path, help="File of the Inception weights; see `gantx assets`.")
    ] = None,
    allow_unverified_weights: Annotated[
        bool,
        typer.Option(
            "--allow-unverified-weights", help="Accept weights of any digest; marked in the result."
        ),
    ] = False,
    split: Annotated[
        Literal["train", "test"] | None,
        typer.Option(help="Part of the data that is the reference; the protocol's by default."),
    ] = None,
    pr_num: Annotated[
        int | None, typer.Option(min=10, help="Largest number of real and of generated images in pr and dc.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image.")] = 0,
    class_: Annotated[
        str | None,
        typer.Option(
            "--class",
            help="Classes of a conditional model's images: data (in its proportions), uniform, or one class, "
            "by name or number, against its real images.",
        ),
    ] = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Also score each class against its real images.")
    ] = False,
    fail_above: Annotated[
        list[str] | None, typer.Option(metavar="METRIC=VALUE", help="Exit 1 when a value is above: fid=20.")
    ] = None,
    fail_below: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=VALUE", help="Exit 1 when a value is below: recall=0.3"),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(parser=file_path, help="An earlier --json result to compare with.")
    ] = None,
    max_regression: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=CHANGE", help="Exit 1 when worse than the baseline by more: fid=5%."),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="A threshold inside the 95 % interval leaves the gate undecided: exit 3."
        ),
    ] = False,
    intervals: Annotated[bool, typer.Option(help="Compute 95 % intervals.")] = True,
    as_json: AsJson = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", parser=file_path, help="Also write the JSON document to this file."),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(parser=file_path, help="Write JUnit XML to this file.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--md", parser=file_path, help="Write Markdown to this file.")
    ] = None,
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (all free cores).")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images generated at once (64).")] = None,
    cache: Annotated[bool, typer.Option(help="Take reference statistics from the cache.")] = True,
    engine: Annotated[
        Literal["gantx", "cleanfid"],
        typer.Option(help="gantx, or cleanfid for the slower implementation of clean-fid."),
    ] = "gantx",
) -> None:
    """Score a generator, or stored images.

    Exit code 0: all gates passed. 1: one failed. 3: one could not be decided, or something is missing.

    Examples:

      gantx eval demo --metric modes

      gantx eval demo --metric modes --fail-below modes=18 --junit out.xml

      gantx eval demo --metric fid,kid --features random --num 5000 --output eval.json

      gantx eval RUN --per-class --class uniform -o eval.json

      gantx sample demo -n 1000 -o images.zip

      gantx eval images.zip --data shapes --metric modes
    """
    from gantx import checkpoint
    from gantx.data.sources import require_source
    from gantx.evaluation import gates, protocols, reports, results, scores, targets

    thresholds = [gates.parse_gate(text, "above") for text in fail_above or []]
    thresholds += [gates.parse_gate(text, "below") for text in fail_below or []]
    regressions = [gates.parse_regression(text) for text in max_regression or []]
    if bool(regressions) != (baseline is not None):
        raise UsageError("--baseline and --max-regression need each other: give both or neither")
    if data is not None and reference is not None:
        raise UsageError("--data and --reference both say what to compare with: give one of them")
    for path in (output, junit, markdown):
        if path is not None and path.is_dir():
            raise UsageError(f"{path} is a folder: name a file")
        if path is not None:
            require_folder(path)
    written = [path.resolve() for path in (output, junit, markdown) if path is not None]
    if len(set(written)) < len(written):
        raise UsageError("--output, --junit and --md write a file each: give them different names")
    if output is not None and baseline is not None and output.resolve() == baseline.resolve():
        raise UsageError("--output would replace the --baseline even if a gate fails: name another file")
    if strict and not intervals:
        raise UsageError(
            "--strict needs the 95 % intervals, which --no-intervals leaves out: drop one of them"
        )
    earlier = results.read_result(baseline) if baseline else None
    metrics = scores.parse_metrics(metric or ())
    if protocol is not None:
        protocols.named(protocol)
    if features is not None:
        targets.require_features(features, weights)
    require_file(reference, "file of reference statistics")
    require_file(weights, "file of Inception weights")
    if data is not None:
        require_source(data)
    target = target or checkpoint.newest_run(Path("runs"))
    if best is not None or targets.is_checkpoint(target):
        target = require_checkpoint(target, best)

    load_torch()
    from gantx.evaluation import request as evaluation
    from gantx.generation import sampling
    from gantx.runtime import devices

    request = evaluation.Request(
        metrics=metrics,
        data=data,
        reference=reference,
        protocol=protocol,
        num=num,
        neighbours=pr_num,
        split=split,
        features=features,
        weights=weights,
        allow_unverified=allow_unverified_weights,
        seed=seed,
        batch=batch or sampling.BATCH,
        device=devices.pick_device(device),
        intervals=intervals,
        use_cache=cache,
        engine=engine,
        baseline=earlier,
        label=class_,
        per_class=per_class,
    )
    with StatusDisplay() as status:
        status.log(devices.use_threads(threads or "auto"))
        result = evaluation.evaluate(
            target, request, log=status.log, progress=status.show, working=status.working
        )
        result = result.with_verdicts(thresholds, regressions, earlier, strict=strict)

    if as_json:
        print(reports.as_json(result), end="", flush=True)
    else:
        _show(result)
    if output is not None:
        reports.write_json(result, output)
    if junit is not None:
        reports.write_junit(result, junit, "gantx eval")
    if markdown is not None:
        reports.write_markdown(result, markdown)
    try:
        reports.append_step_summary(reports.markdown(result))
    except MissingError as problem:  # must not hide the verdict
        print(f"warning: {problem}", file=sys.stderr)
    raise typer.Exit(result.exit_code)


def _show(result: Result) -> None:
    """Print the table of scores, what was measured, the reasons of failed gates, and the warnings."""
    from gantx.evaluation import reports

    headings, rows = reports.table(result)
    print_table(headings, [tuple(map(printable, row)) for row in rows], right=reports.RIGHT)
    for headings, rows in reports.class_tables(result):
        print()
        print_table(headings, [tuple(map(printable, row)) for row in rows], right=headings[1:])
    if result.classes:
        print()
    print(reports.summary_line(result))
    for line in (*reports.reasons(result), *(f"warning: {warning}" for warning in result.warnings)):
        print(printable(line))
