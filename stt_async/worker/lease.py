"""Leases: the messages that this worker holds, their heartbeats, and the loss of a lease."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from stt_async.concurrency import finish_despite_cancel
from stt_async.errors import ClassifiedError, LeaseLostError
from stt_async.services.queue import BATCH, JobQueue, Message, is_lost
from stt_async.worker.lag import LagMeter

_log = structlog.get_logger()

HEARTBEAT_TIMEOUT_S = 5.0
"""For one call, or a tenth of the visibility timeout if that is shorter: a hanging call must not outlast the lease. A
failed heartbeat is sent again on the next tick while the lease lasts."""


def _unknown() -> None:
    return None


@dataclass(slots=True, eq=False)
class Lease:
    """One message, held until `expires_s` (monotonic clock)."""

    message: Message
    task: asyncio.Task[object]
    expires_s: float
    due_s: float
    margin_s: float
    lost: str | None = None
    """The reason if the message is lost; None: it is held."""
    fetched: bool = False
    """Set by the pipeline: the recording is downloaded, so an outage of the source does not affect the job."""
    seconds_needed: Callable[[], float | None] = _unknown
    """Set by the pipeline: the current estimate of the job's time from its receive to its end; None: unknown."""

    def require_held(self) -> None:
        """Check that the message is still held, before a step that cannot be undone.

        Raises:
            LeaseLostError: the message is lost, or may be lost before the step is done.
        """
        if self.lost is None and self.expires_s - time.monotonic() < self.margin_s:
            self.lost = "too little of its visibility timeout is left"
        if self.lost is not None:
            raise LeaseLostError(self.lost)

    def lose(self, reason: str) -> None:
        """Mark the message as lost and cancel its job."""
        self.lost = reason
        self.task.cancel()


class Leases:
    """All messages that this worker holds, and the ticker that extends them in batches.

    Args:
        queue: The queue, on a separate client, so that no upload or poll delays a heartbeat.
        visibility_timeout_s: What each heartbeat sets (ChangeMessageVisibility sets, it does not add). A heartbeat is
            due after a third of it and late when overdue by a tenth. With less than a tenth left the message is lost.
    """

    def __init__(self, queue: JobQueue, visibility_timeout_s: int) -> None:
        self._queue = queue
        self._visibility_timeout_s = visibility_timeout_s
        self._interval_s = visibility_timeout_s / 3
        self._tick_s = min(1.0, visibility_timeout_s / 30)
        self._margin_s = visibility_timeout_s / 10
        self._held: set[Lease] = set()
        self._lateness = LagMeter(self._margin_s)
        self._heartbeat_lock = asyncio.Lock()
        self.ticked_s = time.monotonic()
        """When the ticker last ticked (monotonic clock)."""

    @asynccontextmanager
    async def hold(self, message: Message) -> AsyncIterator[Lease]:
        """Extend a message until the block ends. After the block no heartbeat of the message is in flight.

        Raises:
            LeaseLostError: the message was lost, which cancelled the block.
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
            await finish_despite_cancel(self._wait_for_heartbeat())

    async def run(self) -> None:
        """Send heartbeats until cancelled."""
        while True:
            await asyncio.sleep(self._tick_s)
            self.ticked_s = now_s = time.monotonic()
            for lease in self._held:
                if lease.lost is None and now_s >= lease.expires_s:
                    # No heartbeat: SQS may accept an old receipt handle while another worker holds the message.
                    lease.lose("its visibility timeout is over")
            due = [lease for lease in self._held if lease.lost is None and now_s >= lease.due_s]
            late_s = max((now_s - lease.due_s for lease in due), default=0.0)
            if (max_s := self._lateness.add(late_s, now_s)) is not None:
                _log.warning("heartbeat_late", max_s=round(max_s, 3), messages=len(due))
            for start in range(0, len(due), BATCH):
                async with self._heartbeat_lock:
                    await self._send_heartbeat([lease for lease in due[start : start + BATCH] if lease in self._held])

    async def _wait_for_heartbeat(self) -> None:
        async with self._heartbeat_lock:
            return

    async def _send_heartbeat(self, leases: Sequence[Lease]) -> None:
        if not leases:
            return
        sent_s = time.monotonic()
        try:
            async with asyncio.timeout(min(HEARTBEAT_TIMEOUT_S, self._margin_s)):
                failed = await self._queue.extend([lease.message for lease in leases], self._visibility_timeout_s)
        except (ClassifiedError, TimeoutError) as error:
            _log.warning("heartbeat_failed", messages=len(leases), error=str(error) or type(error).__name__)
            failed = {lease.message.receipt_handle: "unreachable" for lease in leases}
        for lease in self._held.intersection(leases):
            self._apply_result(lease, failed.get(lease.message.receipt_handle), sent_s)

    def _apply_result(self, lease: Lease, code: str | None, sent_s: float) -> None:
        if code is None:
            lease.expires_s = sent_s + self._visibility_timeout_s
            lease.due_s = sent_s + self._interval_s
        elif is_lost(code):
            lease.lose(f"SQS answered {code}")
        elif time.monotonic() > lease.expires_s - self._margin_s:
            lease.lose(f"no heartbeat succeeded before the visibility timeout ({code})")
