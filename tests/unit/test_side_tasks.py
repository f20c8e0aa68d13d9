"""Side tasks: what happens when one fails, and when the daemon ends."""

import asyncio

import pytest
from structlog.testing import capture_logs

from stt_async.worker.side_tasks import side_tasks


async def _for_ever() -> None:
    await asyncio.Event().wait()


async def _fail() -> None:
    raise ZeroDivisionError("a bug")


async def test_failed_side_task_is_logged_by_name_and_ends_the_daemon() -> None:
    drained = False

    async def daemon() -> None:
        nonlocal drained
        async with side_tasks({"heartbeats": _fail, "watchdog": _for_ever}):
            try:
                await _for_ever()
            finally:
                drained = True

    with capture_logs() as lines, pytest.raises(ExceptionGroup) as caught:
        await daemon()
    assert drained
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
    [line] = lines
    assert (line["event"], line["task"], line["log_level"]) == ("side_task_failed", "heartbeats", "error")


async def test_side_tasks_are_cancelled_without_a_log_line_when_the_daemon_ends() -> None:
    with capture_logs() as lines:
        async with asyncio.timeout(5), side_tasks({"heartbeats": _for_ever, "watchdog": _for_ever}):
            pass
    assert lines == []
