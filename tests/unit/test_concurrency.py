"""Work that survives cancellation, many tasks with one error, the first of several."""

import asyncio
import gc
from collections.abc import Awaitable, Callable

import pytest

from stt_async.concurrency import finish_despite_cancel, first_of, gather_or_cancel
from tests.unit.fakes import TIMEOUT_S, wait_until


async def _return(value: int) -> int:
    await asyncio.sleep(0)
    return value


async def _fail(error: Exception) -> int:
    await asyncio.sleep(0)
    raise error


class Lingering:
    """Work that runs until cancelled, and then takes a few turns of the loop to end."""

    def __init__(self, clean_up_error: Exception | None = None) -> None:
        self.started = self.cleaned = False
        self._clean_up_error = clean_up_error

    async def run(self) -> int:
        self.started = True
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(3):
                await asyncio.sleep(0)
            self.cleaned = True
            if self._clean_up_error is not None:
                raise self._clean_up_error
        return 0


def _others() -> set[asyncio.Task[object]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


async def test_finish_despite_cancel_returns_the_result() -> None:
    assert await finish_despite_cancel(_return(7)) == 7


async def test_finish_despite_cancel_raises_the_error() -> None:
    with pytest.raises(ValueError, match="broken"):
        await finish_despite_cancel(_fail(ValueError("broken")))


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_finish_despite_cancel_finishes_after_repeated_cancellation(times: int) -> None:
    go, finished = asyncio.Event(), False

    async def work() -> None:
        nonlocal finished
        await go.wait()
        finished = True

    task = asyncio.create_task(finish_despite_cancel(work()))
    for _ in range(times):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert finished
    assert not _others()


async def test_finish_despite_cancel_raises_cancellation_over_an_error() -> None:
    go = asyncio.Event()

    async def work() -> None:
        await go.wait()
        raise ValueError("broken")

    task = asyncio.create_task(finish_despite_cancel(work()))
    await asyncio.sleep(0)
    task.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_gather_or_cancel_returns_results_in_order() -> None:
    first = asyncio.Event()

    async def slow() -> int:
        await first.wait()
        return 1

    async def quick() -> int:
        first.set()
        return 2

    assert await gather_or_cancel([slow(), quick()]) == [1, 2]
    assert await gather_or_cancel([]) == []


async def test_gather_or_cancel_raises_the_bare_error_and_leaves_no_task() -> None:
    lingering = Lingering()
    with pytest.raises(ValueError, match="broken"):
        await gather_or_cancel([lingering.run(), _fail(ValueError("broken"))])
    assert lingering.cleaned
    assert not _others()


async def test_failed_gather_or_cancel_leaves_its_task_uncancelled() -> None:
    me = asyncio.current_task()
    assert me is not None
    with pytest.raises(ValueError, match="broken"):
        await gather_or_cancel([Lingering().run(), _fail(ValueError("broken"))])
    assert me.cancelling() == 0


async def test_cancelled_gather_or_cancel_cancels_all() -> None:
    lingering = [Lingering(), Lingering()]
    task = asyncio.create_task(gather_or_cancel(each.run() for each in lingering))
    await wait_until(lambda: all(each.started for each in lingering))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(each.cleaned for each in lingering)
    assert not _others()


async def test_gather_or_cancel_raises_cancellation_over_a_clean_up_error() -> None:
    lingering = Lingering(ValueError("broken while cleaning up"))
    task = asyncio.create_task(gather_or_cancel([lingering.run()]))
    await wait_until(lambda: lingering.started)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_first_of_returns_when_one_ends_and_leaves_no_task() -> None:
    lingering = Lingering()
    await first_of(lingering.run(), _return(1))
    assert lingering.cleaned
    assert not _others()


async def test_first_of_raises_the_error_of_the_first() -> None:
    with pytest.raises(ValueError, match="broken"):
        await first_of(Lingering().run(), _fail(ValueError("broken")))
    assert not _others()


@pytest.mark.parametrize(
    "works",
    [
        pytest.param(lambda: [_fail(ValueError("1")), _fail(ValueError("2"))], id="two errors at once"),
        pytest.param(lambda: [_fail(ValueError("1")), Lingering(ValueError("late")).run()], id="a clean-up error"),
    ],
)
async def test_first_of_leaves_no_error_unretrieved(works: Callable[[], list[Awaitable[int]]]) -> None:
    unretrieved: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unretrieved.append(context))
    with pytest.raises(ValueError, match="1"):
        await first_of(*works())  # type: ignore[arg-type]  # they are coroutines
    assert not _others()
    gc.collect()
    assert not unretrieved


async def test_cancelled_first_of_cancels_all() -> None:
    lingering = [Lingering(), Lingering()]
    task = asyncio.create_task(first_of(*(each.run() for each in lingering)))
    await wait_until(lambda: all(each.started for each in lingering))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(TIMEOUT_S):
            await task
    assert all(each.cleaned for each in lingering)
    assert not _others()
