"""Limits on what runs at once: first come, first served, and adjustable while in use."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType

import structlog

from stt_async.errors import TransientError

_log = structlog.get_logger()

THROTTLED = frozenset(
    {
        "429",  # the answer to a HEAD, or that of a proxy, has no code in its body
        "503",
        "RequestLimitExceeded",
        "RequestThrottled",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "http_429",
        "http_503",
    }
)
"""Codes by which a service asks for fewer calls."""


class Capacity:
    """A number of units, held and given back in any amount. Use it on the event loop's thread only.

    Oversized requests wait for full capacity. Not anyio's CapacityLimiter, which lends one unit at a time.

    Args:
        units: The capacity. `resize` changes `total` for a while.
    """

    def __init__(self, units: int) -> None:
        self._waiting: deque[tuple[int, asyncio.Future[int]]] = deque()
        self.units = units
        self.total = units
        self.held = 0

    @asynccontextmanager
    async def take(self, units: int) -> AsyncIterator[None]:
        """Wait until `units` are free, and hold them during the block."""
        held = await self.acquire(units)
        try:
            yield
        finally:
            self.release(held)

    async def acquire(self, units: int) -> int:
        """Wait until `units` are free, and take them; return how many were taken (no more than the total)."""
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((units, turn))
        self._serve()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._serve()  # those behind it may fit
            else:
                self.release(turn.result())  # its turn had come already
            raise

    def release(self, units: int) -> None:
        """Give units back."""
        self.held -= units
        self._serve()

    def resize(self, total: int) -> None:
        """Set the total, between 1 and the capacity. What is held stays held."""
        self.total = max(1, min(self.units, total))
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            units, turn = self._waiting[0]
            if not turn.done():
                granted = min(units, self.total)
                if self.held + granted > self.total:
                    return
                self.held += granted
                turn.set_result(granted)
            self._waiting.popleft()


class AdaptiveLimit:
    """How many transfers run at once: `async with limit:` around each attempt.

    The limit is halved when an attempt is throttled, at most once for all attempts that were running then, and grows by
    one after as many successes as it is wide: additive increase, multiplicative decrease (RFC 5681, section 3.1).

    Args:
        name: Its name in the log.
        most: The limit while nothing is throttled.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._capacity = Capacity(most)
        self._successes = 0
        self._sent_before = 0
        """Attempts still running that were sent before the last reduction."""

    @property
    def width(self) -> int:
        """How many attempts may run at once."""
        return self._capacity.total

    async def __aenter__(self) -> None:
        await self._capacity.acquire(1)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._succeeded()
        elif isinstance(error, TransientError) and error.code in THROTTLED:
            self._throttled(error.code)
        self._sent_before = max(0, self._sent_before - 1)
        self._capacity.release(1)

    def _succeeded(self) -> None:
        self._successes += 1
        if self._successes >= self.width:
            self._capacity.resize(self.width + 1)
            self._successes = 0

    def _throttled(self, code: str) -> None:
        if self._sent_before:
            return
        self._sent_before = self._capacity.held
        self._successes = 0
        self._capacity.resize(self.width // 2)
        _log.warning("throttled", limit=self._name, code=code, width=self.width)
