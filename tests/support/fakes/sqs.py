"""The local SQS in a test's event loop: with a clock that tests advance, old handles that still work, and skew."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Literal

import pytest_asyncio

from stt_async.local.sqs.model import Sqs
from stt_async.local.sqs.queue import Message, Queue
from stt_async.local.sqs.server import sqs_server

Stale = Literal["ignored", "honoured"]
"""The effect of an old receipt handle, after the message was received again.

`ignored`: none; a delete succeeds without deleting, and a change is refused.
`honoured`: that of the newest handle, as github.com/getmoto/moto/pull/4655 measured.
"""


class Clock:
    """The time of `source` (by default the machine's), plus the time by which tests advanced the clock."""

    def __init__(self, source: Callable[[], float] = time.time) -> None:
        self._source = source
        self._ahead_s = 0.0

    def now_s(self) -> float:
        """Seconds since the epoch."""
        return self._source() + self._ahead_s

    def advance(self, seconds: float) -> None:
        """Advance the clock."""
        self._ahead_s += seconds


@dataclass(frozen=True)
class Skew:
    """Shares (0 to 1) of double and late deliveries, which a standard queue allows (standard-queues.html).

    Attributes:
        twice: A message stays visible at its first receive, so it can be received again at once.
        late: A message becomes visible later than it should, by up to `late_s`.
    """

    twice: float = 0.0
    late: float = 0.0
    late_s: float = 0.0


class OddQueue(Queue):
    """A queue that delivers with skew, and honours old handles if `stale` says so."""

    def __init__(self, *description: Any, stale: Stale, skew: Skew, **parts: Any) -> None:
        super().__init__(*description, **parts)
        self._stale = stale
        self._skew = skew

    def _hide(self, message: Message, until_s: float) -> None:
        is_late = self.random.random() < self._skew.late
        super()._hide(message, until_s + (self.random.uniform(0, self._skew.late_s) if is_late else 0))

    def _deliver(self, message: Message, now_s: float, visibility_timeout_s: int) -> None:
        is_twice = message.receive_count == 0 and self.random.random() < self._skew.twice
        super()._deliver(message, now_s, 0 if is_twice else visibility_timeout_s)

    def _is_valid(self, handle: str, message: Message) -> bool:
        return self._stale == "honoured" or super()._is_valid(handle, message)


def odd_sqs(clock: Clock, *, stale: Stale = "ignored", skew: Skew | None = None, seed: int = 0) -> Sqs:
    """Return queues with a test's clock; equal seeds, calls and times give equal answers."""
    random = Random(seed)  # noqa: S311 - tests repeat its sequence
    return Sqs(partial(OddQueue, now_s=clock.now_s, random=random, stale=stale, skew=skew or Skew()))


@dataclass(frozen=True)
class ClockedSqs:
    """An SQS that runs in the test's event loop."""

    sqs: Sqs
    clock: Clock
    url: str

    def advance(self, seconds: float) -> None:
        """Advance the clock, also for waiting polls."""
        self.clock.advance(seconds)
        for queue in self.sqs.queues.values():
            queue.arrival.set()


OpenSqs = Callable[..., Awaitable[ClockedSqs]]


@pytest_asyncio.fixture
async def open_sqs() -> AsyncIterator[OpenSqs]:
    """A function that starts one: `await open_sqs(stale="honoured")`; its arguments are those of `odd_sqs`."""
    async with AsyncExitStack() as stack:

        async def opened(**arguments: Any) -> ClockedSqs:
            clock = Clock()
            sqs = odd_sqs(clock, **arguments)
            return ClockedSqs(sqs, clock, await stack.enter_async_context(sqs_server(sqs)))

        yield opened
