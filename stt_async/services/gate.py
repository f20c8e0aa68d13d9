"""How many transfers at once: a bound that gives way to a service that asks for it, and comes back."""

import asyncio
from collections import deque
from types import TracebackType

import structlog

from stt_async.errors import TransientError

_log = structlog.get_logger()

THROTTLED = frozenset(
    {
        "429",  # the answer to a HEAD, or one of a proxy, has no code in its body
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
"""Codes by which a service asks for less."""


class Gate:
    """`async with gate:` around each attempt of a transfer. First come, first served.

    The bound is halved when an attempt is throttled, at most once for all attempts that were under way then, and grows
    by one after as many successes as it is wide: additive increase, multiplicative decrease (RFC 5681, section 3.1).
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._inside = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._successes = 0
        self._immune = 0
        self.width = most

    async def __aenter__(self) -> None:
        if self._inside < self.width and not self._waiting:
            self._inside += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._leave()  # the turn had come already: hand it on
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._succeeded()
        elif isinstance(error, TransientError) and error.code in THROTTLED:
            self._throttled(error.code)
        self._immune = max(0, self._immune - 1)
        self._leave()

    def _succeeded(self) -> None:
        self._successes += 1
        if self._successes >= self.width and self.width < self._most:
            self.width += 1
            self._successes = 0

    def _throttled(self, code: str) -> None:
        if self._immune:
            return
        self._immune = self._inside  # those under way now were sent at the old width
        self._successes = 0
        self.width = max(1, self.width // 2)
        _log.warning("throttled", gate=self._name, code=code, width=self.width)

    def _leave(self) -> None:
        self._inside -= 1
        while self._waiting and self._inside < self.width:
            turn = self._waiting.popleft()
            if not turn.done():
                self._inside += 1
                turn.set_result(None)
