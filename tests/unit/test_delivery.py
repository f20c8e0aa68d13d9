"""A delivery that is given up at an awkward moment: one end for its message, and the right one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from stt_async.errors import DependencyError, OutageError, PermanentError, TransientError
from stt_async.worker.breaker import Breaker
from stt_async.worker.delivery import Deliveries
from stt_async.worker.lease import Leases
from tests.unit.fakes import PATIENCE_S, FakePipeline, FakeQueue, beside, message, until

VISIBILITY_S = 300


@dataclass
class Site:
    """Deliveries, and what they run on."""

    queue: FakeQueue
    leases: Leases
    deliveries: Deliveries

    def give_up_all(self) -> None:
        for task in tuple(self.deliveries.under_way):
            self.deliveries.give_up(task)

    async def all_ended(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait(list(self.deliveries.under_way))
        await until(lambda: not self.deliveries.under_way)


async def _in_order() -> None:
    """A probe that finds everything in order."""


async def _for_ever() -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def delivering(does: Mapping[str, Callable[[], Awaitable[object]]] | None = None) -> AsyncIterator[Site]:
    queue = FakeQueue()
    leases, breaker = Leases(queue, VISIBILITY_S), Breaker(_in_order)
    leases._tick_s = 0.001
    deliveries = Deliveries(
        queue=queue,
        leases=leases,
        breaker=breaker,
        pipeline=FakePipeline(does or {}),
        job_timeout_s=3600.0,
        outage_rest_s=60,
    )
    async with beside(leases.run(), breaker.run()):
        yield Site(queue, leases, deliveries)
    assert not leases._held


async def test_given_up_before_its_first_step_a_message_is_released_all_the_same() -> None:
    """A task cancelled before it ran never runs, and its message would be hidden until its timeout."""
    async with delivering({"a": _for_ever}) as site:
        await site.deliveries.take([message("a")])
        site.give_up_all()
        await site.all_ended()
    assert site.queue.calls == [("release", "a", 0)]


async def test_stopped_on_its_last_receive_a_job_is_a_dead_letter_with_a_reason() -> None:
    """Released, SQS would redrive it without a word."""
    async with delivering({"a": _for_ever}) as site:
        await site.deliveries.take([message("a", receive_count=5)])
        await until(lambda: site.leases._held)
        site.give_up_all()
        await site.all_ended()
    assert site.queue.calls == [("dead_letter", "a", "stopped")]
    assert site.deliveries.tally == {"job_failed": 1}


async def test_given_back_unopened_a_last_receive_is_a_dead_letter_with_a_reason() -> None:
    async with delivering() as site:
        await site.deliveries.give_back([message("a", receive_count=5), message("b", receive_count=4)])
    assert sorted(site.queue.calls) == [("dead_letter", "a", "stopped"), ("release", "b", 0)]


async def test_a_job_that_is_done_when_it_is_given_up_is_deleted() -> None:
    """Its manifest stands. Only a heartbeat is still under way, whose end is waited for."""
    go = asyncio.Event()
    async with delivering({"a": go.wait}) as site:
        site.queue.beat_gate = asyncio.Event()
        await site.deliveries.take([message("a", age_s=VISIBILITY_S / 2)])
        await until(lambda: site.queue.beaten("a"))
        go.set()
        await until(lambda: not site.leases._held)
        site.give_up_all()
        for _ in range(20):
            await asyncio.sleep(0)
        assert site.queue.calls == []
        site.queue.beat_gate.set()
        await site.all_ended()
    assert site.queue.calls == [("delete", "a", None)]
    assert site.deliveries.tally == {"job_succeeded": 1}


async def test_a_lease_that_is_lost_as_its_job_is_given_up_is_nobodys_to_release() -> None:
    """Another worker may have the message: released, it would be done a third time."""
    async with delivering({"a": _for_ever}) as site:
        await site.deliveries.take([message("a")])
        await until(lambda: site.leases._held)
        [lease] = site.leases._held
        lease.lose("SQS says MessageNotInflight")
        site.give_up_all()
        await site.all_ended()
    assert site.queue.calls == []
    assert site.deliveries.tally == {"job_lease_lost": 1}


ENDS: Mapping[str, BaseException | None] = {
    "done": None,
    "permanent": PermanentError("undecodable", "no audio in it"),
    "transient": TransientError("cut", "off"),
    "refused": DependencyError("AccessDenied", "no"),
    "out of reach": OutageError("unreachable", "no route"),
}


@pytest.mark.parametrize("receive_count", [1, 5])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("lost", [False, True], ids=["given up", "lease lost"])
async def test_whenever_a_job_is_cut_off_its_message_is_settled_once(
    end: str, *, lost: bool, receive_count: int
) -> None:
    """At each step of the event loop in turn, from before the job's first to after its last."""

    async def job() -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        if error := ENDS[end]:
            raise error

    for steps in range(30):
        async with delivering({"a": job}) as site:
            await site.deliveries.take([message("a", receive_count=receive_count)])
            for _ in range(steps):
                await asyncio.sleep(0)
            leases = list(site.leases._held)
            if lost and leases:
                leases[0].lose("SQS says MessageNotInflight")
            else:
                site.give_up_all()
            if site.deliveries.under_way:
                await site.all_ended()
        assert len(site.queue.calls) == (0 if lost and leases else 1), (steps, site.queue.calls)
        assert site.deliveries.tally.total() == 1
        if receive_count == 5:
            assert "release" not in {call for call, *_ in site.queue.calls}
