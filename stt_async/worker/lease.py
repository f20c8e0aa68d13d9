"""A message held: its heartbeat, and what happens when it is lost."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from stt_async.concurrency import finish_despite_cancel
from stt_async.errors import ClassifiedError, LeaseLostError
from stt_async.services.queue import BATCH, JobQueue, Message, is_lost
from stt_async.worker.lag import LagMeter

_log = structlog.get_logger()

HEARTBEAT_TIMEOUT_S = 5.0
"""Of one call, or a tenth of the visibility timeout if that is less: one that hangs must not outlive the lease. A beat
that fails is sent again on the next tick, for as long as the lease lives."""


@dataclass(slots=True, eq=False)
class Lease:
    """One message that is ours until `expires_s` (monotonic clock)."""

    message: Message
    task: asyncio.Task[object]
    expires_s: float
    due_s: float
    margin_s: float
    lost: str | None = None
    fetched: bool = False
    """Whether the recording is here, so that a refusal of the source does not concern the job any more."""

    def require(self) -> None:
        """Make sure that the message is still ours, before what cannot be taken back.

        Raises:
            LeaseLostError: it is lost, or may be by the time that this is done.
        """
        if self.lost is None and self.expires_s - time.monotonic() < self.margin_s:
            self.lost = "too little of its visibility timeout is left"
        if self.lost is not None:
            raise LeaseLostError(self.lost)

    def lose(self, why: str) -> None:
        """The message is no longer ours: cancel its job."""
        self.lost = why
        self.task.cancel()


class Leases:
    """All messages held by this worker, and the one ticker that extends them, in batches.

    Args:
        queue: The queue, on a client of its own, so that no upload or poll delays a heartbeat.
        visibility_timeout_s: What each heartbeat sets (ChangeMessageVisibility sets, it does not add). A message is
            extended after a third of it, called late when that is a tenth overdue, and given up for lost when less than
            a tenth is left.
    """

    def __init__(self, queue: JobQueue, visibility_timeout_s: int) -> None:
        self._queue = queue
        self._visibility_timeout_s = visibility_timeout_s
        self._interval_s = visibility_timeout_s / 3
        self._tick_s = min(1.0, visibility_timeout_s / 30)
        self._margin_s = visibility_timeout_s / 10
        self._held: set[Lease] = set()
        self._lateness = LagMeter(self._margin_s)
        self._beating = asyncio.Lock()
        self.ticked_s = time.monotonic()
        """When the ticker last ticked (monotonic clock)."""

    @asynccontextmanager
    async def hold(self, message: Message) -> AsyncIterator[Lease]:
        """Keep a message ours until the block ends; after it no heartbeat of this message is under way.

        Raises:
            LeaseLostError: the message was lost meanwhile, and the block was cancelled for it.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        lease = Lease(
            message,
            task,
            expires_s=message.received_at_s + self._visibility_timeout_s,
            due_s=message.received_at_s + self._interval_s,
            margin_s=self._margin_s,
        )
        self._held.add(lease)
        try:
            yield lease
        except (asyncio.CancelledError, ClassifiedError) as error:
            # A lost lease takes precedence over a ClassifiedError, which the clean-up may raise.
            if lease.lost is not None and task.uncancel() == 0:
                raise LeaseLostError(lease.lost) from error
            raise
        finally:
            self._held.discard(lease)
            await finish_despite_cancel(self._wait_for_beat())

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            await asyncio.sleep(self._tick_s)
            self.ticked_s = now_s = time.monotonic()
            for lease in self._held:
                if lease.lost is None and now_s >= lease.expires_s:
                    # SQS is not asked: it may take an old receipt handle, while another worker has the message.
                    lease.lose("its visibility timeout is over")
            due = [lease for lease in self._held if lease.lost is None and now_s >= lease.due_s]
            late_s = max((now_s - lease.due_s for lease in due), default=0.0)
            if (max_s := self._lateness.note(late_s, now_s)) is not None:
                _log.warning("heartbeat_late", max_s=round(max_s, 3), messages=len(due))
            for start in range(0, len(due), BATCH):
                async with self._beating:
                    await self._beat([lease for lease in due[start : start + BATCH] if lease in self._held])

    async def _wait_for_beat(self) -> None:
        async with self._beating:
            return

    async def _beat(self, leases: Sequence[Lease]) -> None:
        if not leases:
            return
        asked_s = time.monotonic()
        try:
            async with asyncio.timeout(min(HEARTBEAT_TIMEOUT_S, self._margin_s)):
                failed = await self._queue.extend([lease.message for lease in leases], self._visibility_timeout_s)
        except (ClassifiedError, TimeoutError) as error:
            _log.warning("heartbeat_failed", messages=len(leases), error=str(error) or type(error).__name__)
            failed = {lease.message.receipt_handle: "unreachable" for lease in leases}
        for lease in self._held.intersection(leases):
            # Of those that ended meanwhile nothing is to be learnt: their jobs are over.
            self._settle(lease, failed.get(lease.message.receipt_handle), asked_s)

    def _settle(self, lease: Lease, code: str | None, asked_s: float) -> None:
        if code is None:
            lease.expires_s = asked_s + self._visibility_timeout_s
            lease.due_s = asked_s + self._interval_s
        elif is_lost(code):
            lease.lose(f"SQS says {code}")
        elif time.monotonic() > lease.expires_s - self._margin_s:
            lease.lose(f"no heartbeat came through before the visibility timeout ({code})")
