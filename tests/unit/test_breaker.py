"""The breaker opens on suspicion, and closes when a probe succeeds."""

import asyncio

import pytest

from stt_async.errors import UNREACHABLE, ClassifiedError, DependencyError, OutageError, TransientError
from stt_async.worker import breaker as breaker_module
from stt_async.worker.breaker import Breaker
from tests.unit.fakes import background, run_ready_tasks, wait_until

REFUSED = DependencyError("AccessDenied", "no")


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_module, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(breaker_module, "LONGEST_WAIT_S", 0.002)


class Probe:
    """Raises these errors, one a call, then succeeds."""

    def __init__(self, *errors: ClassifiedError) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)


async def test_closed_breaker_does_not_probe() -> None:
    probe = Probe()
    breaker = Breaker(probe)
    async with background(breaker.run()):
        await run_ready_tasks()
        assert breaker.closed.is_set()
    assert probe.calls == 0


async def test_trip_opens_before_the_task_runs() -> None:
    breaker = Breaker(Probe())
    breaker.trip(REFUSED)
    assert not breaker.closed.is_set()


@pytest.mark.parametrize("error", [REFUSED, TransientError("InternalError", "500")], ids=lambda e: e.failure)
async def test_breaker_stays_open_until_the_probe_succeeds(error: ClassifiedError) -> None:
    probe = Probe(error, error, error)
    breaker = Breaker(probe)
    breaker.trip(REFUSED)
    async with background(breaker.run()):
        await wait_until(lambda: probe.calls == 3)
        assert not breaker.closed.is_set()
        await wait_until(breaker.closed.is_set)
    assert probe.calls == 4


async def test_first_probe_distinguishes_an_outage_from_a_refused_job() -> None:
    breaker = Breaker(Probe(REFUSED))
    async with background(breaker.run()):
        assert await breaker.confirms(REFUSED)
        await wait_until(breaker.closed.is_set)
        assert not await breaker.confirms(REFUSED)
        await wait_until(breaker.closed.is_set)
    assert not breaker.outage


async def test_every_job_in_an_outage_gets_the_verdict() -> None:
    breaker = Breaker(Probe(*[REFUSED] * 1000))
    async with background(breaker.run()):
        assert await asyncio.gather(*(breaker.confirms(REFUSED) for _ in range(3))) == [True] * 3
        assert breaker.outage
        assert await breaker.confirms(REFUSED)


async def test_outage_error_is_an_outage_without_a_probe() -> None:
    breaker = Breaker(Probe())
    assert await breaker.confirms(OutageError(UNREACHABLE, "no route"))
    assert breaker.outage


async def test_outage_error_sets_a_pending_verdict() -> None:
    breaker = Breaker(Probe())
    verdict = breaker.trip(REFUSED)
    assert not verdict.done()
    assert not breaker.outage
    assert await breaker.confirms(OutageError(UNREACHABLE, "no route"))
    assert verdict.result()


async def test_cancelled_waiter_does_not_cancel_the_verdict() -> None:
    breaker = Breaker(Probe())
    one, other = (asyncio.create_task(breaker.confirms(REFUSED)) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    async with background(breaker.run()):
        assert not await other
    with pytest.raises(asyncio.CancelledError):
        await one


async def test_probe_that_times_out_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_module, "PROBE_TIMEOUT_S", 0.005)
    silent = asyncio.Event()

    async def probe() -> None:
        await silent.wait()

    breaker = Breaker(probe)
    async with background(breaker.run()):
        assert await breaker.confirms(REFUSED)
        silent.set()
        await wait_until(breaker.closed.is_set)


async def test_trips_of_an_open_breaker_change_nothing() -> None:
    probe = Probe(REFUSED)
    breaker = Breaker(probe)
    for _ in range(5):
        breaker.trip(REFUSED)
    async with background(breaker.run()):
        await wait_until(breaker.closed.is_set)
    assert probe.calls == 2


async def test_breaker_opens_again() -> None:
    probe = Probe()
    breaker = Breaker(probe)
    async with background(breaker.run()):
        for times in (1, 2, 3):
            breaker.trip(REFUSED)
            await wait_until(breaker.closed.is_set)
            assert probe.calls == times


async def test_bug_in_the_probe_is_raised() -> None:
    async def probe() -> None:
        raise ZeroDivisionError

    breaker = Breaker(probe)
    breaker.trip(REFUSED)
    with pytest.raises(ZeroDivisionError):
        await breaker.run()
