"""The request to stop: its deadline, its waiters, and signals."""

import asyncio
import os
import signal
import time

import pytest
import uvloop

from stt_async.worker.stop import SIGNALS, Stop, on_signals
from tests.unit.fakes import TIMEOUT_S, background, run_ready_tasks, wait_until

LONG_S = 3600.0


@pytest.mark.parametrize(
    ("first_s", "second_s", "reason"),
    [(100.0, 10.0, "second"), (10.0, 100.0, "first"), (0.0, 0.0, "first")],
    ids=["sooner", "later", "equal"],
)
async def test_deadline_is_only_shortened(first_s: float, second_s: float, reason: str) -> None:
    stop = Stop()
    before_s = time.monotonic()
    stop.request("first", within_s=first_s)
    stop.request("second", within_s=second_s)
    assert stop.signal is not None
    assert stop.signal.reason == reason
    soonest_s = min(first_s, second_s)
    assert before_s + soonest_s <= stop.signal.deadline_s <= time.monotonic() + soonest_s


async def test_waiters_wait_without_a_request() -> None:
    stop = Stop()
    assert not stop.requested
    async with background(stop.wait(), stop.wait_deadline(), stop.sleep(LONG_S)) as waiting:
        await run_ready_tasks()
        assert not any(each.done() for each in waiting)


async def test_request_wakes_all_waiters() -> None:
    stop = Stop()
    async with background(stop.wait(), stop.sleep(LONG_S), stop.wait()) as waiting:
        await asyncio.sleep(0)
        stop.request("now", within_s=LONG_S)
        await wait_until(lambda: all(each.done() for each in waiting))


async def test_waiters_after_a_request_return_at_once() -> None:
    stop = Stop()
    stop.request("now", within_s=0)
    async with asyncio.timeout(TIMEOUT_S):
        await stop.wait()
        await stop.wait_deadline()
        await stop.sleep(LONG_S)


async def test_shortened_deadline_wakes_all_waiters() -> None:
    stop = Stop()
    stop.request("drain", within_s=LONG_S)
    async with background(*(stop.wait_deadline() for _ in range(3))) as waiting:
        await run_ready_tasks()
        stop.request("less", within_s=LONG_S / 2)
        await run_ready_tasks()
        assert not any(each.done() for each in waiting)
        stop.request("now", within_s=0.005)
        await wait_until(lambda: all(each.done() for each in waiting))
        assert stop.signal is not None
        assert time.monotonic() >= stop.signal.deadline_s


async def test_new_waiter_does_not_hide_a_change_from_earlier_ones() -> None:
    stop = Stop()
    async with background(stop.wait_deadline()) as early:
        await asyncio.sleep(0)
        stop.request("now", within_s=0)  # the early waiter is woken, but has not run yet
        async with background(stop.wait_deadline(), stop.wait()) as late:
            await wait_until(lambda: all(each.done() for each in [*early, *late]))


async def test_sleep_ends_without_a_request() -> None:
    stop = Stop()
    async with asyncio.timeout(TIMEOUT_S):
        await stop.sleep(0.001)
    assert not stop.requested


def _send_signals(number: signal.Signals) -> None:
    async def run() -> None:
        stop = Stop()
        with on_signals(stop, drain_timeout_s=LONG_S):
            os.kill(os.getpid(), number)
            await wait_until(lambda: stop.requested)
            assert stop.signal is not None
            assert stop.signal.reason == number.name
            assert stop.signal.deadline_s > time.monotonic() + LONG_S / 2
            os.kill(os.getpid(), number)
            async with asyncio.timeout(TIMEOUT_S):
                await stop.wait_deadline()
            assert signal.getsignal(number) in {signal.SIG_DFL, signal.default_int_handler}

    uvloop.run(run())


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_drains_second_releases_third_kills(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    try:
        _send_signals(number)
    finally:
        signal.signal(number, before)


async def test_signal_handlers_are_restored() -> None:
    with on_signals(Stop(), drain_timeout_s=1):
        pass
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
