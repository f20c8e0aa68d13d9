"""The pool processes of a worker, looked at from outside."""

import asyncio
import os
import signal
from pathlib import Path

import psutil

from tests.support.commands import Worker


def children(worker: Worker) -> list[int]:
    """The pool processes: children of the fork server, which is a child of the worker."""
    return [
        process.pid
        for helper in psutil.Process(worker.pid).children()
        for process in helper.children()
        if _lives(process)
    ]


def splitting(worker: Worker, *, source_bytes: int | None = None) -> list[int]:
    """Those of them that have a recording open, or one of this size."""
    return [pid for pid in children(worker) if _has_open(pid, source_bytes)]


async def kill_whatever_splits(worker: Worker, *, source_bytes: int) -> None:
    """Kill each pool process in which a recording of this size is open, until cancelled."""
    while True:
        for pid in splitting(worker, source_bytes=source_bytes):
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.02)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _has_open(pid: int, source_bytes: int | None) -> bool:
    try:
        sources = [Path(file.path) for file in psutil.Process(pid).open_files() if file.path.endswith("/source")]
        return any(source_bytes in {None, source.stat().st_size} for source in sources)
    except (psutil.NoSuchProcess, FileNotFoundError):  # done, or dead, between two looks
        return False
