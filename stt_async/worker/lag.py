"""How late things are: the event loop, whose blocking delays all else alike, and what has a time of its own on it."""

import asyncio
import time

import structlog

_log = structlog.get_logger()

TICK_S = 0.25
THRESHOLD_S = 1.0
TELL_INTERVAL_S = 60.0


class LagMeter:
    """The longest lag since it was last told of; at most once a minute, and only from `threshold_s` on."""

    def __init__(self, threshold_s: float) -> None:
        self._threshold_s = threshold_s
        self._max_s = 0.0
        self._next_s = 0.0

    def note(self, lag_s: float, now_s: float) -> float | None:
        """Take a measurement; return the maximum when it is time to tell of it."""
        self._max_s = max(self._max_s, lag_s)
        if self._max_s < self._threshold_s or now_s < self._next_s:
            return None
        told, self._max_s, self._next_s = self._max_s, 0.0, now_s + TELL_INTERVAL_S
        return told


async def watch_lag() -> None:
    """Compare when we wake with when we should, until cancelled."""
    meter = LagMeter(THRESHOLD_S)
    while True:
        due_s = time.monotonic() + TICK_S
        await asyncio.sleep(TICK_S)
        now_s = time.monotonic()
        if (max_s := meter.note(now_s - due_s, now_s)) is not None:
            _log.warning("loop_lagged", max_s=round(max_s, 3))
