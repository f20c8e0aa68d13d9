"""The jobs that run: one task for each message held, from its receive until the message is settled."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from stt_async.concurrency import finish_despite_cancel, gather_or_cancel
from stt_async.errors import ClassifiedError, DependencyError, LeaseLostError, OutageError, TransientError
from stt_async.retry import redelivery_delay_s
from stt_async.services.queue import JobQueue, Message
from stt_async.worker.breaker import Breaker
from stt_async.worker.lease import Lease, Leases
from stt_async.worker.settlement import End, Outcome, Released, Settlement, decide

_log = structlog.get_logger()

SETTLE_TIMEOUT_S = 8.0
"""For deleting, releasing or dead-lettering a message."""


class Pipeline(Protocol):
    """Runs the job of a message."""

    async def run(self, lease: Lease) -> Outcome:
        """Do the job of the message held, or raise a ClassifiedError."""


@dataclass(slots=True, eq=False)
class RunningJob:
    """A message held, and its job."""

    message: Message
    started_s: float
    """On the monotonic clock."""
    lease: Lease | None = None
    waiting_on: OutageError | None = None
    """The outage that has to end before the job is tried again."""
    release_delay_s: int | None = None
    """Set when the job is cancelled: how long no worker receives its message."""


class RunningJobs:
    """All messages that this worker holds, with their jobs.

    Args:
        queue: Where messages come from and return to.
        leases: Extend the visibility timeouts.
        breaker: Distinguishes an outage from the failure of one job.
        pipeline: Runs a job.
        job_timeout_s: A job that takes longer, waits for outages included, fails as transient.
        outage_delay_s: How long another worker may need to detect an outage. A message released in an outage is hidden
            for up to twice as long; otherwise each worker in turn would spend one of its receives.
    """

    def __init__(
        self,
        *,
        queue: JobQueue,
        leases: Leases,
        breaker: Breaker,
        pipeline: Pipeline,
        job_timeout_s: float,
        outage_delay_s: float,
    ) -> None:
        self._queue = queue
        self._leases = leases
        self._breaker = breaker
        self._pipeline = pipeline
        self._job_timeout_s = job_timeout_s
        self._outage_delay_s = outage_delay_s
        self.running: dict[asyncio.Task[None], RunningJob] = {}
        self.slot_freed = asyncio.Event()
        """Set whenever a job has ended."""
        self.counts: Counter[str] = Counter()
        """Jobs by the event of their log line."""

    @property
    def oldest_started_s(self) -> float | None:
        """When the oldest running job started (monotonic clock)."""
        return min((job.started_s for job in self.running.values()), default=None)

    async def start(self, messages: Sequence[Message]) -> None:
        """Start the jobs of messages just received. In an outage only those on their last receive start."""
        unstarted = [message for message in messages if self._breaker.outage and not self._is_last(message)]
        for message in messages:
            if message not in unstarted:
                self._start(message)
        await self.release_unstarted(unstarted, delay_s=self._draw_outage_delay_s())

    async def release_unstarted(self, messages: Sequence[Message], *, delay_s: int = 0) -> None:
        """Release messages whose jobs have not started."""
        await gather_or_cancel(self._settle(message, Released(delay_s)) for message in messages)

    def cancel(self, task: asyncio.Task[None], *, delay_s: int = 0) -> None:
        """Cancel a running job and release its message."""
        job = self.running[task]
        if job.release_delay_s is None:
            job.release_delay_s = delay_s
            # Not at once: a task that is cancelled before its first step never runs, and its message would stay hidden.
            asyncio.get_running_loop().call_soon(task.cancel)

    def _start(self, message: Message) -> None:
        job = RunningJob(message, time.monotonic())
        task = asyncio.create_task(self._process(job), name=f"job-{message.message_id}")
        self.running[task] = job
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.running.pop(task)
        self.slot_freed.set()

    async def _process(self, job: RunningJob) -> None:
        """Run one job, then settle its message. By then its heartbeat has stopped."""
        end: End | None = None
        _bind(job.message)
        try:
            async with self._leases.hold(job.message) as job.lease:
                end = await self._run_job(job, job.lease)
        except asyncio.CancelledError:
            # With an outcome, the job is done: the cancel came while its lease waited for the last heartbeat.
            await finish_despite_cancel(self._settle(job.message, end or _cancelled(job), job.started_s))
            raise
        except (ClassifiedError, LeaseLostError) as error:
            end = error
        await finish_despite_cancel(self._settle(job.message, end, job.started_s))

    async def _run_job(self, job: RunningJob, lease: Lease) -> Outcome:
        """Run the job once. On its last receive, run it again after each outage that it meets.

        Raises:
            OutageError: a service is out, and the message has a receive left.
            ClassifiedError: the job itself failed.
            LeaseLostError: the message is lost.
        """
        limit = asyncio.timeout(self._job_timeout_s)
        try:
            async with limit:
                while True:
                    try:
                        return await self._pipeline.run(lease)
                    except (DependencyError, TransientError) as error:  # either may be an outage: a probe decides
                        outage = await self._confirm_outage(error)
                    self._cancel_jobs_before_fetch()
                    await self._wait_out(job, outage)
        except (ClassifiedError, LeaseLostError):
            raise
        except Exception as error:  # the boundary of a job: a bug costs this job only, and its traceback is logged
            if limit.expired():
                why = "" if job.waiting_on is None else f"; at the end it waited for an outage: {job.waiting_on}"
                reason = f"the job took longer than {self._job_timeout_s:.0f} s{why}"
                raise TransientError("job_timeout", reason) from error
            _log.exception("job_crashed")
            raise TransientError("crashed", f"{type(error).__name__}: {error}") from error

    async def _confirm_outage(self, error: DependencyError | TransientError) -> OutageError:
        """Return the failure as an outage, if a probe finds a service out of order.

        Raises:
            TransientError: all services are in order; only this job fails.
        """
        if await self._breaker.confirms(error):
            return OutageError(error.code, error.message)
        raise TransientError(error.code, f"{error.message} (a probe found all services in order)") from error

    async def _wait_out(self, job: RunningJob, outage: OutageError) -> None:
        """Wait for the end of an outage, if the message has no receive left for another attempt.

        Raises:
            OutageError: it has one.
        """
        if not self._is_last(job.message):
            raise outage
        job.waiting_on = outage
        _log.warning("job_suspended", code=outage.code, error=outage.message)
        await self._breaker.closed.wait()
        job.waiting_on = None

    def _cancel_jobs_before_fetch(self) -> None:
        """Release the other jobs that would only wait for the same outage.

        Keep jobs whose recording is downloaded; they may hold hours of work. Keep last receives, too.
        """
        for task, job in self.running.items():
            fetched = job.lease is not None and job.lease.fetched
            if task is not asyncio.current_task() and not fetched and not self._is_last(job.message):
                self.cancel(task, delay_s=self._draw_outage_delay_s())

    async def _settle(self, message: Message, end: End, started_s: float | None = None) -> None:
        """Decide what happens to a message, log it, and do it.

        When the call fails, the message returns after its visibility timeout: nothing is lost. After the last receive
        SQS redrives it without a reason, even if the job is done.
        """
        _bind(message)
        settlement = decide(
            end,
            receive_count=message.receive_count,
            max_receive_count=self._queue.max_receive_count,
            retry_delay_s=redelivery_delay_s(message.receive_count),
            outage_delay_s=self._draw_outage_delay_s(),
        )
        self.counts[settlement.event] += 1
        seconds = {} if started_s is None else {"seconds": round(time.monotonic() - started_s, 3)}
        _log.info(settlement.event, **seconds, **settlement.facts)
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                await self._execute(message, settlement)
        except (ClassifiedError, LeaseLostError, TimeoutError) as error:
            _log.warning("message_unsettled", error=str(error) or type(error).__name__)

    async def _execute(self, message: Message, settlement: Settlement) -> None:
        match settlement.action:
            case "delete":
                await self._queue.delete(message)
            case "release":
                await self._queue.release(message, after_s=settlement.delay_s)
            case "dead_letter" if settlement.reason is not None:
                await self._queue.dead_letter(message, settlement.reason)

    def _is_last(self, message: Message) -> bool:
        """Return whether this is its last receive: next, SQS would redrive it."""
        return message.receive_count >= self._queue.max_receive_count

    def _draw_outage_delay_s(self) -> int:
        return 1 + int(self._outage_delay_s * random.uniform(1, 2))  # noqa: S311 - jitter, not a secret


def _cancelled(job: RunningJob) -> End:
    """Return how a cancelled job ended. A lost lease comes first: the message may be another worker's."""
    if job.lease is not None and job.lease.lost is not None:
        return LeaseLostError(job.lease.lost)
    return job.waiting_on or Released(job.release_delay_s or 0)


def _bind(message: Message) -> None:
    """Name a message in all log lines of this task."""
    structlog.contextvars.bind_contextvars(
        message_id=message.message_id, receive_count=message.receive_count, queue_wait_s=message.queue_wait_s
    )
