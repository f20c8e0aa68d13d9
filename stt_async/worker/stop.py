"""The request to stop: a reason, and a deadline that can only be shortened."""

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

_log = structlog.get_logger()

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class StopSignal:
    """Why the worker stops, and when (monotonic clock) it releases unfinished jobs."""

    reason: str
    deadline_s: float


class Stop:
    """The request to stop, if any. Use it on the event loop's thread only."""

    def __init__(self) -> None:
        self.signal: StopSignal | None = None
        self._changed = asyncio.Event()

    def request(self, reason: str, *, within_s: float) -> None:
        """Request a stop within `within_s` seconds. A deadline later than the current one changes nothing."""
        deadline_s = time.monotonic() + within_s
        if self.signal is not None and self.signal.deadline_s <= deadline_s:
            return
        self.signal = StopSignal(reason, deadline_s)
        _log.info("stop_requested", reason=reason, within_s=within_s)
        self._changed.set()

    @property
    def requested(self) -> bool:
        """Whether a stop was requested."""
        return self.signal is not None

    async def wait(self) -> None:
        """Return as soon as a stop is requested."""
        while self.signal is None:
            await self._next_change()

    async def wait_deadline(self) -> None:
        """Return when the deadline has passed, even if it is shortened meanwhile."""
        await self.wait()
        while self.signal is not None and (left_s := self.signal.deadline_s - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    await self._next_change()
            except TimeoutError:
                continue

    async def sleep(self, delay_s: float) -> None:
        """Sleep, at most until a stop is requested."""
        try:
            async with asyncio.timeout(delay_s):
                await self.wait()
        except TimeoutError:
            return

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


@contextmanager
def on_signals(stop: Stop, *, drain_timeout_s: float) -> Iterator[None]:
    """Drain on SIGTERM or SIGINT, release everything at the second signal, and let the third kill the process."""
    loop = asyncio.get_running_loop()
    received = 0

    def handle(number: signal.Signals) -> None:
        nonlocal received
        received += 1
        if received == 1:
            stop.request(number.name, within_s=drain_timeout_s)
        else:
            stop.request(f"{number.name} again", within_s=0)
            _restore()

    def _restore() -> None:
        for each in SIGNALS:
            loop.remove_signal_handler(each)

    for each in SIGNALS:
        loop.add_signal_handler(each, handle, each)
    try:
        yield
    finally:
        _restore()
