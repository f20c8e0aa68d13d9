"""A job that is cancelled or loses its lease at any step: its message is settled once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from stt_async.errors import DependencyError, OutageError, PermanentError, TransientError
from stt_async.worker.breaker import Breaker
from stt_async.worker.lease import Leases
from stt_async.worker.running_jobs import RunningJobs
from tests.unit.fakes import (
    TIMEOUT_S,
    VISIBILITY_S,
    FakePipeline,
    FakeQueue,
    background,
    healthy,
    message,
    run_ready_tasks,
    wait_until,
)


@dataclass
class Jobs:
    """RunningJobs, and their parts."""

    queue: FakeQueue
    leases: Leases
    jobs: RunningJobs

    def cancel_all(self) -> None:
        for task in tuple(self.jobs.running):
            self.jobs.cancel(task)

    async def all_ended(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.wait(list(self.jobs.running))
        await wait_until(lambda: not self.jobs.running)


async def _for_ever() -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def running_jobs(actions: Mapping[str, Callable[[], Awaitable[object]]] | None = None) -> AsyncIterator[Jobs]:
    queue = FakeQueue()
    leases, breaker = Leases(queue, VISIBILITY_S), Breaker(healthy)
    leases._tick_s = 0.001
    jobs = RunningJobs(
        queue=queue,
        leases=leases,
        breaker=breaker,
        pipeline=FakePipeline(actions or {}),
        job_timeout_s=3600.0,
        outage_delay_s=60,
    )
    async with background(leases.run(), breaker.run()):
        yield Jobs(queue, leases, jobs)
    assert not leases._held


async def test_job_cancelled_during_its_last_heartbeat_is_deleted() -> None:
    """Its manifest is committed."""
    go = asyncio.Event()
    async with running_jobs({"a": go.wait}) as worker:
        worker.queue.heartbeat_gate = asyncio.Event()
        await worker.jobs.start([message("a", age_s=VISIBILITY_S / 2)])
        await wait_until(lambda: worker.queue.count_heartbeats("a"))
        go.set()
        await wait_until(lambda: not worker.leases._held)
        worker.cancel_all()
        await run_ready_tasks()
        assert worker.queue.calls == []
        worker.queue.heartbeat_gate.set()
        await worker.all_ended()
    assert worker.queue.calls == [("delete", "a", None)]
    assert worker.jobs.counts == {"job_succeeded": 1}


async def test_cancelled_job_with_a_lost_lease_is_not_released() -> None:
    """Another worker may hold the message; a release would start a third attempt."""
    async with running_jobs({"a": _for_ever}) as worker:
        await worker.jobs.start([message("a")])
        await wait_until(lambda: worker.leases._held)
        [lease] = worker.leases._held
        lease.lose("SQS says MessageNotInflight")
        worker.cancel_all()
        await worker.all_ended()
    assert worker.queue.calls == []
    assert worker.jobs.counts == {"job_lease_lost": 1}


OUTCOMES: Mapping[str, BaseException | None] = {
    "done": None,
    "permanent": PermanentError("undecodable", "no audio in it"),
    "transient": TransientError("cut", "off"),
    "refused": DependencyError("AccessDenied", "no"),
    "out of reach": OutageError("unreachable", "no route"),
}


@pytest.mark.parametrize("receive_count", [1, 5])
@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("lost", [False, True], ids=["cancelled", "lease lost"])
async def test_job_interrupted_at_any_step_settles_its_message_once(
    outcome: str, *, lost: bool, receive_count: int
) -> None:
    """At each turn of the loop, from before the first step: a task cancelled there never runs, and cannot settle."""

    async def job() -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        if error := OUTCOMES[outcome]:
            raise error

    for steps in range(30):
        async with running_jobs({"a": job}) as worker:
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
