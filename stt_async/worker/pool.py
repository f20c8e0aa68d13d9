"""The process pool: one child per usable vCPU, each with the model loaded. Only the pool runs audio/ in the worker."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog

from stt_async.concurrency import finish_despite_cancel, gather_or_cancel
from stt_async.errors import TransientError, WorkerLostError
from stt_async.limits import Capacity
from stt_async.manifest import SplitResult
from stt_async.params import SplitLimits, SplitParams
from stt_async.settings import Settings
from stt_async.worker.child import Child, ChildLostError
from stt_async.worker.estimates import SplitRate

_log = structlog.get_logger()

NEW_CHILDREN = 3
"""Children started for one job, one after the other, if each is lost before it acknowledges the job."""

NEW_CHILD_PAUSE_S = 0.2
"""Before the next child: a fork server that was killed seems alive for a moment."""

_NO_MEMORY = "can't allocate memory"
"""In the RuntimeError that torch's DefaultCPUAllocator raises instead of a MemoryError."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TimedSplit:
    """The result of a split, and its times on the monotonic clock, which all processes of a machine share."""

    result: SplitResult
    started_s: float
    ended_s: float


class Pool:
    """Runs `audio.split.split` in children. A child that dies, hangs or exhausts its memory fails only its own job.

    Each lost child is logged once as `child_lost`, each replaced one as `child_recycled`. Use it on the event loop's
    thread only.

    Args:
        processes: Number of children.
        job_timeout_s: Upper bound of the time of any split.
        child_max_bytes: Limit of a child's private memory. Beyond it, its job fails, and the machine is safe.
    """

    def __init__(self, processes: int, *, job_timeout_s: float, child_max_bytes: int) -> None:
        self._processes = processes
        self._rate = SplitRate(job_timeout_s)
        self._child_max_bytes = child_max_bytes
        self._capacity = Capacity(processes)
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="pool")
        self._children: set[Child] = set()
        self._idle: deque[Child] = deque()

    async def split(self, source: Path, out_dir: Path, params: SplitParams, limits: SplitLimits) -> TimedSplit:
        """Split one recording in the next free child. A cancel kills the child.

        Raises:
            PermanentError, TransientError: From `audio.split.split`, or no child could be started (`no_child`).
            WorkerLostError: The child died (`child_died`), hung (`child_hung`) or ran out of memory (`out_of_memory`).
        """
        async with self._capacity.take(1):
            return await self._split(source, out_dir, params, limits)

    async def split_alone(self, source: Path, out_dir: Path, params: SplitParams, limits: SplitLimits) -> TimedSplit:
        """Split one recording while no other splits run: a retry of a recording that may have lacked memory."""
        async with self._capacity.take(self._processes):
            return await self._split(source, out_dir, params, limits)

    async def ready(self) -> None:
        """Start all children, and wait until they have loaded the model.

        Raises:
            TransientError: A child failed to (`no_child`).
        """
        try:
            await gather_or_cancel(self._warm_up_child() for _ in range(self._processes))
        except ChildLostError as lost:
            _log_lost(lost)
            raise TransientError("no_child", f"a pool process failed to start: {lost}, {lost.__cause__!r}") from lost

    def close(self) -> None:
        """Kill all children. Blocks until they have exited."""
        for child in tuple(self._children):
            child.end()
        self._threads.shutdown()

    async def _split(self, source: Path, out_dir: Path, params: SplitParams, limits: SplitLimits) -> TimedSplit:
        source_bytes = source.stat().st_size
        split = await self._call(self._rate.timeout_s(source_bytes), _split, source, out_dir, params, limits)
        self._rate.add(source_bytes, split.ended_s - split.started_s)
        return split

    async def _call(self, timeout_s: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in a child. If the child is lost before it acknowledges the function, use another one."""
        for _ in range(len(self._idle) + NEW_CHILDREN):
            try:
                async with self._child() as child:
                    return await child.run(timeout_s, function, *args, **kwargs)
            except ChildLostError as lost:
                _log_lost(lost)
                if lost.in_job:
                    raise WorkerLostError(lost.code, _message(lost, timeout_s)) from lost
                await asyncio.sleep(NEW_CHILD_PAUSE_S)
        raise TransientError("no_child", f"{NEW_CHILDREN} new pool processes in a row were lost before the job started")

    @asynccontextmanager
    async def _child(self) -> AsyncIterator[Child]:
        """Lend the child that has been idle longest, or a new one. Afterwards a busy child is ended."""
        while not self._idle:
            # If this task is cancelled, the next one takes the child.
            await finish_despite_cancel(asyncio.to_thread(self._fork))
        child = self._idle.popleft()
        try:
            if not child.idle:
                await child.ready()
            yield child
        finally:
            if child.idle and not child.due_for_replacement:
                self._idle.append(child)
            else:
                await finish_despite_cancel(self._retire(child))

    async def _retire(self, child: Child) -> None:
        if child.idle:
            _log.info("child_recycled", jobs=child.jobs, grown_bytes=child.grown_bytes)
        self._children.discard(child)
        await asyncio.to_thread(child.end)

    async def _warm_up_child(self) -> None:
        async with self._child():
            pass

    def _fork(self) -> None:
        try:
            child = Child(self._child_max_bytes, self._threads)
        except (OSError, EOFError) as error:
            raise ChildLostError("not_started", pid=None, exit_status=None, in_job=False) from error
        self._children.add(child)
        self._idle.append(child)


@asynccontextmanager
async def open_pool(settings: Settings) -> AsyncIterator[Pool]:
    """Start the children, and kill them after the block."""
    pool = Pool(settings.processes, job_timeout_s=settings.job_timeout_s, child_max_bytes=settings.child_max_bytes)
    try:
        await pool.ready()
        yield pool
    finally:
        await asyncio.to_thread(pool.close)


def _log_lost(lost: ChildLostError) -> None:
    _log.error("child_lost", code=lost.code, exit_status=lost.exit_status, pid=lost.pid, in_job=lost.in_job)


def _message(lost: ChildLostError, timeout_s: float) -> str:
    if lost.code == "child_hung":
        return f"the split did not finish within {timeout_s:.0f} s"
    if lost.code == "out_of_memory":
        return f"the split needs more memory than STT_CHILD_MAX_BYTES allows: {lost.__cause__}"
    return f"the process that split this recording ended with exit status {lost.exit_status}"


def _split(source: Path, out_dir: Path, params: SplitParams, limits: SplitLimits) -> TimedSplit:
    """Run in a child."""
    from stt_async.audio.split import split  # noqa: PLC0415 - torch is imported in children alone

    started_s = time.monotonic()
    try:
        result = split(source, out_dir, params, limits)
    except RuntimeError as error:
        if _NO_MEMORY in str(error):
            raise MemoryError(str(error)) from error
        raise
    return TimedSplit(result, started_s, time.monotonic())
