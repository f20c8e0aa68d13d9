"""The breaker opens at the first sign, and closes by itself when the probe succeeds."""

import asyncio

import pytest

from stt_async.errors import UNREACHABLE, ClassifiedError, DependencyError, OutageError, TransientError
from stt_async.worker import breaker as breaker_module
from stt_async.worker.breaker import Breaker
from tests.unit.fakes import beside, until

REFUSED = DependencyError("AccessDenied", "no")


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_module, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(breaker_module, "LONGEST_WAIT_S", 0.002)


class Probe:
    """Fails with the errors it is given, then succeeds."""

    def __init__(self, *errors: ClassifiedError) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)


async def test_closed_it_asks_nobody() -> None:
    probe = Probe()
    breaker = Breaker(probe)
    async with beside(breaker.run()):
        for _ in range(5):
            await asyncio.sleep(0)
        assert breaker.closed.is_set()
    assert probe.calls == 0


async def test_it_opens_at_once_even_before_its_task_runs() -> None:
    breaker = Breaker(Probe())
    breaker.trip(REFUSED)
    assert not breaker.closed.is_set()


@pytest.mark.parametrize("error", [REFUSED, TransientError("InternalError", "500")], ids=lambda e: e.failure)
async def test_it_stays_open_until_the_probe_succeeds(error: ClassifiedError) -> None:
    probe = Probe(error, error, error)
    breaker = Breaker(probe)
    breaker.trip(REFUSED)
    async with beside(breaker.run()):
        await until(lambda: probe.calls == 3)
        assert not breaker.closed.is_set()
        await until(breaker.closed.is_set)
    assert probe.calls == 4


async def test_the_first_probe_tells_an_outage_from_the_trouble_of_one() -> None:
    breaker = Breaker(Probe(REFUSED))
    async with beside(breaker.run()):
        assert await breaker.confirms(REFUSED)
        await until(breaker.closed.is_set)
        assert not await breaker.confirms(REFUSED)
        await until(breaker.closed.is_set)
    assert not breaker.outage


async def test_all_who_ask_in_an_outage_hear_of_it() -> None:
    breaker = Breaker(Probe(*[REFUSED] * 1000))
    async with beside(breaker.run()):
        assert await asyncio.gather(*(breaker.confirms(REFUSED) for _ in range(3))) == [True] * 3
        assert breaker.outage
        assert await breaker.confirms(REFUSED)


async def test_who_is_out_of_reach_is_so_for_all() -> None:
    breaker = Breaker(Probe())
    assert await breaker.confirms(OutageError(UNREACHABLE, "no route"))
    assert breaker.outage


async def test_who_is_out_of_reach_ends_a_doubt() -> None:
    breaker = Breaker(Probe())
    verdict = breaker.trip(REFUSED)
    assert not verdict.done()
    assert not breaker.outage
    assert await breaker.confirms(OutageError(UNREACHABLE, "no route"))
    assert verdict.result()


async def test_who_gave_up_waiting_for_the_verdict_takes_it_from_nobody() -> None:
    breaker = Breaker(Probe())
    one, other = (asyncio.create_task(breaker.confirms(REFUSED)) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    async with beside(breaker.run()):
        assert not await other
    with pytest.raises(asyncio.CancelledError):
        await one


async def test_a_probe_without_an_answer_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_module, "PROBE_TIMEOUT_S", 0.005)
    silent = asyncio.Event()

    async def probe() -> None:
        await silent.wait()

    breaker = Breaker(probe)
    async with beside(breaker.run()):
        assert await breaker.confirms(REFUSED)
        silent.set()
        await until(breaker.closed.is_set)


async def test_many_trips_are_one_opening() -> None:
    probe = Probe(REFUSED)
    breaker = Breaker(probe)
    for _ in range(5):
        breaker.trip(REFUSED)
    async with beside(breaker.run()):
        await until(breaker.closed.is_set)
    assert probe.calls == 2


async def test_it_opens_again() -> None:
    probe = Probe()
    breaker = Breaker(probe)
    async with beside(breaker.run()):
        for times in (1, 2, 3):
            breaker.trip(REFUSED)
            await until(breaker.closed.is_set)
            assert probe.calls == times


async def test_a_bug_in_the_probe_is_not_hidden() -> None:
    async def probe() -> None:
        raise ZeroDivisionError

    breaker = Breaker(probe)
    breaker.trip(REFUSED)
    with pytest.raises(ZeroDivisionError):
        await breaker.run()
