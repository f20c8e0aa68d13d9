"""The daemon: free slots, receive, drain. What becomes of a message received is decided in `delivery`."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from stt_async.concurrency import finish_despite_cancel, first_of
from stt_async.errors import ClassifiedError, DependencyError
from stt_async.services.queue import JobQueue
from stt_async.worker.breaker import Breaker
from stt_async.worker.delivery import Deliveries, Delivery
from stt_async.worker.stop import Stop

_log = structlog.get_logger()

AFTER_FAILED_RECEIVE_S = 2.0
LOOK_INTERVAL_S = 1.0
TICK_S = 5.0
"""Longest wait of the daemon's own loop without a sign that it is alive."""

EMPTY_TWICE = 2


def _unknown(body: str) -> float | None:
    del body
    return None


async def _stay(empty_s: float) -> None:
    del empty_s


class Daemon:
    """Takes jobs from the queue into free slots, and sees each through to the end of its message.

    Args:
        queue: Where messages come from.
        deliveries: What sees them through.
        breaker: While it is open, nothing is received; its probes are run by the caller, beside this.
        stop: Why and until when to stop.
        slots: Jobs held at once.
        wait_time_s: Long poll.
        visibility_timeout_s: Of what is received.
        seconds_needed: How long the job of a message body takes from its receive to its end; None: unknown.
        when_empty: Called between two polls, with nothing held: for so many seconds of polling no message has come.
    """

    def __init__(
        self,
        *,
        queue: JobQueue,
        deliveries: Deliveries,
        breaker: Breaker,
        stop: Stop,
        slots: int,
        wait_time_s: int,
        visibility_timeout_s: int,
        seconds_needed: Callable[[str], float | None] = _unknown,
        when_empty: Callable[[float], Awaitable[None]] = _stay,
    ) -> None:
        self._queue = queue
        self._deliveries = deliveries
        self._breaker = breaker
        self._stop = stop
        self._slots = slots
        self._wait_time_s = wait_time_s
        self._visibility_timeout_s = visibility_timeout_s
        self._seconds_needed = seconds_needed
        self._when_empty = when_empty
        self._empty_s = 0.0
        self.ticked_s = time.monotonic()
        """When the loop of this daemon last showed that it is alive (monotonic clock)."""

    async def run(self) -> None:
        """Work until asked to stop, then drain: nothing is received, what can finish does, the rest is released."""
        _log.info("worker_started", slots=self._slots, queue=self._queue.url)
        try:
            while free := await self._free_slots():
                await self._receive(free)
        except asyncio.CancelledError:
            self._stop.request("cancelled", within_s=0)
            raise
        finally:
            await finish_despite_cancel(self._drain())
            _log.info("worker_stopped", **self._deliveries.tally)

    async def triage(self) -> None:
        """Once asked to stop, release at once what cannot be done by the deadline; run beside `run`, until cancelled.

        What is not known to take too long may try, and is released at the deadline.
        """
        await self._stop.wait()
        while True:
            for task, delivery in self._deliveries.under_way.items():
                if self._is_hopeless(delivery):
                    self._deliveries.give_up(task)
            await asyncio.sleep(LOOK_INTERVAL_S)

    def _is_hopeless(self, delivery: Delivery) -> bool:
        if delivery.waits_for is not None:
            return True
        needed_s = self._seconds_needed(delivery.message.body)
        if needed_s is None or self._stop.signal is None:
            return False
        return delivery.started_s + needed_s > self._stop.signal.deadline_s

    async def _free_slots(self) -> int:
        """Wait for a free slot behind a closed breaker, and return how many are free; 0 once asked to stop."""
        while not self._stop.requested:
            self.ticked_s = time.monotonic()
            free = self._slots - len(self._deliveries.under_way)
            if free and self._breaker.closed.is_set():
                return free
            self._deliveries.one_ended.clear()
            changed = self._breaker.closed if free else self._deliveries.one_ended
            await first_of(changed.wait(), self._stop.wait(), asyncio.sleep(TICK_S))
        return 0

    async def _receive(self, free: int) -> None:
        asked_s, busy = time.monotonic(), bool(self._deliveries.under_way)
        poll = asyncio.create_task(
            self._queue.receive(
                most=free, wait_time_s=self._wait_time_s, visibility_timeout_s=self._visibility_timeout_s
            )
        )
        try:
            # A poll under way is left to end: what SQS has handed out by then would be hidden until its timeout.
            await first_of(asyncio.wait({poll}), self._stop.wait_deadline())
        finally:
            poll.cancel()
        await asyncio.wait({poll})
        if poll.cancelled():
            return
        try:
            messages = poll.result()
        except ClassifiedError as error:
            self._empty_s = 0.0
            _log.warning("receive_failed", code=error.code, error=error.message)
            if isinstance(error, DependencyError):
                self._breaker.trip(error)
            await self._stop.sleep(AFTER_FAILED_RECEIVE_S)
            return
        if self._stop.requested:
            await self._deliveries.give_back(messages)
        elif messages or busy:
            self._empty_s = 0.0
            await self._deliveries.take(messages)
        else:
            self._empty_s += time.monotonic() - asked_s
            await self._when_empty(self._empty_s)

    async def _drain(self) -> None:
        under_way = self._deliveries.under_way
        if under_way:
            _log.info("worker_draining", jobs=len(under_way))
            deadline = asyncio.create_task(self._stop.wait_deadline())
            while under_way and not deadline.done():
                self.ticked_s = time.monotonic()
                await first_of(asyncio.wait(list(under_way)), asyncio.wait({deadline}), asyncio.sleep(TICK_S))
            deadline.cancel()
        for task in under_way:
            self._deliveries.give_up(task)
        if under_way:
            await asyncio.wait(list(under_way))


async def stop_when_empty(queue: JobQueue, stop: Stop, *, drain_timeout_s: float) -> None:
    """Ask to stop once the queue holds nothing: none waiting, none in flight with anybody, none coming back later.

    SQS's counts are estimates, so it must say so twice in a row. A queue that does not answer says nothing.
    """
    empty = 0
    while empty < EMPTY_TWICE:
        await stop.sleep(LOOK_INTERVAL_S)
        if stop.requested:
            return
        try:
            empty = empty + 1 if (await queue.depth()).empty else 0
        except ClassifiedError as error:
            empty = 0
            _log.warning("depth_unknown", code=error.code, error=error.message)
    stop.request("queue_empty", within_s=drain_timeout_s)
