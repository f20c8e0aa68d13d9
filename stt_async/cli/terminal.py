"""Where commands print, and their exit codes."""

import sys
from typing import Any

import orjson
from rich.console import Console

from stt_async.local.demo import SOME_FAILED as SOME_FAILED  # noqa: PLC0414 - exported beside the other codes

UNEXPECTED, USAGE, OUT_OF_REACH = 1, 2, 3

out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, soft_wrap=True)


def print_json(facts: dict[str, Any]) -> None:
    """Print one line of JSON to stdout."""
    sys.stdout.write(orjson.dumps(facts).decode() + "\n")
    sys.stdout.flush()


def print_out(text: str) -> None:
    """Print text to stdout, without markup."""
    out.print(text, markup=False, highlight=False)


def print_err(text: str) -> None:
    """Print text to stderr, without markup."""
    err.print(text, markup=False, highlight=False)
