"""A budget gives out no more than it has, and has less for a while when told so."""

import asyncio
from pathlib import Path

import pytest

from stt_async.errors import DISK_FULL, PermanentError, TransientError
from stt_async.worker.budget import Budget
from stt_async.worker.scratch import Scratch


async def most_at_once(budget: Budget, units: int, guests: int) -> int:
    """How many guests of this size it lets in at the same time."""
    inside = most = 0

    async def visit() -> None:
        nonlocal inside, most
        async with budget.take(units):
            inside += 1
            most = max(most, inside)
            for _ in range(5):
                await asyncio.sleep(0)
            inside -= 1

    async with asyncio.TaskGroup() as group:
        for _ in range(guests):
            group.create_task(visit())
    return most


async def test_shrunk_it_lets_in_fewer_and_grown_as_many_as_before() -> None:
    budget = Budget(16)
    assert await most_at_once(budget, 2, 12) == 8
    budget.shrink()
    assert await most_at_once(budget, 2, 12) == 4
    for _ in range(20):
        budget.grow()
    assert budget.total == 16
    assert await most_at_once(budget, 2, 12) == 8


async def test_shrunk_under_what_is_out_it_waits_for_that_and_still_serves_the_largest() -> None:
    budget = Budget(8)
    async with budget.take(8):
        for _ in range(5):
            budget.shrink()
        assert budget.total == 1
        waiting = asyncio.create_task(most_at_once(budget, 8, 2))
        await asyncio.sleep(0)
        assert not waiting.done()
    async with asyncio.timeout(5):
        assert await waiting == 1


@pytest.mark.parametrize(
    ("error", "share"), [(TransientError(DISK_FULL, "full"), 0.5), (PermanentError("not_audio", "html"), 1.0)]
)
async def test_full_disk_halves_what_scratch_lets_in(tmp_path: Path, error: Exception, share: float) -> None:
    most_bytes = 100
    scratch = Scratch(tmp_path, most_bytes)
    with pytest.raises(type(error)):
        async with scratch.room(10):
            raise error
    assert scratch._budget_bytes.total == most_bytes * share
    for _ in range(10):
        async with scratch.room(10):
            pass
    assert scratch._budget_bytes.total == most_bytes
