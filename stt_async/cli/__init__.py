"""The commands: each parses its options, builds the settings, calls one function and prints the result. No logic."""

import logging
import platform
import sys
from importlib.metadata import version
from typing import Annotated, Never

import typer

from stt_async import logs
from stt_async.cli import demo, deployment, doctor, enqueue, split, worker
from stt_async.cli.terminal import OUT_OF_REACH, UNEXPECTED, USAGE, print_err, print_out
from stt_async.errors import ClassifiedError, SettingsError, SttError

PACKAGES = ("stt-async", "silero-vad", "torch", "soundfile", "soxr", "av")
"""The packages that decide a segment's bytes, as `--version` lists them."""

app = typer.Typer(
    help="Splits large speech collections into training segments.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # typer's panels show a flag as an option that takes a value (`--json <bool>`)
)
app.command()(split.split)
app.command(cls=worker.WorkerCommand)(worker.worker)
app.command()(enqueue.enqueue)
app.command()(doctor.doctor)
app.command()(demo.demo)
app.add_typer(deployment.deploy, name="deploy")


def _print_versions(requested: bool) -> None:  # noqa: FBT001 - typer calls it with the flag
    if requested:
        for name in PACKAGES:
            print_out(f"{name} {version(name)}")
        print_out(f"Python {platform.python_version()}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    _versions: Annotated[
        bool,
        typer.Option("--version", callback=_print_versions, is_eager=True, help="Show the versions of the engine."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run a command; an expected error becomes one message and an exit code."""
    logs.configure(logging.ERROR)
    try:
        app()
    except SettingsError as error:
        _fail(str(error), USAGE)
    except ClassifiedError as error:
        _fail(error.message, OUT_OF_REACH)
    except SttError as error:
        _fail(str(error), UNEXPECTED)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(message: str, code: int) -> Never:
    print_err(f"stt-async: {message}")
    sys.exit(code)
