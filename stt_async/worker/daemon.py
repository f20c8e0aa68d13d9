"""The daemon: free slots, receive, drain. `running_jobs` owns each message from its receive on."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from stt_async.concurrency import finish_despite_cancel, first_of
from stt_async.errors import ClassifiedError, DependencyError
from stt_async.services.queue import JobQueue
from stt_async.worker.breaker import Breaker
from stt_async.worker.running_jobs import RunningJob, RunningJobs
from stt_async.worker.stop import Stop

_log = structlog.get_logger()

AFTER_FAILED_RECEIVE_S = 2.0
CHECK_INTERVAL_S = 1.0
TICK_S = 5.0
"""Longest wait of the daemon's loop between two updates of `ticked_s`, which the watchdog reads."""

EMPTY_COUNTS = 2
"""SQS's counts are estimates, so as many in a row must be zero."""


class Daemon:
    """Receives messages into free slots, starts their jobs, and drains when asked to stop.

    Args:
        queue: Where messages come from.
        jobs: Runs the jobs and settles their messages.
        breaker: While it is open, nothing is received. The caller runs its probes beside the daemon.
        stop: The request to stop.
        slots: Jobs held at once.
        wait_time_s: Duration of a long poll.
        visibility_timeout_s: Of received messages.
        when_idle: Called between two polls while no job is held, with the seconds of polling without a message.
    """

    def __init__(
        self,
        *,
        queue: JobQueue,
        jobs: RunningJobs,
        breaker: Breaker,
        stop: Stop,
        slots: int,
        wait_time_s: int,
        visibility_timeout_s: int,
        when_idle: Callable[[float], Awaitable[None]],
    ) -> None:
        self._queue = queue
        self._jobs = jobs
        self._breaker = breaker
        self._stop = stop
        self._slots = slots
        self._wait_time_s = wait_time_s
        self._visibility_timeout_s = visibility_timeout_s
        self._when_idle = when_idle
        self._idle_s = 0.0
        self.ticked_s = time.monotonic()
        """When the loop of the daemon last made progress (monotonic clock)."""

    async def run(self) -> None:
        """Work until asked to stop, then drain: receive nothing, finish what can be finished, release the rest."""
        _log.info("worker_started", slots=self._slots, queue=self._queue.url)
        try:
            while free := await self._free_slots():
                await self._receive(free)
        except asyncio.CancelledError:
            self._stop.request("cancelled", within_s=0)
            raise
        finally:
            await finish_despite_cancel(self._drain())
            _log.info("worker_stopped", **self._jobs.counts)

    async def release_unfinishable(self) -> None:
        """Once asked to stop, release jobs that cannot end by the deadline. Run beside `run`, until cancelled.

        A job without an estimate continues, and is released at the deadline.
        """
        await self._stop.wait()
        while True:
            for task, job in self._jobs.running.items():
                if self._is_unfinishable(job):
                    self._jobs.cancel(task)
            await asyncio.sleep(CHECK_INTERVAL_S)

    def _is_unfinishable(self, job: RunningJob) -> bool:
        if job.waiting_on is not None:
            return True
        needed_s = None if job.lease is None else job.lease.seconds_needed()
        if needed_s is None or self._stop.signal is None:
            return False
        return job.started_s + needed_s > self._stop.signal.deadline_s

    async def _free_slots(self) -> int:
        """Wait until a slot is free and the breaker closed; return the number of free slots; 0: stop."""
        while not self._stop.requested:
            self.ticked_s = time.monotonic()
            free = self._slots - len(self._jobs.running)
            if free and self._breaker.closed.is_set():
                return free
            self._jobs.slot_freed.clear()
            changed = self._breaker.closed if free else self._jobs.slot_freed
            await first_of(changed.wait(), self._stop.wait(), asyncio.sleep(TICK_S))
        return 0

    async def _receive(self, free: int) -> None:
        asked_s, busy = time.monotonic(), bool(self._jobs.running)
        poll = asyncio.create_task(
            self._queue.receive(
                most=free, wait_time_s=self._wait_time_s, visibility_timeout_s=self._visibility_timeout_s
            )
        )
        try:
            # Let the poll end: a message that SQS has handed out to a cancelled poll stays hidden until its timeout.
            await first_of(asyncio.wait({poll}), self._stop.wait_deadline())
        finally:
            poll.cancel()
        await asyncio.wait({poll})
        if poll.cancelled():
            return
        try:
            messages = poll.result()
        except ClassifiedError as error:
            self._idle_s = 0.0
            _log.warning("receive_failed", code=error.code, error=error.message)
            if isinstance(error, DependencyError):
                self._breaker.trip(error)
            await self._stop.sleep(AFTER_FAILED_RECEIVE_S)
            return
        if self._stop.requested:
            await self._jobs.release_unstarted(messages)
        elif messages or busy:
            self._idle_s = 0.0
            await self._jobs.start(messages)
        else:
            self._idle_s += time.monotonic() - asked_s
            await self._when_idle(self._idle_s)

    async def _drain(self) -> None:
        running = self._jobs.running
        if running:
            _log.info("worker_draining", jobs=len(running))
            deadline = asyncio.create_task(self._stop.wait_deadline())
            while running and not deadline.done():
                self.ticked_s = time.monotonic()
                await first_of(asyncio.wait(list(running)), asyncio.wait({deadline}), asyncio.sleep(TICK_S))
            deadline.cancel()
        for task in running:
            self._jobs.cancel(task)
        if running:
            await asyncio.wait(list(running))


async def stop_when_empty(queue: JobQueue, stop: Stop, *, drain_timeout_s: float) -> None:
    """Request a stop once the queue holds no message: none visible, none in flight, none delayed."""
    empty = 0
    while empty < EMPTY_COUNTS:
        await stop.sleep(CHECK_INTERVAL_S)
        if stop.requested:
            return
        try:
            empty = empty + 1 if (await queue.depth()).empty else 0
        except ClassifiedError as error:
            empty = 0
            _log.warning("depth_unknown", code=error.code, error=error.message)
    stop.request("queue_empty", within_s=drain_timeout_s)
