"""Lag: how late the event loop wakes, or a heartbeat is sent."""

import asyncio
import time

import structlog

_log = structlog.get_logger()

TICK_S = 0.25
THRESHOLD_S = 1.0
REPORT_INTERVAL_S = 60.0


class LagMeter:
    """The maximum lag since the last report; reported at most once a minute, and only from `threshold_s` on."""

    def __init__(self, threshold_s: float) -> None:
        self._threshold_s = threshold_s
        self._max_s = 0.0
        self._next_s = 0.0

    def add(self, lag_s: float, now_s: float) -> float | None:
        """Add a measurement; return the maximum if a report is due."""
        self._max_s = max(self._max_s, lag_s)
        if self._max_s < self._threshold_s or now_s < self._next_s:
            return None
        max_s, self._max_s, self._next_s = self._max_s, 0.0, now_s + REPORT_INTERVAL_S
        return max_s


async def watch_lag() -> None:
    """Measure how late this task wakes, until cancelled."""
    meter = LagMeter(THRESHOLD_S)
    while True:
        due_s = time.monotonic() + TICK_S
        await asyncio.sleep(TICK_S)
        now_s = time.monotonic()
        if (max_s := meter.add(now_s - due_s, now_s)) is not None:
            _log.warning("loop_lagged", max_s=round(max_s, 3))
