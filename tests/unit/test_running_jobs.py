"""A job that is cancelled at an awkward moment: its message is settled once, and rightly."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from stt_async.errors import DependencyError, OutageError, PermanentError, TransientError
from stt_async.worker.breaker import Breaker
from stt_async.worker.lease import Leases
from stt_async.worker.running_jobs import RunningJobs
from tests.unit.fakes import PATIENCE_S, VISIBILITY_S, FakePipeline, FakeQueue, beside, in_order, message, until


@dataclass
class Held:
    """RunningJobs, and what they run on."""

    queue: FakeQueue
    leases: Leases
    jobs: RunningJobs

    def cancel_all(self) -> None:
        for task in tuple(self.jobs.running):
            self.jobs.cancel(task)

    async def all_ended(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait(list(self.jobs.running))
        await until(lambda: not self.jobs.running)


async def _for_ever() -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def held(does: Mapping[str, Callable[[], Awaitable[object]]] | None = None) -> AsyncIterator[Held]:
    queue = FakeQueue()
    leases, breaker = Leases(queue, VISIBILITY_S), Breaker(in_order)
    leases._tick_s = 0.001
    jobs = RunningJobs(
        queue=queue,
        leases=leases,
        breaker=breaker,
        pipeline=FakePipeline(does or {}),
        job_timeout_s=3600.0,
        outage_delay_s=60,
    )
    async with beside(leases.run(), breaker.run()):
        yield Held(queue, leases, jobs)
    assert not leases._held


async def test_job_cancelled_before_its_first_step_is_released() -> None:
    """A task cancelled before it ran never runs, and its message would stay hidden until its timeout."""
    async with held({"a": _for_ever}) as worker:
        await worker.jobs.start([message("a")])
        worker.cancel_all()
        await worker.all_ended()
    assert worker.queue.calls == [("release", "a", 0)]


async def test_unstarted_last_receive_is_dead_lettered_and_others_are_released() -> None:
    async with held() as worker:
        await worker.jobs.release_unstarted([message("a", receive_count=5), message("b", receive_count=4)])
    assert sorted(worker.queue.calls) == [("dead_letter", "a", "stopped"), ("release", "b", 0)]


async def test_job_cancelled_during_its_last_heartbeat_is_deleted() -> None:
    """Its manifest is committed already."""
    go = asyncio.Event()
    async with held({"a": go.wait}) as worker:
        worker.queue.beat_gate = asyncio.Event()
        await worker.jobs.start([message("a", age_s=VISIBILITY_S / 2)])
        await until(lambda: worker.queue.beaten("a"))
        go.set()
        await until(lambda: not worker.leases._held)
        worker.cancel_all()
        for _ in range(20):
            await asyncio.sleep(0)
        assert worker.queue.calls == []
        worker.queue.beat_gate.set()
        await worker.all_ended()
    assert worker.queue.calls == [("delete", "a", None)]
    assert worker.jobs.counts == {"job_succeeded": 1}


async def test_cancelled_job_with_a_lost_lease_is_not_released() -> None:
    """Another worker may have the message: released, it would be done a third time."""
    async with held({"a": _for_ever}) as worker:
        await worker.jobs.start([message("a")])
        await until(lambda: worker.leases._held)
        [lease] = worker.leases._held
        lease.lose("SQS says MessageNotInflight")
        worker.cancel_all()
        await worker.all_ended()
    assert worker.queue.calls == []
    assert worker.jobs.counts == {"job_lease_lost": 1}


ENDS: Mapping[str, BaseException | None] = {
    "done": None,
    "permanent": PermanentError("undecodable", "no audio in it"),
    "transient": TransientError("cut", "off"),
    "refused": DependencyError("AccessDenied", "no"),
    "out of reach": OutageError("unreachable", "no route"),
}


@pytest.mark.parametrize("receive_count", [1, 5])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("lost", [False, True], ids=["cancelled", "lease lost"])
async def test_job_interrupted_at_any_step_settles_its_message_once(
    end: str, *, lost: bool, receive_count: int
) -> None:
    """At each step of the event loop in turn, from before the job's first to after its last."""

    async def job() -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        if error := ENDS[end]:
            raise error

    for steps in range(30):
        async with held({"a": job}) as worker:
            await worker.jobs.start([message("a", receive_count=receive_count)])
            for _ in range(steps):
                await asyncio.sleep(0)
            leases = list(worker.leases._held)
            if lost and leases:
                leases[0].lose("SQS says MessageNotInflight")
            else:
                worker.cancel_all()
            if worker.jobs.running:
                await worker.all_ended()
        assert len(worker.queue.calls) == (0 if lost and leases else 1), (steps, worker.queue.calls)
        assert worker.jobs.counts.total() == 1
        if receive_count == 5:
            assert "release" not in {call for call, *_ in worker.queue.calls}
