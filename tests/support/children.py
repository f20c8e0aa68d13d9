"""The children of a worker, as seen by the operating system."""

import asyncio
import os
import signal
from pathlib import Path

import psutil

from tests.support.commands import Worker


def children(worker: Worker) -> list[int]:
    """The pids of the children: they are processes of the fork server, which is a process of the worker."""
    return [
        process.pid
        for helper in psutil.Process(worker.pid).children()
        for process in helper.children()
        if _is_running(process)
    ]


def splitting(worker: Worker, *, source_bytes: int | None = None) -> list[int]:
    """The children that have a recording open, of this size if one is given."""
    return [pid for pid in children(worker) if _has_open(pid, source_bytes)]


async def kill_splitting_children(worker: Worker, *, source_bytes: int) -> None:
    """Kill each child that has a recording of this size open, until cancelled."""
    while True:
        for pid in splitting(worker, source_bytes=source_bytes):
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.02)


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _has_open(pid: int, source_bytes: int | None) -> bool:
    try:
        sources = [Path(file.path) for file in psutil.Process(pid).open_files() if file.path.endswith("/source")]
        return any(source_bytes in {None, source.stat().st_size} for source in sources)
    except (psutil.NoSuchProcess, FileNotFoundError):  # it has ended meanwhile
        return False
