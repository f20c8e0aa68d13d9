"""The daemon's side of a stop: what cannot be done in time goes back at once; and of idleness: what counts as such."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import pytest

from stt_async.errors import TransientError
from stt_async.services.queue import Message
from stt_async.worker import daemon as module
from stt_async.worker.breaker import Breaker
from stt_async.worker.daemon import Daemon
from stt_async.worker.delivery import Deliveries
from stt_async.worker.lease import Leases
from stt_async.worker.stop import Stop
from tests.unit.fakes import FakePipeline, FakeQueue, beside, message, until

DRAIN_S = 100.0


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_INTERVAL_S", 0.001)
    monkeypatch.setattr(module, "TICK_S", 0.001)
    monkeypatch.setattr(module, "AFTER_FAILED_RECEIVE_S", 0.001)


@dataclass
class Site:
    queue: FakeQueue
    daemon: Daemon
    deliveries: Deliveries
    stop: Stop
    run: asyncio.Task[object]
    needed_s: dict[str, float]
    asked: list[str]
    """Of which messages it was asked how long they take."""
    empty_s: list[float]


async def _in_order() -> None:
    """A probe that finds everything in order."""


async def _for_ever() -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def working(*messages: Message, **does: Callable[[], Awaitable[object]]) -> AsyncIterator[Site]:
    queue, stop, breaker = FakeQueue(*messages), Stop(), Breaker(_in_order)
    leases = Leases(queue, 300)
    needed_s: dict[str, float] = {}
    asked: list[str] = []
    empty_s: list[float] = []

    def seconds_needed(body: str) -> float | None:
        asked.append(body)
        return needed_s.get(body)

    async def when_empty(seconds: float) -> None:
        empty_s.append(seconds)

    deliveries = Deliveries(
        queue=queue,
        leases=leases,
        breaker=breaker,
        pipeline=FakePipeline(does),
        job_timeout_s=3600.0,
        outage_rest_s=60.0,
    )
    daemon = Daemon(
        queue=queue,
        deliveries=deliveries,
        breaker=breaker,
        stop=stop,
        slots=4,
        wait_time_s=1,
        visibility_timeout_s=300,
        seconds_needed=seconds_needed,
        when_empty=when_empty,
    )
    async with beside(daemon.run(), leases.run(), breaker.run(), daemon.triage()) as [run, *_]:
        yield Site(queue, daemon, deliveries, stop, run, needed_s, asked, empty_s)


async def test_what_cannot_finish_goes_back_at_once_and_the_rest_may_try() -> None:
    go = asyncio.Event()
    async with working(
        message("long"), message("short"), message("unknown"), long=_for_ever, short=go.wait, unknown=go.wait
    ) as site:
        site.needed_s |= {"long": DRAIN_S + 60, "short": DRAIN_S - 60}
        await until(lambda: len(site.deliveries.under_way) == 3)
        site.stop.request("test", within_s=DRAIN_S)
        await until(lambda: site.queue.calls)
        assert site.queue.calls == [("release", "long", 0)]
        assert len(site.deliveries.under_way) == 2
        go.set()
        await site.run
    assert sorted(site.queue.calls) == [("delete", "short", None), ("delete", "unknown", None), ("release", "long", 0)]


async def test_a_poll_under_way_delays_no_release() -> None:
    async with working(message("long"), long=_for_ever) as site:
        site.needed_s["long"] = DRAIN_S + 60
        await until(lambda: len(site.deliveries.under_way) == 1)
        site.queue.gate = asyncio.Event()
        polls = len(site.queue.asked)
        await until(lambda: len(site.queue.asked) > polls)
        site.stop.request("test", within_s=DRAIN_S)
        await until(lambda: site.queue.calls)
        assert not site.run.done()
        site.queue.gate.set()
        await site.run


async def test_a_deadline_that_is_shortened_releases_more() -> None:
    async with working(message("a"), a=_for_ever) as site:
        site.needed_s["a"] = DRAIN_S - 60
        await until(lambda: len(site.deliveries.under_way) == 1)
        site.stop.request("test", within_s=DRAIN_S)
        seen = len(site.asked)
        await until(lambda: len(site.asked) > seen + 2)
        assert site.queue.calls == []
        site.stop.request("sooner", within_s=DRAIN_S - 80)
        await site.run
    assert site.queue.calls == [("release", "a", 0)]


async def test_empty_polls_add_up_and_any_message_begins_anew() -> None:
    async with working() as site:
        await until(lambda: len(site.empty_s) >= 5)
        assert site.empty_s == sorted(site.empty_s)
        site.queue.waiting = [message("a")]
        await until(lambda: site.queue.calls)
        before = max(site.empty_s)
        seen = len(site.empty_s)
        await until(lambda: len(site.empty_s) > seen)
        assert site.empty_s[-1] < before


async def test_a_poll_that_fails_says_nothing_of_the_queue() -> None:
    async with working() as site:
        await until(lambda: len(site.empty_s) >= 5)
        before, seen = max(site.empty_s), len(site.empty_s)
        site.queue.receive_errors = [TransientError("InternalError", "500")]
        await until(lambda: len(site.empty_s) > seen + 1)
        assert site.empty_s[-1] < before


async def test_while_a_message_is_held_nothing_counts_as_empty() -> None:
    go = asyncio.Event()
    async with working(message("a"), a=go.wait) as site:
        await until(lambda: len(site.deliveries.under_way) == 1)
        seen, polls = len(site.empty_s), len(site.queue.asked)
        await until(lambda: len(site.queue.asked) > polls + 5)
        assert len(site.empty_s) == seen
        go.set()
        await until(lambda: len(site.empty_s) > seen)


def _ticked(daemon: Daemon, after_s: float) -> bool:
    return daemon.ticked_s > after_s


async def test_it_ticks_while_it_waits_for_a_slot_and_while_it_drains() -> None:
    names = ["a", "b", "c", "d"]
    async with working(*[message(name) for name in names], **dict.fromkeys(names, _for_ever)) as site:
        await until(lambda: len(site.deliveries.under_way) == 4)
        for _ in range(2):
            before = time.monotonic()
            await until(partial(_ticked, site.daemon, before))
            site.stop.request("test", within_s=DRAIN_S)
        assert site.deliveries.oldest_s is not None
        site.stop.request("test", within_s=0)
        await site.run
    assert site.deliveries.oldest_s is None
