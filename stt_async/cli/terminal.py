"""What the commands share: where they print, and options that mean the same in each."""

import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, soft_wrap=True)

EnvFile = Annotated[
    Path | None, typer.Option(envvar="STT_ENV_FILE", help="File with settings; the environment wins over it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line, with stable keys.")]


def print_json(facts: dict[str, Any]) -> None:
    """Write one line of JSON to stdout."""
    sys.stdout.write(orjson.dumps(facts).decode() + "\n")
    sys.stdout.flush()


def print_out(sentence: str) -> None:
    """Write a line to stdout, as it is."""
    out.print(sentence, markup=False, highlight=False)


def print_err(sentence: str) -> None:
    """Write a line to stderr, as it is."""
    err.print(sentence, markup=False, highlight=False)
