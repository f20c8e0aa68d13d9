"""What asyncio lacks: work finished although we are cancelled, many tasks with one error, the first of several."""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def finish_despite_cancel(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end even when cancelled meanwhile; the cancellation is raised afterwards.

    For what must not stay half done: deleting or releasing a message, aborting an upload. Bound it by a timeout.
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
    """Await all, at once, and return their results in order; when one fails, cancel the rest and raise its error."""
    tasks = [asyncio.create_task(work) for work in works]
    done = await _race(tasks, asyncio.FIRST_EXCEPTION)
    return [task.result() for task in done]


async def first_of(*works: Coroutine[Any, Any, object]) -> None:
    """Await all, at once, until the first ends; cancel the others. Its error, if any, is raised."""
    tasks = [asyncio.create_task(work) for work in works]
    for task in await _race(tasks, asyncio.FIRST_COMPLETED):
        task.result()


async def run_unless(event: Coroutine[Any, Any, object], work: Coroutine[Any, Any, T]) -> T | None:
    """Await `work` and return what it returns; if `event` ends first, cancel it and return None."""
    working = asyncio.create_task(work)
    try:
        await first_of(asyncio.wait({working}), event)
    finally:
        working.cancel()
        await finish_despite_cancel(_ended([working]))
    return None if working.cancelled() else working.result()


async def _race(tasks: Sequence[asyncio.Task[T]], return_when: str) -> list[asyncio.Task[T]]:
    """Wait as asyncio.wait does and return, in order, those that ended; cancel the others, and see them end.

    Not a TaskGroup: in 3.11 an error, even one of its clean-up, stands in there for our own cancellation, and the
    cancellation that it sends itself is never taken back (`Task.cancelling` stays above 0).
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
    """Return when all have ended; what they raise is seen, so that nothing complains of it later."""
    await asyncio.gather(*tasks, return_exceptions=True)
