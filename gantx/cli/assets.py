"""`gantx assets`: list, download and verify the weights that evaluation needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from gantx.cli.help import Command, Group
from gantx.cli.options import AsJson
from gantx.cli.tables import print_table
from gantx.errors import CheckFailed, Interrupted, MissingError
from gantx.io.streams import unfailing_stderr

if TYPE_CHECKING:
    from gantx.evaluation.assets import Asset, Status

app = typer.Typer(
    help="List, download and verify the weights that evaluation needs.", cls=Group, no_args_is_help=True
)

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Names from `gantx assets ls`; all by default."),
]


@app.command("ls", cls=Command)
def ls(as_json: AsJson = False) -> None:
    """List the weights and the paths they have or would have."""
    from gantx.evaluation import assets

    _show([assets.status(asset) for asset in assets.ASSETS.values()], as_json)


@app.command("fetch", cls=Command)
def fetch(names: Names = None) -> None:
    """Download weights that are not in the cache yet; print their paths.

    An interrupted download resumes where it stopped.

    Examples:

      gantx assets fetch inception
    """
    from gantx.evaluation import assets

    for asset in _chosen(names):
        with _bar(asset) as show:
            try:
                path = assets.fetch(asset, progress=show)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"interrupted: the part of {asset.file} received so far is kept, resume with: "
                    f"gantx assets fetch {asset.name}"
                ) from None
        print(path)


@app.command("verify", cls=Command)
def verify(names: Names = None, as_json: AsJson = False) -> None:
    """Compute the digests of the weights on this machine and compare them with the published ones.

    Exit code 1: a file is wrong. 3: a named file, or every file, is missing.
    """
    from gantx.evaluation import assets

    chosen = _chosen(names)
    found = [status for asset in chosen for status in assets.verify(asset)]
    _show(found, as_json)
    wrong = [str(status.path) for status in found if status.state == "wrong"]
    missing = [status.asset for status in found if status.state == "missing"]
    if wrong:
        raise CheckFailed(f"not as published: {', '.join(wrong)}: remove it or run `gantx assets fetch`")
    if missing and (names or len(missing) == len(chosen)):
        files = ", ".join(asset.file for asset in missing)
        fetching = " ".join(asset.name for asset in missing)
        raise MissingError(f"not on this machine: {files}: run `gantx assets fetch {fetching}`")


def _chosen(names: Sequence[str] | None) -> list[Asset]:
    from gantx.evaluation import assets

    return [assets.named(name) for name in dict.fromkeys(names or assets.ASSETS)]


def _show(found: list[Status], as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "name": asset.name,
                "file": asset.file,
                "size": asset.size,
                "sha256": asset.sha256,
                "url": asset.url,
                "purpose": asset.purpose,
                "state": state,
                "path": str(path),
            }
            for asset, state, path in found
        ]
        print(json.dumps({"schema": "gantx.assets/1", "assets": rows}))
        return
    print_table(
        ("asset", "size", "state", "file"),
        [(asset.name, f"{asset.size / 1e6:.1f} MB", state, str(path)) for asset, state, path in found],
        right={"size"},
        whole=True,
    )


@contextmanager
def _bar(asset: Asset) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows the bytes of a download: a progress bar on stderr in a terminal."""
    console = Console(file=unfailing_stderr())
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(asset.file, total=asset.size)
        yield lambda done, total: bar.update(task, completed=done, total=total)
