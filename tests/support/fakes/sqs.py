"""An SQS in the test's own loop: with a clock that the test moves, old handles that still work, odd deliveries."""

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
"""What an old receipt handle can do, of a message that was received again since.

`ignored`: nothing; a delete succeeds and the message stays, a change is refused.
`honoured`: the same as the newest one, as github.com/getmoto/moto/pull/4655 measured.
"""


class Clock:
    """Runs with `source` (by default the machine's time), ahead of it by as much as it was advanced."""

    def __init__(self, source: Callable[[], float] = time.time) -> None:
        self._source = source
        self._ahead_s = 0.0

    def now_s(self) -> float:
        """Seconds since the epoch."""
        return self._source() + self._ahead_s

    def advance(self, seconds: float) -> None:
        """Let this much time pass at once."""
        self._ahead_s += seconds


@dataclass(frozen=True)
class Skew:
    """How often (0 to 1) delivery is as odd as a standard queue's may be (standard-queues.html).

    Attributes:
        twice: A message that is delivered for the first time stays visible: it may be delivered once more at once.
        late: A message that is to become visible does so later, by up to `late_s`.
    """

    twice: float = 0.0
    late: float = 0.0
    late_s: float = 0.0


class OddQueue(Queue):
    """A queue that delivers with skew, and may honour old handles."""

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
    """Queues by a test's clock; with the same seed, calls and times they give the same answers."""
    random = Random(seed)  # noqa: S311 - it is to be predictable
    return Sqs(partial(OddQueue, now_s=clock.now_s, random=random, stale=stale, skew=skew or Skew()))


@dataclass(frozen=True)
class ClockedSqs:
    """An SQS that is served in the test's loop."""

    sqs: Sqs
    clock: Clock
    url: str

    def advance(self, seconds: float) -> None:
        """Let this much time pass at once, also for polls that wait."""
        self.clock.advance(seconds)
        for queue in self.sqs.queues.values():
            queue.arrival.set()


OpenSqs = Callable[..., Awaitable[ClockedSqs]]


@pytest_asyncio.fixture
async def open_sqs() -> AsyncIterator[OpenSqs]:
    """A function that serves one: `await open_sqs(stale="honoured")`; the arguments are those of `odd_sqs`."""
    async with AsyncExitStack() as stack:

        async def opened(**arguments: Any) -> ClockedSqs:
            clock = Clock()
            sqs = odd_sqs(clock, **arguments)
            return ClockedSqs(sqs, clock, await stack.enter_async_context(sqs_server(sqs)))

        yield opened
