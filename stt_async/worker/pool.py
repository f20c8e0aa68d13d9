"""The process pool: one child for each usable vCPU, the model loaded once in each. The door to audio/."""

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import ParamSpec, TypeVar

import structlog
from pebble import ProcessExpired, ProcessPool

from stt_async.errors import TransientError, WorkerLostError
from stt_async.manifest import SplitResult
from stt_async.params import SplitLimits, SplitParams

_log = structlog.get_logger()

_PRELOADED = ["stt_async.audio.split"]
"""Imported once, in the fork server, with torch and silero_vad below it: a child costs 22 MB of its own, not 155."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Split:
    """What a child did, and when (monotonic clock, which all processes of a machine share)."""

    result: SplitResult
    started_s: float
    ended_s: float


class Pool:
    """Runs `audio.split.split` in children. A child that is killed or hangs costs its own job alone."""

    def __init__(self, processes: int, job_timeout_s: float) -> None:
        self._processes = processes
        self._job_timeout_s = job_timeout_s
        self._pool = self._make()

    async def split(self, source: Path, out_dir: Path, params: SplitParams, limits: SplitLimits) -> Split:
        """Split one recording in the next free child; cancelled, the child is ended and replaced.

        Raises:
            PermanentError, TransientError: as `audio.split.split` raises them.
            WorkerLostError: the child died (`child_died`) or hung (`child_hung`).
        """
        return await self._call(_split, source, out_dir, params, limits)

    async def ready(self) -> None:
        """Return when a child has loaded the model."""
        await self._call(_nothing)

    def close(self) -> None:
        """End all children, at once. Blocks until they are gone."""
        _end(self._pool)

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        pool = self._pool
        try:
            future = pool.schedule(function, args=args, kwargs=kwargs, timeout=self._job_timeout_s)
        except RuntimeError as error:
            raise await self._replace(pool, error) from error
        try:
            return await asyncio.wrap_future(future)
        except ProcessExpired as error:
            raise WorkerLostError(
                "child_died", f"the process that split this recording ended with exit code {error.exitcode}"
            ) from error
        except TimeoutError as error:
            raise WorkerLostError("child_hung", f"the split took longer than {self._job_timeout_s:.0f} s") from error
        except BrokenProcessPool as error:
            raise await self._replace(pool, error) from error

    async def _replace(self, broken: ProcessPool, error: Exception) -> TransientError:
        """Replace a broken pool, once however many jobs notice; return what to raise."""
        if self._pool is broken:
            _log.error("pool_broken", error=str(error))
            self._pool = self._make()
            await asyncio.to_thread(_end, broken)
        return TransientError("pool_broken", f"the process pool broke and was replaced: {error}")

    def _make(self) -> ProcessPool:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        return ProcessPool(max_workers=self._processes, initializer=_prepare_child, context=context)


@asynccontextmanager
async def open_pool(processes: int, job_timeout_s: float) -> AsyncIterator[Pool]:
    """Start the children, and end them at the end, whatever they do."""
    pool = Pool(processes, job_timeout_s)
    try:
        await pool.ready()
        yield pool
    finally:
        await asyncio.to_thread(pool.close)


def _end(pool: ProcessPool) -> None:
    pool.stop()  # type: ignore[no-untyped-call]  # pebble leaves it without annotations
    pool.join()


def _prepare_child() -> None:
    """Run in each child before its first job. Ctrl-C is the parent's to handle; without a parent there is no work."""
    from stt_async.audio.split import warm_up  # noqa: PLC0415 - torch is imported in children alone

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_die_with_parent, daemon=True).start()
    warm_up()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)


def _split(source: Path, out_dir: Path, params: SplitParams, limits: SplitLimits) -> Split:
    from stt_async.audio.split import split  # noqa: PLC0415 - torch is imported in children alone

    started_s = time.monotonic()
    result = split(source, out_dir, params, limits)
    return Split(result, started_s, time.monotonic())


def _nothing() -> None:
    return
