"""The command line: each file parses one subcommand, calls one function of the package, and renders.

No module here imports torch when it is loaded, so that `gantx --help` is fast.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import Annotated, Any

import typer

from gantx.cli import (
    assets,
    attend,
    bench,
    data,
    evaluate,
    export,
    import_checkpoint,
    info,
    interpolate,
    mix,
    output,
    presets,
    project,
    runs,
    sample,
    stats,
    train,
)
from gantx.cli.help import Command, Group
from gantx.cli.path_arguments import path_refused
from gantx.cli.refused_values import value_refused
from gantx.errors import GantxError, MissingError, Stopped
from gantx.runtime import memory
from gantx.runtime.signals import StopAtOnce
from gantx.version import __version__


class Program(Group):
    """Ends every subcommand with one sentence and a documented exit code instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand; a traceback is printed only with GANTX_DEBUG=1."""
        output.print_names_as_bytes()
        try:
            with StopAtOnce("stopped; complete files stay"):
                result = super().invoke(ctx)
                if sys.stdout is not None:
                    sys.stdout.flush()
                return result
        except Stopped as stop:  # as asked for, so no error
            output.log(str(stop))
            raise typer.Exit(stop.exit_code) from None
        except GantxError as problem:
            _complain(str(problem))
            raise typer.Exit(problem.exit_code) from None
        except KeyboardInterrupt:
            resume = (
                ", and a run goes on with: gantx train --resume RUN"
                if ctx.invoked_subcommand == "train"
                else ""
            )
            _complain(f"interrupted; finished files were kept{resume}")
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort):
            raise
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):  # how rich ends the program
                raise typer.Exit(0) from None
            raise
        except Exception as problem:
            if isinstance(problem, _USAGE_ERROR):
                if (sentence := value_refused(problem) or path_refused(problem)) is None:
                    raise
                _complain(sentence)
                raise typer.Exit(2) from None
            if isinstance(problem, OSError) and (name := output.silence_broken(problem)):
                if isinstance(problem, BrokenPipeError) and name == "standard output":
                    raise typer.Exit(0) from None  # its reader has seen enough
                _complain(
                    f"cannot write to {name}: {problem.strerror or problem}; files that were completed stay"
                )
                raise typer.Exit(MissingError.exit_code) from None
            if memory.ran_out(problem):
                _complain(
                    "this command needs more memory than it gets here: end other programs, raise the limit "
                    "(ulimit -v), or use a larger machine"
                )
                raise typer.Exit(MissingError.exit_code) from None
            if isinstance(problem, OSError) and problem.filename is not None:  # such as a name too long
                _complain(f"cannot use {problem.filename}: {problem.strerror or problem}")
                raise typer.Exit(MissingError.exit_code) from None
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
    rich_markup_mode=None,  # its tables cut names and waste half of 80 columns
    pretty_exceptions_enable=False,
)
app.command("train", cls=Command)(train.train)
app.command("sample", cls=Command)(sample.sample)
app.command("eval", cls=Command)(evaluate.evaluate)
app.command("interpolate", cls=Command)(interpolate.interpolate)
app.command("export", cls=Command)(export.export)
app.command("stats", cls=Command, rich_help_panel="More")(stats.stats)
app.command("import", cls=Command, rich_help_panel="More")(import_checkpoint.import_checkpoint)
app.command("attend", cls=Command, rich_help_panel="More")(attend.attend)
app.command("mix", cls=Command, rich_help_panel="More")(mix.mix)
app.command("project", cls=Command, rich_help_panel="More")(project.project)
app.command("info", cls=Command, rich_help_panel="More")(info.info)
app.add_typer(data.app, name="data", rich_help_panel="More")
app.add_typer(runs.app, name="runs", rich_help_panel="More")
app.add_typer(presets.app, name="presets", rich_help_panel="More")
app.add_typer(assets.app, name="assets", rich_help_panel="More")
app.add_typer(bench.app, name="bench", rich_help_panel="More")


def main() -> None:
    """Entry point of `gantx` and `python -m gantx`."""
    # Waiting OpenMP threads spin by default, which is very slow while another process uses the cores. Must be
    # set before torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    output.open_closed_streams()
    warnings.filterwarnings("ignore", module="PIL")  # what is wrong with an image is an error or no matter
    try:
        app()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # `gantx --help | head`
            sys.exit(0)
        raise
    except OSError as problem:  # a usage error or a help text that nobody can read
        if not output.silence_broken(problem):
            raise
        output.log(f"error: cannot write the answer: {problem.strerror or problem}")
        sys.exit(MissingError.exit_code)
    finally:
        output.silence_broken()  # or Python would end with a code of its own


def _complain(text: str) -> None:
    if os.environ.get("GANTX_DEBUG") == "1":
        traceback.print_exc()
    output.log(f"error: {text}")


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
