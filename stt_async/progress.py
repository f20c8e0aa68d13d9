"""Progress on stderr: a bar on a terminal, otherwise a line every ten seconds."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_INTERVAL_S = 10.0
WAIT_INTERVAL_S = 5.0


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


def wait_lines() -> Callable[[str, float], None]:
    """Return a function that shows why a command waits and for how long, at most every `WAIT_INTERVAL_S`."""
    is_due = _every(WAIT_INTERVAL_S, since_s=-math.inf)

    def show(reason: str, left_s: float) -> None:
        if is_due():
            sys.stderr.write(f"waiting for up to {left_s:.0f} s: {reason}\n")

    return show


def _lines(what: str) -> Report:
    is_due = _every(LINE_INTERVAL_S, since_s=time.monotonic())

    def report(done: int, total: int | None = None) -> None:
        if is_due():
            of = "" if total is None else f" of {total}"
            sys.stderr.write(f"{what}: {done}{of}\n")

    return report


def _every(interval_s: float, *, since_s: float) -> Callable[[], bool]:
    """Return a function that returns True once in each interval."""
    last_s = since_s

    def is_due() -> bool:
        nonlocal last_s
        due = time.monotonic() - last_s >= interval_s
        if due:
            last_s = time.monotonic()
        return due

    return is_due
