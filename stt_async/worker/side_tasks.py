"""The tasks that run beside the daemon: heartbeats, probes, notices, the watchdog."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog

_log = structlog.get_logger()

Work = Callable[[], Coroutine[Any, Any, None]]


@asynccontextmanager
async def side_tasks(works: Mapping[str, Work]) -> AsyncIterator[None]:
    """Run `works`, by name, while the block runs; cancel them at its end.

    A side task that fails is logged by its name and cancels the block: the daemon drains and releases its messages.

    Raises:
        ExceptionGroup: with the error of each side task that failed.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_logged(name, work), name=name) for name, work in works.items()]
        yield
        for task in tasks:
            task.cancel()


async def _logged(name: str, work: Work) -> None:
    try:
        await work()
    except Exception:
        _log.exception("side_task_failed", task=name)
        raise
