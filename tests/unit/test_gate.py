"""A gate lets in as many as it is wide, first come first served, and gives way when asked to."""

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stt_async.errors import PermanentError, TransientError
from stt_async.services.gate import Gate


async def throttled(gate: Gate) -> None:
    with suppress(TransientError):
        async with gate:
            raise TransientError("SlowDown", "as asked")


async def test_lets_in_no_more_than_its_width_and_all_in_the_end() -> None:
    gate = Gate("test", 3)
    inside = most = done = 0

    async def transfer() -> None:
        nonlocal inside, most, done
        async with gate:
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1
        done += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(transfer())
    assert (most, done) == (3, 20)


async def test_throttled_attempt_halves_the_width_once_for_all_that_were_under_way() -> None:
    gate = Gate("test", 8)
    leave = asyncio.Event()

    async def attempt() -> None:
        with suppress(TransientError):
            async with gate:
                await leave.wait()
                raise TransientError("SlowDown", "as asked")

    tasks = [asyncio.create_task(attempt()) for _ in range(8)]
    await asyncio.sleep(0)
    leave.set()
    await asyncio.wait(tasks)
    assert gate.width == 4
    await throttled(gate)
    assert gate.width == 2


async def test_widens_by_one_after_as_many_successes_as_it_is_wide_and_never_beyond_its_most() -> None:
    gate = Gate("test", 4)
    await throttled(gate)
    assert gate.width == 2
    widths = []
    for _ in range(12):
        async with gate:
            pass
        widths.append(gate.width)
    assert widths == [2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4]


@pytest.mark.parametrize("error", [PermanentError("NoSuchKey", "gone"), TransientError("connection_broken", "cut")])
async def test_other_errors_leave_the_width_alone(error: Exception) -> None:
    gate = Gate("test", 4)
    with suppress(type(error)):
        async with gate:
            raise error
    assert gate.width == 4


async def test_width_never_falls_below_one() -> None:
    gate = Gate("test", 2)
    for _ in range(5):
        await throttled(gate)
    assert gate.width == 1


@given(cancelled=st.sets(st.integers(0, 9)), freed_first=st.booleans())
async def test_cancelled_waiters_cost_nobody_a_place(cancelled: set[int], freed_first: bool) -> None:  # noqa: FBT001 - a drawn case
    gate = Gate("test", 1)
    hold = asyncio.Event()
    passed: list[int] = []

    async def holder() -> None:
        async with gate:
            await hold.wait()

    async def waiter(number: int) -> None:
        async with gate:
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
    async with asyncio.timeout(1), gate:
        pass
