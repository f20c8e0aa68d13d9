"""What asyncio lacks: work that survives cancellation, many tasks with one error, the first of several."""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def finish_despite_cancel(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end even if this task is cancelled meanwhile; then raise the cancellation.

    For work that must not stay half done: settling a message, aborting an upload. Give it a timeout.
    """
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        task.exception()
        raise cancelled
    return task.result()


async def gather_or_cancel(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all at once and return their results in order; if one fails, cancel the others and raise its error."""
    tasks = [asyncio.create_task(work) for work in works]
    done = await _race(tasks, asyncio.FIRST_EXCEPTION)
    return [task.result() for task in done]


async def first_of(*works: Coroutine[Any, Any, object]) -> None:
    """Run all at once until the first ends, then cancel the others; raise the error of the first, if it failed."""
    tasks = [asyncio.create_task(work) for work in works]
    for task in await _race(tasks, asyncio.FIRST_COMPLETED):
        task.result()


async def run_unless(event: Coroutine[Any, Any, object], work: Coroutine[Any, Any, T]) -> T | None:
    """Return the result of `work`; if `event` ends first, cancel `work` and return None."""
    working = asyncio.create_task(work)
    try:
        await first_of(asyncio.wait({working}), event)
    finally:
        working.cancel()
        await finish_despite_cancel(_ended([working]))
    return None if working.cancelled() else working.result()


async def _race(tasks: Sequence[asyncio.Task[T]], return_when: str) -> list[asyncio.Task[T]]:
    """Wait like asyncio.wait and return the tasks that ended, in order; cancel the others and await their end.

    Not a TaskGroup: in 3.11 it raises an error, even of a clean-up, instead of a cancellation from outside, and never
    uncancels the task that it cancelled (`Task.cancelling` stays above 0).
    """
    if not tasks:
        return []
    try:
        done, _ = await asyncio.wait(tasks, return_when=return_when)
    finally:
        for task in tasks:
            task.cancel()
        await finish_despite_cancel(_ended(tasks))
    return [task for task in tasks if task in done]


async def _ended(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Return when all have ended. Their errors are retrieved, so asyncio does not log them."""
    await asyncio.gather(*tasks, return_exceptions=True)
