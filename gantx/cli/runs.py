"""`gantx runs`: list the runs of a folder, and verify the files of one."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gantx.cli.help import Command, Group
from gantx.cli.options import AsJson
from gantx.cli.path_arguments import file_path
from gantx.cli.status import StatusDisplay
from gantx.cli.tables import print_table
from gantx.errors import CheckFailed
from gantx.io.escaping import printable

if TYPE_CHECKING:
    from gantx.training.runs import RunSummary

app = typer.Typer(help="List runs, and verify their files.", cls=Group, no_args_is_help=True)


@app.command("ls", cls=Command)
def ls(
    folder: Annotated[Path, typer.Argument(parser=file_path, help="A folder of runs, or a run.")] = Path(
        "runs"
    ),
    as_json: AsJson = False,
) -> None:
    """List runs with their state, progress, size, last scores, and best ones with their kimg.

    Examples:

      gantx runs ls

      gantx runs ls /scratch/runs --json
    """
    from gantx.training.runs import runs_in

    found = runs_in(folder)
    if as_json:
        rows = [{**dataclasses.asdict(run), "path": str(run.path)} for run in found]
        print(json.dumps({"schema": "gantx.runs/1", "runs": rows}))
        return
    if not found:
        print(printable(f"no runs in {folder}"))
        return
    print_table(
        ("run", "state", "kimg", "MB", "scores"),
        [
            (printable(run.path.name), run.state, _progress(run), f"{run.bytes / 1e6:,.3g}", _scores(run))
            for run in found
        ],
        right={"kimg", "MB"},
    )


def _progress(run: RunSummary) -> str:
    return f"{run.kimg:,.4g}/{run.target_kimg:,.4g}" if run.target_kimg else ""


def _scores(run: RunSummary) -> str:
    if run.problem:
        return printable(run.problem)
    best = run.best or {}
    parts = []
    for name, value in (run.scores or {}).items():
        of_best = f" (best {best[name].value:.4g} at {best[name].kimg:,.4g})" if name in best else ""
        parts.append(f"{name} {value:.4g}{of_best}")
    return printable(", ".join(parts))


@app.command("verify", cls=Command)
def verify(
    run: Annotated[Path, typer.Argument(parser=file_path, help="A run.")],
    as_json: AsJson = False,
) -> None:
    """Read every file of a run and check its digests.

    Exit code 1: a file is damaged.

    Examples:

      gantx runs verify runs/0001-transgan-tiny-shapes
    """
    from gantx.training.runs import verify

    with StatusDisplay() as status:
        found = verify(run, partial(status.show, "reading files"))
    damaged = [file for file in found if file.problem]
    if as_json:
        rows = [{"path": str(file.path), "problem": file.problem} for file in found]
        print(json.dumps({"schema": "gantx.runs-verify/1", "files": rows}))
    else:
        for file in damaged:
            print(printable(f"{file.path}: {file.problem}"))
        print(printable(f"{len(found) - len(damaged):,} of {len(found):,} files of {run} are sound"))
    if damaged:
        raise CheckFailed(
            f"{len(damaged):,} of {len(found):,} files of {run} are damaged or missing: remove damaged "
            "checkpoints and pictures, and go on from the newest checkpoint that is sound"
        )
