"""Progress on stderr: a bar on a terminal, otherwise a line every ten seconds."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_INTERVAL_S = 10.0


class Report(Protocol):
    """Reports progress."""

    def __call__(self, done: int, total: int | None = None) -> None:
        """Report that `done` of `total` are done; None: the total is unknown yet."""


@contextmanager
def progress(what: str) -> Iterator[Report]:
    """Show the progress of `what` until the block ends."""
    if sys.stderr.isatty():
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Bar(TextColumn("{task.description}"), *columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total=None: bar.update(task, completed=done, total=total)
    else:
        yield _lines(what)


def _lines(what: str) -> Report:
    shown_s = time.monotonic()

    def report(done: int, total: int | None = None) -> None:
        nonlocal shown_s
        if time.monotonic() - shown_s >= LINE_INTERVAL_S:
            shown_s = time.monotonic()
            of = "" if total is None else f" of {total}"
            sys.stderr.write(f"{what}: {done}{of}\n")

    return report
