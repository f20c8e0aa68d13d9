"""The breaker: in an outage the worker receives nothing, so no receive counts are spent."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from stt_async.errors import ClassifiedError, OutageError

_log = structlog.get_logger()

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0

PROBE_TIMEOUT_S = 20.0
"""For one probe and its retries, as jobs wait for the verdict."""


class Breaker:
    """Opens when an outage is suspected; closes when a probe succeeds.

    The suspicion may be wrong, as a service may refuse a single job. The first probe, sent at once, is the verdict: if
    it fails, this is an outage. An OutageError is an outage without a probe.

    Args:
        probe: Raises a ClassifiedError while any service fails.
    """

    def __init__(self, probe: Callable[[], Awaitable[object]]) -> None:
        self._probe = probe
        self._open = asyncio.Event()
        self._verdict: asyncio.Future[bool] | None = None
        self._cause: ClassifiedError | None = None
        self.closed = asyncio.Event()
        self.closed.set()

    @property
    def outage(self) -> bool:
        """Whether the breaker is open and the outage confirmed."""
        return self._verdict is not None and self._verdict.done() and self._verdict.result()

    async def confirms(self, error: ClassifiedError) -> bool:
        """Open because of `error`; return True for an outage, False if only this job fails."""
        return await asyncio.shield(self.trip(error))

    def trip(self, error: ClassifiedError) -> asyncio.Future[bool]:
        """Open because of `error`; return the verdict, which may be pending."""
        if self._verdict is None:
            self._verdict = asyncio.get_running_loop().create_future()
            self._cause = error
            self.closed.clear()
            self._open.set()
        verdict = self._verdict
        if isinstance(error, OutageError):
            self._judge(outage=True)
        return verdict

    async def run(self) -> None:
        """Probe while open, until cancelled."""
        while True:
            await self._open.wait()
            wait_s = FIRST_WAIT_S
            while not await self._succeeds():
                self._judge(outage=True)
                await asyncio.sleep(wait_s * random.uniform(0.5, 1))  # noqa: S311 - jitter, not a secret
                wait_s = min(LONGEST_WAIT_S, wait_s * 2)
            if self.outage:
                _log.info("breaker_closed")
            self._judge(outage=False)
            self._verdict = None
            self._open.clear()
            self.closed.set()

    def _judge(self, *, outage: bool) -> None:
        """Set the verdict, unless it is set already."""
        if self._verdict is None or self._verdict.done():
            return
        self._verdict.set_result(outage)
        if outage and self._cause is not None:
            _log.error("breaker_opened", code=self._cause.code, error=self._cause.message)

    async def _succeeds(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await self._probe()
        except TimeoutError:
            _log.warning("probe_failed", code="timeout", error=f"no answer within {PROBE_TIMEOUT_S:.0f} s")
            return False
        except ClassifiedError as error:
            _log.warning("probe_failed", code=error.code, error=error.message)
            return False
        return True
