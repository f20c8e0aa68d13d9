"""Limits: first come, first served; halved when throttled, and widened again."""

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stt_async.errors import PermanentError, TransientError
from stt_async.limits import AdaptiveLimit, Capacity


async def throttled(limit: AdaptiveLimit) -> None:
    with suppress(TransientError):
        async with limit:
            raise TransientError("SlowDown", "as asked")


async def test_limit_holds_and_all_attempts_run() -> None:
    limit = AdaptiveLimit("test", 3)
    inside = most = done = 0

    async def transfer() -> None:
        nonlocal inside, most, done
        async with limit:
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1
        done += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(transfer())
    assert (most, done) == (3, 20)


async def test_throttled_attempts_in_flight_halve_the_width_once() -> None:
    limit = AdaptiveLimit("test", 8)
    answer = asyncio.Event()

    async def attempt() -> None:
        with suppress(TransientError):
            async with limit:
                await answer.wait()
                raise TransientError("SlowDown", "as asked")

    tasks = [asyncio.create_task(attempt()) for _ in range(8)]
    await asyncio.sleep(0)
    answer.set()
    await asyncio.wait(tasks)
    assert limit.width == 4
    await throttled(limit)
    assert limit.width == 2


async def test_width_grows_by_one_after_as_many_successes_up_to_its_maximum() -> None:
    limit = AdaptiveLimit("test", 4)
    await throttled(limit)
    assert limit.width == 2
    widths = []
    for _ in range(12):
        async with limit:
            pass
        widths.append(limit.width)
    assert widths == [2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4]


@pytest.mark.parametrize("error", [PermanentError("NoSuchKey", "gone"), TransientError("connection_broken", "cut")])
async def test_other_errors_leave_the_width_alone(error: Exception) -> None:
    limit = AdaptiveLimit("test", 4)
    with suppress(type(error)):
        async with limit:
            raise error
    assert limit.width == 4


async def test_width_never_falls_below_one() -> None:
    limit = AdaptiveLimit("test", 2)
    for _ in range(5):
        await throttled(limit)
    assert limit.width == 1


@given(cancelled=st.sets(st.integers(0, 9)), freed_first=st.booleans())
async def test_cancelled_waiters_do_not_block_others(cancelled: set[int], freed_first: bool) -> None:  # noqa: FBT001 - a drawn case
    limit = AdaptiveLimit("test", 1)
    hold = asyncio.Event()
    passed: list[int] = []

    async def holder() -> None:
        async with limit:
            await hold.wait()

    async def waiter(number: int) -> None:
        async with limit:
            passed.append(number)

    first = asyncio.create_task(holder())
    await asyncio.sleep(0)
    waiters = [asyncio.create_task(waiter(number)) for number in range(10)]
    await asyncio.sleep(0)
    if freed_first:
        hold.set()
        await first
    for number in cancelled:
        waiters[number].cancel()
    hold.set()
    await asyncio.wait([first, *waiters])
    assert set(range(10)) - cancelled <= set(passed)
    assert passed == sorted(passed)
    async with asyncio.timeout(1), limit:
        pass


async def most_at_once(capacity: Capacity, units: int, requests: int) -> int:
    """Return how many requests of this size hold units at the same time."""
    inside = most = 0

    async def request() -> None:
        nonlocal inside, most
        async with capacity.take(units):
            inside += 1
            most = max(most, inside)
            for _ in range(5):
                await asyncio.sleep(0)
            inside -= 1

    async with asyncio.TaskGroup() as group:
        for _ in range(requests):
            group.create_task(request())
    return most


async def test_resized_capacity_admits_accordingly() -> None:
    capacity = Capacity(16)
    assert await most_at_once(capacity, 2, 12) == 8
    capacity.resize(capacity.total // 2)
    assert await most_at_once(capacity, 2, 12) == 4
    for _ in range(20):
        capacity.resize(capacity.total + 1)
    assert capacity.total == 16
    assert await most_at_once(capacity, 2, 12) == 8


async def test_capacity_below_held_units_waits_and_still_serves_oversized() -> None:
    capacity = Capacity(8)
    async with capacity.take(8):
        for _ in range(5):
            capacity.resize(capacity.total // 2)
        assert capacity.total == 1
        waiting = asyncio.create_task(most_at_once(capacity, 8, 2))
        await asyncio.sleep(0)
        assert not waiting.done()
    async with asyncio.timeout(5):
        assert await waiting == 1


async def test_cancelled_oversized_request_lets_later_ones_pass() -> None:
    capacity = Capacity(4)
    async with capacity.take(1):
        oversized = asyncio.create_task(capacity.acquire(4))
        small = asyncio.create_task(capacity.acquire(1))
        await asyncio.sleep(0)
        assert not small.done()
        oversized.cancel()
        async with asyncio.timeout(5):
            assert await small == 1
