"""Notices that this instance will go away, read from its metadata, and what they mean for the stop."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import structlog

from stt_async.errors import ClassifiedError
from stt_async.services.imds import Imds, SpotNotice
from stt_async.worker.membership import Membership
from stt_async.worker.stop import Stop

_log = structlog.get_logger()

POLL_INTERVAL_S = 2.0
"""AWS asks for every 5 s; a Spot notice leaves 120 s."""

SPOT_NOTICE_S = 120.0
"""EC2 gives two minutes; more is left only by a wall clock that is late.
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html"""

SPOT_MARGIN_S = 20.0
"""Kept of a Spot notice's time for giving back messages, removing files, and the last lines of the log."""


class Interruptions:
    """Watches the metadata service, beside the daemon. What goes wrong in asking is logged, once, and stops nothing.

    Args:
        imds: The metadata service.
        stop: Is asked to stop; the earliest deadline stands.
        membership: Learns that the group ends this instance.
        drain_timeout_s: For what comes without a time of its own.
    """

    def __init__(self, imds: Imds, stop: Stop, membership: Membership, *, drain_timeout_s: float) -> None:
        self._imds = imds
        self._stop = stop
        self._membership = membership
        self._drain_timeout_s = drain_timeout_s
        self._told: set[object] = set()
        self._failing: set[str] = set()

    async def look(self) -> None:
        """Look at everything once: an instance that is going away takes no work, however often it is started."""
        async with asyncio.TaskGroup() as group:
            for look in self._looks():
                group.create_task(self._guarded(look))

    async def run(self) -> None:
        """Look again and again, until cancelled; at each thing on its own, so that none waits for a slow other."""
        async with asyncio.TaskGroup() as group:
            for look in self._looks():
                group.create_task(self._repeat(look))

    def _looks(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        return self._look_at_spot, self._look_at_rebalance, self._look_at_target_state

    async def _repeat(self, look: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._guarded(look)
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _guarded(self, look: Callable[[], Awaitable[None]]) -> None:
        name = look.__name__
        try:
            await look()
        except ClassifiedError as error:
            if not self._failing:
                _log.warning("imds_failing", code=error.code, error=error.message)
            self._failing.add(name)
        else:
            if self._failing == {name}:
                _log.info("imds_answers_again")
            self._failing.discard(name)

    async def _look_at_spot(self) -> None:
        notice = await self._imds.spot_notice()
        if notice is not None and self._is_news(notice):
            # Converted to the monotonic clock once: a wall clock that is set meanwhile moves no deadline.
            within_s = seconds_left(notice, datetime.now(UTC))
            _log.warning("spot_interruption", action=notice.action, at=notice.at.isoformat(), within_s=within_s)
            self._stop.request("spot_interruption", within_s=within_s)

    async def _look_at_rebalance(self) -> None:
        if await self._imds.rebalance_recommended() and self._is_news("rebalance"):
            self._stop.request("rebalance_recommendation", within_s=self._drain_timeout_s)

    async def _look_at_target_state(self) -> None:
        if await self._imds.target_lifecycle_state() == "Terminated" and self._is_news("terminated"):
            self._membership.ends()
            self._stop.request("scale_in", within_s=self._drain_timeout_s)

    def _is_news(self, notice: object) -> bool:
        news = notice not in self._told
        self._told.add(notice)
        return news


def seconds_left(notice: SpotNotice, now: datetime) -> float:
    """Return the time to work on after a Spot notice; none is left for one that is late, or whose time has passed."""
    return max(0.0, min(SPOT_NOTICE_S, (notice.at - now).total_seconds()) - SPOT_MARGIN_S)
