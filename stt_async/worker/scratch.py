"""Scratch space on disk: a folder for each worker, in it a folder for each job, and a bound on all of them."""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO

import structlog

from stt_async.errors import DISK_FULL, TransientError
from stt_async.limits import Capacity

_log = structlog.get_logger()

SHARE_OF_FREE_DISK = 0.8


class Scratch:
    """The scratch space of one worker. Use it on the event loop's thread only."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._capacity_bytes = Capacity(max_bytes)

    @asynccontextmanager
    async def job_folder(self, needed_bytes: int) -> AsyncIterator[Path]:
        """Wait, first come first served, for scratch space; yield an empty folder, which is removed at the end.

        Oversized requests wait for the whole space. A full disk halves the space that jobs may use together; each job
        that succeeds raises it again.
        """
        async with self._capacity_bytes.take(needed_bytes):
            try:
                with self._temporary_folder() as folder:
                    yield folder
            except TransientError as error:
                if error.code == DISK_FULL:
                    # Other programs fill the disk, or the estimates were too low.
                    self._capacity_bytes.resize(self._capacity_bytes.total // 2)
                    _log.warning("scratch_full", admitted_bytes=self._capacity_bytes.total)
                raise
            self._capacity_bytes.resize(self._capacity_bytes.total + max(1, self._capacity_bytes.units // 16))

    def used_percent(self) -> float:
        """Return how full the disk is, by all its users."""
        disk = shutil.disk_usage(self._folder)
        return round(100 * disk.used / (disk.used + disk.free), 1)

    @contextmanager
    def _temporary_folder(self) -> Iterator[Path]:
        try:
            folder = Path(tempfile.mkdtemp(prefix="job-", dir=self._folder))
        except OSError as error:
            raise TransientError(DISK_FULL, f"cannot create a folder in {self._folder}: {error}") from error
        try:
            yield folder
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise TransientError(DISK_FULL, f"no space left in {folder}: {error}") from error
            raise
        finally:
            # Rename first: a pool child may still write here for a moment after its job was cancelled.
            gone = folder.with_suffix(".gone")
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def open_scratch(scratch_dir: Path, max_bytes: int | None) -> Iterator[Scratch]:
    """Create this worker's folder below `scratch_dir`, and remove the folders of dead workers.

    A worker holds a lock on its folder while it lives (flock: the kernel releases it when the process ends).
    """
    scratch_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _exclusive(scratch_dir):
        _remove_abandoned(scratch_dir)
        folder = Path(tempfile.mkdtemp(prefix=f"worker-{os.getpid()}-", dir=scratch_dir))
        lock = _lock(folder)
    try:
        free_bytes = int(shutil.disk_usage(folder).free * SHARE_OF_FREE_DISK)
        yield Scratch(folder, max_bytes or free_bytes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


@contextmanager
def _exclusive(scratch_dir: Path) -> Iterator[None]:
    """Let workers that start at once enter one by one: a folder not locked yet looks like a dead worker's."""
    descriptor = os.open(scratch_dir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(scratch_dir: Path) -> None:
    for folder in scratch_dir.glob("worker-*"):
        try:
            lock = _lock(folder)
        except OSError:
            continue  # its worker lives, or just removed the folder
        with lock:
            shutil.rmtree(folder, ignore_errors=True)
            _log.info("scratch_removed", folder=str(folder), reason="its worker is dead")


def _lock(folder: Path) -> IO[bytes]:
    """Lock a worker's folder, or raise OSError."""
    lock = (folder / "lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise
    return lock
