"""Interruption notices of this instance, read from its metadata, and the stop that each requests."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import structlog

from stt_async.errors import ClassifiedError
from stt_async.services.imds import Imds, SpotNotice
from stt_async.worker.lifecycle import Lifecycle
from stt_async.worker.stop import Stop

_log = structlog.get_logger()

POLL_INTERVAL_S = 2.0
"""AWS recommends 5 s; a Spot notice leaves 120 s."""

SPOT_NOTICE_S = 120.0
"""EC2 gives two minutes; only a wall clock that is slow shows more.
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html"""

SPOT_MARGIN_S = 20.0
"""Kept for releasing messages, removing files, and the last lines of the log."""


class Interruptions:
    """Polls the metadata service, beside the daemon. A failed poll is logged once and stops nothing.

    Args:
        imds: The metadata service.
        stop: Asked to stop; the earliest deadline counts.
        lifecycle: Notified when the group terminates this instance.
        drain_timeout_s: Deadline for notices without a time.
    """

    def __init__(self, imds: Imds, stop: Stop, lifecycle: Lifecycle, *, drain_timeout_s: float) -> None:
        self._imds = imds
        self._stop = stop
        self._lifecycle = lifecycle
        self._drain_timeout_s = drain_timeout_s
        self._seen: set[object] = set()
        self._failing: set[str] = set()

    async def poll_once(self) -> None:
        """Poll everything once: an instance with a notice takes no job, however often its worker is restarted."""
        async with asyncio.TaskGroup() as group:
            for poll in self._polls():
                group.create_task(self._guarded(poll))

    async def run(self) -> None:
        """Poll until cancelled, each kind of notice in its own task, so that none waits for a slow other."""
        async with asyncio.TaskGroup() as group:
            for poll in self._polls():
                group.create_task(self._repeat(poll))

    def _polls(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        return self._poll_spot, self._poll_rebalance, self._poll_target_state

    async def _repeat(self, poll: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._guarded(poll)
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _guarded(self, poll: Callable[[], Awaitable[None]]) -> None:
        name = poll.__name__
        try:
            await poll()
        except ClassifiedError as error:
            if not self._failing:
                _log.warning("imds_failed", code=error.code, error=error.message)
            self._failing.add(name)
        else:
            if self._failing == {name}:
                _log.info("imds_recovered")
            self._failing.discard(name)

    async def _poll_spot(self) -> None:
        notice = await self._imds.spot_notice()
        if notice is not None and self._is_new(notice):
            # Converted to the monotonic clock once: a wall clock that is set later moves no deadline.
            within_s = seconds_left(notice, datetime.now(UTC))
            _log.warning("spot_interruption", action=notice.action, at=notice.at.isoformat(), within_s=within_s)
            self._stop.request("spot_interruption", within_s=within_s)

    async def _poll_rebalance(self) -> None:
        if await self._imds.rebalance_recommended() and self._is_new("rebalance"):
            self._stop.request("rebalance_recommendation", within_s=self._drain_timeout_s)

    async def _poll_target_state(self) -> None:
        if await self._imds.target_lifecycle_state() == "Terminated" and self._is_new("terminated"):
            self._lifecycle.mark_terminating()
            self._stop.request("scale_in", within_s=self._drain_timeout_s)

    def _is_new(self, notice: object) -> bool:
        new = notice not in self._seen
        self._seen.add(notice)
        return new


def seconds_left(notice: SpotNotice, now: datetime) -> float:
    """Return the time to work on after a Spot notice; 0 if its time has passed."""
    return max(0.0, min(SPOT_NOTICE_S, (notice.at - now).total_seconds()) - SPOT_MARGIN_S)
