"""The breaker: while a service refuses everyone, nothing is received, and receive counts are not spent."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from stt_async.errors import JobError

_log = structlog.get_logger()

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0


class Breaker:
    """Opens at the first sign that a service refuses everyone; closes by itself when the probe succeeds.

    Args:
        probe: Raises a JobError while any service is out of order.
    """

    def __init__(self, probe: Callable[[], Awaitable[object]]) -> None:
        self._probe = probe
        self._tripped = asyncio.Event()
        self.closed = asyncio.Event()
        self.closed.set()

    def trip(self, error: JobError) -> None:
        """Open, because of `error`."""
        if self.closed.is_set():
            _log.error("breaker_opened", code=error.code, error=error.message)
        self.closed.clear()
        self._tripped.set()

    async def run(self) -> None:
        """Probe while open, until cancelled."""
        while True:
            await self._tripped.wait()
            wait_s = FIRST_WAIT_S
            while not await self._in_order():
                await asyncio.sleep(wait_s * random.uniform(0.5, 1))  # noqa: S311 - jitter, not a secret
                wait_s = min(LONGEST_WAIT_S, wait_s * 2)
            self._tripped.clear()
            self.closed.set()
            _log.info("breaker_closed")

    async def _in_order(self) -> bool:
        try:
            await self._probe()
        except JobError as error:
            _log.warning("probe_failed", code=error.code, error=error.message)
            return False
        return True
