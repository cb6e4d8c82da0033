"""The commands: parse, one API call, render; and the only place that maps errors to exit codes.

One module a command. Nothing heavy is imported before a command runs, so that `--help` answers
at once.
"""

import sys
import traceback
from typing import Annotated, cast

import typer

from vitdeploy.cli.advise import advise
from vitdeploy.cli.build import build
from vitdeploy.cli.check import check
from vitdeploy.cli.diagnose import diagnose
from vitdeploy.cli.distill import distill
from vitdeploy.cli.doctor import doctor
from vitdeploy.cli.export import export
from vitdeploy.cli.inspect import inspect, models
from vitdeploy.cli.lint import lint
from vitdeploy.cli.plan import plan
from vitdeploy.cli.predict import predict
from vitdeploy.cli.profile import profile
from vitdeploy.cli.prune import prune
from vitdeploy.cli.quantize import quantize
from vitdeploy.cli.report import report_diff, report_show
from vitdeploy.cli.run import run
from vitdeploy.errors import EXIT_INTERRUPTED, UsageError, VitdeployError
from vitdeploy.version import __version__

app = typer.Typer(
    name="vitdeploy",
    help="From a vision transformer's checkpoint to a checked artefact for an edge device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
report_app = typer.Typer(help="Look at reports that runs wrote.", no_args_is_help=True)
app.add_typer(report_app, name="report")

# typer exports neither this class nor, from 0.16 on, the click it stems from.
_ClickError = cast(
    "type[Exception]",
    next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"),
)


def _show_version(asked: bool) -> None:
    if asked:
        from vitdeploy.console import print_json

        print_json(f"vitdeploy {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    pass


# In the order `--help` lists them.
COMMANDS = (
    export,
    run,
    plan,
    quantize,
    prune,
    distill,
    check,
    build,
    advise,
    profile,
    diagnose,
    lint,
    predict,
    inspect,
    models,
    doctor,
)
for _command in COMMANDS:
    app.command()(_command)
report_app.command("show")(report_show)
report_app.command("diff")(report_diff)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code the design promises."""
    sys.exit(exit_code_from(arguments))


def exit_code_from(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0, the code of the error's class, 1 for a bug, 130."""
    try:
        result = app(arguments, standalone_mode=False)
    except VitdeployError as error:
        _print_error(str(error))
        return error.exit_code
    except _ClickError as error:
        _print_error(getattr(error, "format_message", error.__str__)())
        return UsageError.exit_code
    except (KeyboardInterrupt, typer.Abort):
        result = EXIT_INTERRUPTED
    except Exception:  # noqa: BLE001 - the one place where a bug is shown and mapped
        traceback.print_exc()
        _print_error("this is a bug in vitdeploy; please report the lines above.")
        return 1
    if result == EXIT_INTERRUPTED:  # typer answers Ctrl-C with this code and no word
        _print_error("interrupted; nothing was written.")
    return result if isinstance(result, int) else 0


def _print_error(message: str) -> None:
    from vitdeploy.console import print_error

    print_error(message)
