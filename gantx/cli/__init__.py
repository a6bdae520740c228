"""The command line: each file parses one subcommand, calls one function of the package, and renders.

Nothing here imports torch at module level: `gantx --help` has to be instant.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gantx.cli import (
    assets,
    attend,
    bench,
    evaluate,
    export,
    import_checkpoint,
    info,
    interpolate,
    mix,
    presets,
    project,
    sample,
    stats,
    train,
)
from gantx.cli.numbers import number_refused
from gantx.errors import GantxError, Stopped
from gantx.version import __version__


class Program(TyperGroup):
    """Ends every subcommand with one sentence and a documented exit code instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand; traceback only with GANTX_DEBUG=1."""
        try:
            return super().invoke(ctx)
        except Stopped as stop:  # as asked for, so no error
            print(stop, file=sys.stderr)
            raise typer.Exit(stop.exit_code) from None
        except GantxError as problem:
            _complain(str(problem))
            raise typer.Exit(problem.exit_code) from None
        except KeyboardInterrupt:
            _complain(
                "interrupted at once; complete files stay, and a run goes on with: gantx train --resume RUN"
            )
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader of our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as problem:
            if isinstance(problem, _USAGE_ERROR):
                if (sentence := number_refused(problem)) is None:
                    raise
                _complain(sentence)
                raise typer.Exit(2) from None
            _complain(
                f"this is a bug in gantx: {type(problem).__name__}: {problem} "
                "(run again with GANTX_DEBUG=1 for the details and report them)"
            )
            raise typer.Exit(70) from None


# Typer's own usage errors print themselves; their common base has no public name in every version.
_USAGE_ERROR = typer.BadParameter.__mro__[1]

app = typer.Typer(
    cls=Program,
    name="gantx",
    help="GANs made of transformers: train, sample, measure and ship them.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command("train")(train.train)
app.command("sample")(sample.sample)
app.command("eval")(evaluate.evaluate)
app.command("interpolate")(interpolate.interpolate)
app.command("export")(export.export)
app.command("stats", rich_help_panel="More")(stats.stats)
app.command("import", rich_help_panel="More")(import_checkpoint.import_checkpoint)
app.command("attend", rich_help_panel="More")(attend.attend)
app.command("mix", rich_help_panel="More")(mix.mix)
app.command("project", rich_help_panel="More")(project.project)
app.command("info", rich_help_panel="More")(info.info)
app.add_typer(presets.app, name="presets", rich_help_panel="More")
app.add_typer(assets.app, name="assets", rich_help_panel="More")
app.add_typer(bench.app, name="bench", rich_help_panel="More")


def main() -> None:
    """Entry point of `gantx` and `python -m gantx`."""
    # OpenMP threads that wait must not spin for long: beside another busy process that costs most of the
    # speed. Has to be set before torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    app()


def _complain(text: str) -> None:
    if os.environ.get("GANTX_DEBUG") == "1":
        traceback.print_exc()
    print(f"error: {text}", file=sys.stderr)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"gantx {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
