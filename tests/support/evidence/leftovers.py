"""Fails a test that leaves a process or a temporary file."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import psutil
import pytest

_END_TIMEOUT_S = 30.0
_POLL_INTERVAL_S = 0.05


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A new folder as TMPDIR of this process and its children, so that all files in it are theirs."""
    folder = tmp_path_factory.mktemp("tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def nothing_left(temporary_folder: Path) -> Iterator[None]:
    """Fail a test that leaves a process or a temporary file behind."""
    processes, files = _children(), _files(temporary_folder)
    yield
    assert not _remain(lambda: _children() - processes), f"processes left: {_describe(_children() - processes)}"
    assert not _remain(lambda: _files(temporary_folder) - files), f"left in TMPDIR: {_files(temporary_folder) - files}"


def _remain(find: Callable[[], set[int] | set[Path]]) -> bool:
    """Return whether something is still found after a while: processes may take a moment to end."""
    deadline = time.monotonic() + _END_TIMEOUT_S
    while find():
        if time.monotonic() > deadline:
            return True
        time.sleep(_POLL_INTERVAL_S)
    return False


def _children() -> set[int]:
    """All running descendants, without the two helpers that multiprocessing keeps until the interpreter ends."""
    helpers = {
        getattr(forkserver, "_forkserver")._forkserver_pid,  # noqa: B009 - not in the stubs
        getattr(resource_tracker, "_resource_tracker")._pid,  # noqa: B009 - not in the stubs
    }
    descendants = psutil.Process(os.getpid()).children(recursive=True)
    return {each.pid for each in descendants if each.pid not in helpers and _is_running(each)}


def _is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _describe(pids: set[int]) -> list[str]:
    described = []
    for pid in pids:
        try:
            described.append(f"{pid} {psutil.Process(pid).cmdline()}")
        except psutil.NoSuchProcess:
            described.append(f"{pid} (ended by now)")
    return described


def _files(folder: Path) -> set[Path]:
    """The files in TMPDIR, without the folder of the fork server's socket."""
    return {file for file in folder.iterdir() if not file.name.startswith("pymp-")}
