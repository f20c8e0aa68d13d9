"""The process pool: one child for each usable vCPU, the model loaded once in each. The door to audio/."""

import asyncio
import multiprocessing
import os
import resource
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
from stt_async.settings import Settings
from stt_async.worker.budget import Budget

_log = structlog.get_logger()

_PRELOADED = ["stt_async.audio.split"]
"""Imported once, in the fork server, with torch and silero_vad below it: a child costs 22 MB of its own, not 155."""

RECYCLE_AFTER_JOBS = 1000
"""A child is replaced after this many, whatever it may have gathered by then; a new one costs 0.3 s."""

POOLS = 3
"""Tried for one job; each can only break while none of its children works."""

SHORTEST_TIMEOUT_S = 600.0
TIMEOUT_MARGIN = 20.0
UNMEASURED_BYTES_S = 160_000.0
"""Assumed before anything was measured: 64 kbit/s audio at 20 times real time, a hundredth of what is usual."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Split:
    """What a child did, and when (monotonic clock, which all processes of a machine share)."""

    result: SplitResult
    started_s: float
    ended_s: float


class Pool:
    """Runs `audio.split.split` in children. A child that is killed, hangs or eats memory costs its own job alone.

    Args:
        processes: Children.
        job_timeout_s: Upper bound of any job's time in a child.
        child_max_bytes: Private memory that a child may take; beyond it its job fails, not the machine.
    """

    def __init__(self, processes: int, *, job_timeout_s: float, child_max_bytes: int) -> None:
        self._processes = processes
        self._job_timeout_s = job_timeout_s
        self._child_max_bytes = child_max_bytes
        self._children = Budget(processes)
        self._bytes_s: float | None = None
        self._pool = self._make()

    async def split(self, source: Path, out_dir: Path, params: SplitParams, limits: SplitLimits) -> Split:
        """Split one recording in the next free child; cancelled, the child is ended and replaced.

        Raises:
            PermanentError, TransientError: as `audio.split.split` raises them.
            WorkerLostError: the child died (`child_died`), hung (`child_hung`) or ran out of memory (`out_of_memory`).
        """
        async with self._children.take(1):
            return await self._split(source, out_dir, params, limits)

    async def split_alone(self, source: Path, out_dir: Path, params: SplitParams, limits: SplitLimits) -> Split:
        """Split one recording while no other is being split: for one that failed before, maybe for want of memory."""
        async with self._children.take(self._processes):
            return await self._split(source, out_dir, params, limits)

    async def ready(self) -> None:
        """Return when a child has loaded the model."""
        await self._call(self._job_timeout_s, _nothing)

    def close(self) -> None:
        """End all children, at once. Blocks until they are gone."""
        _end(self._pool)

    async def _split(self, source: Path, out_dir: Path, params: SplitParams, limits: SplitLimits) -> Split:
        source_bytes = source.stat().st_size
        timeout_s = split_timeout_s(source_bytes, self._bytes_s, self._job_timeout_s)
        split = await self._call(timeout_s, _split, source, out_dir, params, limits)
        measured = source_bytes / max(split.ended_s - split.started_s, 1e-3)
        self._bytes_s = measured if self._bytes_s is None else 0.9 * self._bytes_s + 0.1 * measured
        return split

    async def _call(self, timeout_s: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(POOLS):
            pool = self._pool
            try:
                return await asyncio.wrap_future(pool.schedule(function, args=args, kwargs=kwargs, timeout=timeout_s))
            except ProcessExpired as error:
                raise WorkerLostError(
                    "child_died", f"the process that split this recording ended with exit code {error.exitcode}"
                ) from error
            except TimeoutError as error:
                raise WorkerLostError("child_hung", f"the split was not done after {timeout_s:.0f} s") from error
            except (BrokenProcessPool, RuntimeError) as error:
                if pool.active:
                    raise  # an error of the job's own, from within its child
                await self._replace(pool, error)
        raise TransientError("pool_broken", f"{POOLS} process pools broke one after the other")

    async def _replace(self, broken: ProcessPool, error: Exception) -> None:
        """Replace a broken pool, once however many jobs notice: pebble gives all of it up when an idle child dies."""
        if self._pool is broken:
            _log.error("pool_broken", error=str(error))
            self._pool = self._make()
            await asyncio.to_thread(_end, broken)

    def _make(self) -> ProcessPool:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        return ProcessPool(
            max_workers=self._processes,
            max_tasks=RECYCLE_AFTER_JOBS,
            initializer=_prepare_child,
            initargs=(self._child_max_bytes,),
            context=context,
        )


def split_timeout_s(source_bytes: int, bytes_s: float | None, job_timeout_s: float) -> float:
    """Return how long a split may take: many times what its size says by the measured rate, but not too little.

    Args:
        source_bytes: Size of the recording.
        bytes_s: What children have done on average, or None before the first.
        job_timeout_s: Upper bound.
    """
    expected_s = source_bytes / (bytes_s or UNMEASURED_BYTES_S)
    return min(job_timeout_s, max(SHORTEST_TIMEOUT_S, TIMEOUT_MARGIN * expected_s))


@asynccontextmanager
async def open_pool(settings: Settings) -> AsyncIterator[Pool]:
    """Start the children, and end them at the end, whatever they do."""
    pool = Pool(settings.processes, job_timeout_s=settings.job_timeout_s, child_max_bytes=settings.child_max_bytes)
    try:
        await pool.ready()
        yield pool
    finally:
        await asyncio.to_thread(pool.close)


def _end(pool: ProcessPool) -> None:
    pool.stop()  # type: ignore[no-untyped-call]  # pebble leaves it without annotations
    pool.join()


def _prepare_child(max_bytes: int) -> None:
    """Run in each child before its first job. Ctrl-C is the parent's to handle; without a parent there is no work."""
    from stt_async.audio.split import warm_up  # noqa: PLC0415 - torch is imported in children alone

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (max_bytes, max_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
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
    try:
        result = split(source, out_dir, params, limits)
    except MemoryError as error:
        raise WorkerLostError(
            "out_of_memory", f"the split wanted more memory than a child may take: {error}"
        ) from error
    return Split(result, started_s, time.monotonic())


def _nothing() -> None:
    return
