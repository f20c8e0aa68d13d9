"""Deliveries: one receive of a message each. What becomes of it is decided here and nowhere else."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from stt_async.concurrency import finish_despite_cancel, gather_or_cancel
from stt_async.errors import (
    ClassifiedError,
    DependencyError,
    LeaseLostError,
    OutageError,
    PermanentError,
    TransientError,
)
from stt_async.retry import redelivery_delay_s
from stt_async.services.queue import JobQueue, Message
from stt_async.worker.breaker import Breaker
from stt_async.worker.lease import Lease, Leases
from stt_async.worker.pipeline import Outcome

_log = structlog.get_logger()

SETTLE_TIMEOUT_S = 8.0
"""Of deleting a message or giving it back."""


class Pipeline(Protocol):
    """What is done with a message."""

    async def run(self, lease: Lease) -> Outcome:
        """Do the job of the message held, or raise a ClassifiedError."""


@dataclass(slots=True, eq=False)
class Delivery:
    """A message held, with its job under way."""

    message: Message
    started_s: float
    lease: Lease | None = None
    waits_for: OutageError | None = None
    """The outage that has to end before its job is tried again."""
    given_up: bool = False
    rest_s: int = 0
    """Given up, its message may be received again after so long."""


class Deliveries:
    """The messages that this worker holds, each seen through to its end.

    Args:
        queue: Where messages come from, and go back to.
        leases: Keeps them ours.
        breaker: Tells an outage from the trouble of one job.
        pipeline: What to do with a message.
        job_timeout_s: A job that takes longer is retried.
        outage_rest_s: How long another worker may need to find out about an outage by itself. What is given back in one
            rests for longer (up to twice that), or the others would spend its receives, one after the other.
    """

    def __init__(
        self,
        *,
        queue: JobQueue,
        leases: Leases,
        breaker: Breaker,
        pipeline: Pipeline,
        job_timeout_s: float,
        outage_rest_s: float,
    ) -> None:
        self._queue = queue
        self._leases = leases
        self._breaker = breaker
        self._pipeline = pipeline
        self._job_timeout_s = job_timeout_s
        self._outage_rest_s = outage_rest_s
        self.under_way: dict[asyncio.Task[None], Delivery] = {}
        self.one_ended = asyncio.Event()
        """Set whenever a delivery has ended."""
        self.tally: Counter[str] = Counter()
        """Jobs by how they ended: the events of their log lines."""

    @property
    def oldest_s(self) -> float | None:
        """When the oldest of the running jobs started (monotonic clock)."""
        return min((delivery.started_s for delivery in self.under_way.values()), default=None)

    async def take(self, messages: Sequence[Message]) -> None:
        """Begin the jobs of messages just received. In an outage give back those that have another receive left."""
        spared = [message for message in messages if self._breaker.outage and not self._is_last(message)]
        for message in messages:
            if message not in spared:
                self._start(message)
        await self.give_back(spared, rest_s=self._rest_s())

    async def give_back(self, messages: Sequence[Message], *, rest_s: int = 0) -> None:
        """Give messages back whose jobs have not begun, or do not run any more."""
        await gather_or_cancel(self._release(message, rest_s) for message in messages)

    def give_up(self, task: asyncio.Task[None], *, rest_s: int = 0) -> None:
        """Cancel a job under way, and give its message back."""
        delivery = self.under_way[task]
        if not delivery.given_up:
            delivery.given_up, delivery.rest_s = True, rest_s
            # Not at once: a task that is cancelled before its first step never runs, and its message would stay hidden.
            asyncio.get_running_loop().call_soon(task.cancel)

    def _start(self, message: Message) -> None:
        delivery = Delivery(message, time.monotonic())
        task = asyncio.create_task(self._see_through(delivery), name=f"job-{message.message_id}")
        self.under_way[task] = delivery
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.under_way.pop(task)
        self.one_ended.set()

    async def _see_through(self, delivery: Delivery) -> None:
        """Do one job, then settle its message. By then its heartbeat has stopped."""
        message, outcome = delivery.message, None
        _bind(message)
        try:
            async with self._leases.hold(message) as delivery.lease:
                outcome = await self._do(delivery, delivery.lease)
        except LeaseLostError as error:
            self._tell("job_lease_lost", error=str(error))
        except asyncio.CancelledError:
            # Done already, it only waited for the end of its last heartbeat.
            await finish_despite_cancel(self._conclude(delivery, outcome) if outcome else self._part_with(delivery))
            raise
        except ClassifiedError as error:
            await finish_despite_cancel(self._fail(message, error))
        else:
            await finish_despite_cancel(self._conclude(delivery, outcome))

    async def _do(self, delivery: Delivery, lease: Lease) -> Outcome:
        """Run the job: once, but on its last receive as often as an outage is what it fails by.

        Raises:
            OutageError: another receive is left to wait it out.
            ClassifiedError: the job's own failure.
        """
        limit = asyncio.timeout(self._job_timeout_s)
        try:
            async with limit:
                while True:
                    try:
                        return await self._pipeline.run(lease)
                    except (DependencyError, TransientError) as error:
                        outage = await self._outage_behind(error)
                        if not self._is_last(delivery.message):
                            raise outage from error
                        delivery.waits_for = outage
                    _log.warning("job_waits", code=delivery.waits_for.code, error=delivery.waits_for.message)
                    await self._breaker.closed.wait()
                    delivery.waits_for, lease.fetched = None, False
        except (ClassifiedError, LeaseLostError):
            raise
        except Exception as error:  # the outermost: a bug costs its own job alone, and is told with its traceback
            if limit.expired():
                why = "" if delivery.waits_for is None else f"; at last it waited for an outage: {delivery.waits_for}"
                raise TransientError(
                    "job_timeout", f"the job took longer than {self._job_timeout_s:.0f} s{why}"
                ) from error
            _log.exception("job_crashed")
            raise TransientError("crashed", f"{type(error).__name__}: {error}") from error

    async def _outage_behind(self, error: DependencyError | TransientError) -> OutageError:
        """Find out whether a failure is not of this job alone; if so, let go of those that only wait for the same.

        Raises:
            TransientError: everything is in order but for this job.
        """
        if not await self._breaker.confirms(error):
            raise TransientError(error.code, f"{error.message} (a probe found all services in order)") from error
        for task, delivery in self.under_way.items():
            # Whose recording is here goes on: hours of work may be in it, and the outage be over when it is done.
            fetched = delivery.lease is not None and delivery.lease.fetched
            if task is not asyncio.current_task() and not fetched and not self._is_last(delivery.message):
                self.give_up(task, rest_s=self._rest_s())
        return OutageError(error.code, error.message)

    async def _conclude(self, delivery: Delivery, outcome: Outcome) -> None:
        """Delete the message of a job that is done."""
        self._tell(outcome.event, seconds=round(time.monotonic() - delivery.started_s, 3), **outcome.facts)
        await self._settle(self._queue.delete(delivery.message))

    async def _fail(self, message: Message, error: ClassifiedError) -> None:
        """Dead-letter what will never work, and what was tried for the last time; let the rest come again later."""
        facts = {"failure": error.failure, "code": error.code, "error": error.message}
        if isinstance(error, PermanentError) or self._is_last(message):
            self._tell("job_failed", **facts)
            await self._settle(self._queue.dead_letter(message, error))
        else:
            after_s = self._rest_s() if isinstance(error, OutageError) else redelivery_delay_s(message.receive_count)
            self._tell("job_retried", after_s=after_s, **facts)
            await self._settle(self._queue.release(message, after_s=after_s))

    async def _part_with(self, delivery: Delivery) -> None:
        """Settle the message of a job that was cancelled."""
        if delivery.lease is not None and delivery.lease.lost is not None:
            self._tell("job_lease_lost", error=delivery.lease.lost)
        elif delivery.waits_for is not None:
            await self._fail(delivery.message, delivery.waits_for)
        else:
            await self._release(delivery.message, delivery.rest_s)

    async def _release(self, message: Message, rest_s: int) -> None:
        """Give a message back; on its last receive SQS would redrive it without a word, so we do, with one."""
        _bind(message)
        if self._is_last(message):
            await self._fail(message, TransientError("stopped", "its worker stopped before it was done"))
            return
        self._tell("job_released", after_s=rest_s)
        await self._settle(self._queue.release(message, after_s=rest_s))

    async def _settle(self, call: Coroutine[Any, Any, None]) -> None:
        """Delete or give back a message. When that fails it comes back by its visibility timeout: nothing is lost."""
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                await call
        except (ClassifiedError, LeaseLostError, TimeoutError) as error:
            _log.warning("message_unsettled", error=str(error) or type(error).__name__)

    def _is_last(self, message: Message) -> bool:
        """Whether SQS redrives the message instead of delivering it once more."""
        return message.receive_count >= self._queue.max_receive_count

    def _rest_s(self) -> int:
        return 1 + int(self._outage_rest_s * random.uniform(1, 2))  # noqa: S311 - jitter, not a secret

    def _tell(self, event: str, **facts: Any) -> None:
        self.tally[event] += 1
        _log.info(event, **facts)


def _bind(message: Message) -> None:
    """Name a message in all log lines of this task."""
    structlog.contextvars.bind_contextvars(
        message_id=message.message_id, receive_count=message.receive_count, queue_wait_s=message.queue_wait_s
    )
