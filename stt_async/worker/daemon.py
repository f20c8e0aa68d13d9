"""The daemon: free slots, receive, running jobs, drain. What becomes of a message is decided here and nowhere else."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from stt_async.errors import DependencyError, JobError, LeaseLostError, PermanentError, TransientError
from stt_async.retry import redelivery_delay_s
from stt_async.services.queue import JobQueue, Message
from stt_async.tasks import first_of, to_the_end, together
from stt_async.worker.breaker import Breaker
from stt_async.worker.lease import Lease, Leases
from stt_async.worker.pipeline import Outcome
from stt_async.worker.stop import Stop

_log = structlog.get_logger()

SETTLE_TIMEOUT_S = 8.0
"""Of deleting a message or giving it back."""

AFTER_FAILED_RECEIVE_S = 2.0
LOOK_INTERVAL_S = 1.0
TICK_S = 5.0
"""Longest wait of the daemon's own loop without a sign that it is alive."""

EMPTY_TWICE = 2


class Pipeline(Protocol):
    """What the daemon does with a message."""

    async def run(self, lease: Lease) -> Outcome:
        """Do the job of the message held, or raise a JobError."""


@dataclass(frozen=True, slots=True)
class Running:
    """A job under way."""

    message: Message
    started_s: float


def _unknown(body: str) -> float | None:
    del body
    return None


async def _stay(empty_s: float) -> None:
    del empty_s


class Daemon:
    """Takes jobs from the queue into free slots, and sees each through to the end of its message.

    Args:
        queue: Where messages come from.
        leases: Keeps the held ones ours; its ticker and the breaker's are run by the caller, beside this.
        breaker: While it is open, nothing is received.
        pipeline: What to do with a message.
        stop: Why and until when to stop.
        slots: Jobs held at once.
        wait_time_s: Long poll.
        visibility_timeout_s: Of what is received.
        job_timeout_s: A job that takes longer is retried.
        seconds_needed: How long the job of a message body takes from its receive to its end; None: unknown.
        when_empty: Called between two polls, with nothing held: for so many seconds of polling no message has come.
    """

    def __init__(
        self,
        *,
        queue: JobQueue,
        leases: Leases,
        breaker: Breaker,
        pipeline: Pipeline,
        stop: Stop,
        slots: int,
        wait_time_s: int,
        visibility_timeout_s: int,
        job_timeout_s: float,
        seconds_needed: Callable[[str], float | None] = _unknown,
        when_empty: Callable[[float], Awaitable[None]] = _stay,
    ) -> None:
        self._queue = queue
        self._leases = leases
        self._breaker = breaker
        self._pipeline = pipeline
        self._stop = stop
        self._slots = slots
        self._wait_time_s = wait_time_s
        self._visibility_timeout_s = visibility_timeout_s
        self._job_timeout_s = job_timeout_s
        self._seconds_needed = seconds_needed
        self._when_empty = when_empty
        self._empty_s = 0.0
        self._running: dict[asyncio.Task[None], Running] = {}
        self._slot_freed = asyncio.Event()
        self.ticked_s = time.monotonic()
        """When the loop of this daemon last showed that it is alive (monotonic clock)."""
        self.tally: Counter[str] = Counter()
        """Jobs by how they ended: the events of their log lines."""

    async def run(self) -> None:
        """Work until asked to stop, then drain: nothing is received, what can finish does, the rest is released."""
        _log.info("worker_started", slots=self._slots, queue=self._queue.url)
        try:
            while free := await self._free_slots():
                await self._receive(free)
        except asyncio.CancelledError:
            self._stop.request("cancelled", within_s=0)
            raise
        finally:
            await to_the_end(self._drain())
            _log.info("worker_stopped", **self.tally)

    async def triage(self) -> None:
        """Once asked to stop, release at once what cannot be done by the deadline; run beside `run`, until cancelled.

        What is not known to take too long may try, and is released at the deadline.
        """
        await self._stop.wait()
        released: set[asyncio.Task[None]] = set()
        while True:
            for task, job in self._running.items():
                if task not in released and self._is_hopeless(job):
                    released.add(task)
                    task.cancel()
            await asyncio.sleep(LOOK_INTERVAL_S)

    def _is_hopeless(self, job: Running) -> bool:
        needed_s = self._seconds_needed(job.message.body)
        if needed_s is None or self._stop.signal is None:
            return False
        return job.started_s + needed_s > self._stop.signal.deadline_s

    @property
    def oldest_job_s(self) -> float | None:
        """When the oldest of the running jobs started (monotonic clock)."""
        return min((job.started_s for job in self._running.values()), default=None)

    @property
    def held(self) -> int:
        """Jobs under way."""
        return len(self._running)

    async def _free_slots(self) -> int:
        """Wait for a free slot behind a closed breaker, and return how many are free; 0 once asked to stop."""
        while not self._stop.requested:
            self.ticked_s = time.monotonic()
            free = self._slots - len(self._running)
            if free and self._breaker.closed.is_set():
                return free
            self._slot_freed.clear()
            changed = self._breaker.closed if free else self._slot_freed
            await first_of(changed.wait(), self._stop.wait(), asyncio.sleep(TICK_S))
        return 0

    async def _receive(self, free: int) -> None:
        asked_s, busy = time.monotonic(), bool(self._running)
        poll = asyncio.create_task(
            self._queue.receive(
                most=free, wait_time_s=self._wait_time_s, visibility_timeout_s=self._visibility_timeout_s
            )
        )
        try:
            # A poll under way is left to end: what SQS has handed out by then would be hidden until its timeout.
            await first_of(asyncio.wait({poll}), self._stop.wait_deadline())
        finally:
            poll.cancel()
        await asyncio.wait({poll})
        if poll.cancelled():
            return
        try:
            messages = poll.result()
        except JobError as error:
            self._empty_s = 0.0
            _log.warning("receive_failed", code=error.code, error=error.message)
            if isinstance(error, DependencyError):
                self._breaker.trip(error)
            await self._stop.sleep(AFTER_FAILED_RECEIVE_S)
            return
        if self._stop.requested:
            await together(self._release(message) for message in messages)
        elif messages or busy:
            self._empty_s = 0.0
            for message in messages:
                self._start(message)
        else:
            self._empty_s += time.monotonic() - asked_s
            await self._when_empty(self._empty_s)

    def _start(self, message: Message) -> None:
        task = asyncio.create_task(self._see_through(message), name=f"job-{message.message_id}")
        self._running[task] = Running(message, time.monotonic())
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task)
        self._slot_freed.set()

    async def _drain(self) -> None:
        if self._running:
            _log.info("worker_draining", jobs=len(self._running))
            deadline = asyncio.create_task(self._stop.wait_deadline())
            while self._running and not deadline.done():
                self.ticked_s = time.monotonic()
                await first_of(asyncio.wait(list(self._running)), asyncio.wait({deadline}), asyncio.sleep(TICK_S))
            deadline.cancel()
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(list(self._running))

    async def _see_through(self, message: Message) -> None:
        """Do one job, then settle its message. By then its heartbeat has stopped."""
        structlog.contextvars.bind_contextvars(message_id=message.message_id, receive_count=message.receive_count)
        started_s = time.monotonic()
        try:
            async with self._leases.hold(message) as lease:
                outcome = await self._do(lease)
        except LeaseLostError as error:
            self._tell("job_lease_lost", error=str(error))
        except asyncio.CancelledError:
            await to_the_end(self._release(message))
            raise
        except JobError as error:
            await to_the_end(self._fail(message, error))
        else:
            self._tell(outcome.event, seconds=round(time.monotonic() - started_s, 3), **outcome.facts)
            await to_the_end(self._settle(self._queue.delete(message)))

    async def _do(self, lease: Lease) -> Outcome:
        limit = asyncio.timeout(self._job_timeout_s)
        try:
            async with limit:
                return await self._pipeline.run(lease)
        except (JobError, LeaseLostError):
            raise
        except Exception as error:  # the outermost: a bug costs its own job alone, and is told with its traceback
            if limit.expired():
                raise TransientError("job_timeout", f"the job took longer than {self._job_timeout_s:.0f} s") from error
            _log.exception("job_crashed")
            raise TransientError("crashed", f"{type(error).__name__}: {error}") from error

    async def _fail(self, message: Message, error: JobError) -> None:
        """Dead-letter what will never work, and what was tried for the last time; let the rest come again later."""
        facts = {"failure": error.failure, "code": error.code, "error": error.message}
        if isinstance(error, DependencyError):
            self._breaker.trip(error)
        if isinstance(error, PermanentError) or message.receive_count >= self._queue.max_receive_count:
            self._tell("job_failed", **facts)
            await self._settle(self._queue.dead_letter(message, error))
        else:
            after_s = redelivery_delay_s(message.receive_count)
            self._tell("job_retried", after_s=after_s, **facts)
            await self._settle(self._queue.release(message, after_s=after_s))

    async def _release(self, message: Message) -> None:
        self._tell("job_released", message_id=message.message_id)
        await self._settle(self._queue.release(message, after_s=0))

    async def _settle(self, call: Coroutine[Any, Any, None]) -> None:
        """Delete or give back a message. When that fails it comes back by its visibility timeout: nothing is lost."""
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                await call
        except (JobError, LeaseLostError, TimeoutError) as error:
            _log.warning("message_unsettled", error=str(error) or type(error).__name__)

    def _tell(self, event: str, **facts: Any) -> None:
        self.tally[event] += 1
        _log.info(event, **facts)


async def stop_when_empty(queue: JobQueue, stop: Stop, *, drain_timeout_s: float) -> None:
    """Ask to stop once the queue holds nothing: none waiting, none in flight with anybody, none coming back later.

    SQS's counts are estimates, so it must say so twice in a row. A queue that does not answer says nothing.
    """
    empty = 0
    while empty < EMPTY_TWICE:
        await stop.sleep(LOOK_INTERVAL_S)
        if stop.requested:
            return
        try:
            empty = empty + 1 if (await queue.depth()).empty else 0
        except JobError as error:
            empty = 0
            _log.warning("depth_unknown", code=error.code, error=error.message)
    stop.request("queue_empty", within_s=drain_timeout_s)
