"""The process pool, with real children."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Barrier, Event

import psutil
import pytest
import pytest_asyncio
from structlog.testing import capture_logs
from structlog.typing import EventDict

from stt_async.errors import PermanentError, TransientError, WorkerLostError
from stt_async.params import SplitLimits, SplitParams
from stt_async.settings import Settings
from stt_async.worker.child import RECYCLE_AFTER_GROWTH_BYTES
from stt_async.worker.pool import Pool, TimedSplit, open_pool
from tests.support.child_tasks import (
    LEAK_BYTES,
    answer,
    die,
    die_while_answering,
    eat_memory,
    fail,
    leak,
    loop_for_ever,
    take,
    whoami,
)
from tests.support.waiting import wait_until


@pytest_asyncio.fixture
async def pool() -> AsyncIterator[Pool]:
    async with open_pool(Settings(processes=2)) as running:
        yield running


def new_folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


async def test_split_alone_overlaps_no_other_split(pool: Pool, speech: Path, tmp_path: Path) -> None:
    params, limits = SplitParams(), SplitLimits()
    async with asyncio.TaskGroup() as group:
        before = [
            group.create_task(pool.split(speech, new_folder(tmp_path / f"before-{n}"), params, limits))
            for n in range(3)
        ]
        alone = group.create_task(pool.split_alone(speech, new_folder(tmp_path / "alone"), params, limits))
        after = [
            group.create_task(pool.split(speech, new_folder(tmp_path / f"after-{n}"), params, limits)) for n in range(3)
        ]
    only = alone.result()
    others: list[TimedSplit] = [task.result() for task in before + after]
    assert all(each.ended_s <= only.started_s or each.started_s >= only.ended_s for each in others)


def children() -> set[int]:
    """Return the process ids of the pool's children and of the fork server."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def idle_pids(pool: Pool) -> set[int]:
    return {pid for child in pool._idle if (pid := child._process.pid)}


def losses(log: list[EventDict]) -> list[tuple[str, int | None, bool]]:
    return [(line["code"], line["exit_status"], line["in_job"]) for line in log if line["event"] == "child_lost"]


async def test_child_out_of_memory_fails_only_its_own_job(pool: Pool) -> None:
    neighbour = asyncio.create_task(pool._call(60.0, take, 1.0))
    with capture_logs() as log, pytest.raises(WorkerLostError) as caught:
        await pool._call(60.0, eat_memory)
    assert caught.value.code == "out_of_memory"
    assert losses(log) == [("out_of_memory", -signal.SIGKILL, True)]
    assert await neighbour in children()
    assert await pool._call(60.0, answer) == 42


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
async def test_child_that_dies_is_logged_once_and_fails_only_its_own_job(pool: Pool, signum: int) -> None:
    before = children()
    neighbour = asyncio.create_task(pool._call(60.0, take, 1.0))
    with capture_logs() as log, pytest.raises(WorkerLostError) as caught:
        await pool._call(60.0, die, signum)
    assert caught.value.code == "child_died"
    assert f"exit status -{int(signum)}" in caught.value.message
    assert losses(log) == [("child_died", -signum, True)]
    assert await neighbour in before
    async with asyncio.TaskGroup() as group:
        after = [group.create_task(pool._call(60.0, take, 0.2)) for _ in range(2)]
    assert len({task.result() for task in after} - before) == 1


@pytest.mark.parametrize("after_s", [0.01, 0.1, 0.2])
async def test_child_that_dies_while_answering_fails_only_its_own_job(pool: Pool, after_s: float) -> None:
    neighbour = asyncio.create_task(pool._call(60.0, take, 1.0))
    with suppress(WorkerLostError):  # on a fast machine, the answer may come first
        await pool._call(60.0, die_while_answering, after_s)
    await neighbour
    assert await pool._call(60.0, answer) == 42


@pytest.mark.parametrize("hang", ["busy", "stopped"])
async def test_child_that_hangs_is_killed_at_its_deadline(pool: Pool, hang: str) -> None:
    before = children()
    function = partial(loop_for_ever) if hang == "busy" else partial(die, signal.SIGSTOP)
    neighbour = asyncio.create_task(pool._call(60.0, take, 1.0))
    with capture_logs() as log, pytest.raises(WorkerLostError) as caught:
        await pool._call(0.5, function)
    assert caught.value.code == "child_hung"
    assert losses(log) == [("child_hung", -signal.SIGKILL, True)]
    assert len(children() & before) == len(before) - 1
    assert await neighbour in before


async def test_cancelled_job_kills_only_its_own_child(pool: Pool) -> None:
    before = children()
    neighbour = asyncio.create_task(pool._call(60.0, take, 1.0))
    hanging = asyncio.create_task(pool._call(60.0, loop_for_ever))
    await wait_until(lambda: len(pool._idle) == 0, what="both children to be busy")
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert len(children() & before) == len(before) - 1
    assert await neighbour in before
    assert await pool._call(60.0, answer) == 42


async def test_job_cancelled_during_a_fork_leaves_the_child_to_the_next_job(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    forking, go, fork = Event(), Event(), pool._fork

    def slow_fork() -> None:
        forking.set()
        go.wait()
        fork()

    monkeypatch.setattr(pool, "_fork", slow_fork)
    monkeypatch.setattr("stt_async.worker.child.RECYCLE_AFTER_JOBS", 1)
    await asyncio.gather(*(pool._call(60.0, take, 0.1) for _ in range(2)))
    waiting = asyncio.create_task(pool._call(60.0, answer))
    await wait_until(forking.is_set, what="a fork to start")
    waiting.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    monkeypatch.undo()
    assert await pool._call(60.0, answer) == 42
    assert len(pool._children) == 1


async def test_process_stuck_in_the_kernel_blocks_no_thread_of_the_pool(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stt_async.worker.child.EXIT_TIMEOUT_S", 0.1)
    working = asyncio.create_task(pool._call(60.0, loop_for_ever))
    await wait_until(lambda: len(pool._idle) == 1, what="one child to be busy")
    [stuck] = pool._children - set(pool._idle)
    with monkeypatch.context() as undone:
        undone.setattr(stuck._process, "kill", lambda: None)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        # Both threads of the pool must be free, even the one that waited for the answer of the stuck process.
        barrier = Barrier(2)
        loop = asyncio.get_running_loop()
        try:
            await asyncio.gather(*(loop.run_in_executor(pool._threads, barrier.wait, 10.0) for _ in range(2)))
        finally:
            undone.undo()
            stuck.end()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
async def test_dead_or_stopped_idle_children_are_replaced_for_a_job(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, signum: int
) -> None:
    monkeypatch.setattr("stt_async.worker.child.ACK_TIMEOUT_S", 1.0)
    idle = idle_pids(pool)
    for pid in idle:
        os.kill(pid, signum)
    with capture_logs() as log:
        assert await pool._call(60.0, take, 0.0) not in idle
    code = "child_died" if signum == signal.SIGKILL else "child_hung"
    assert losses(log) == [(code, -signal.SIGKILL, False)] * 2
    assert not children() & idle


async def test_killed_fork_server_is_restarted_for_a_job(pool: Pool) -> None:
    neighbour = asyncio.create_task(pool._call(60.0, take, 1.0))
    await wait_until(lambda: len(pool._idle) == 1, what="one child to be busy")
    (idle,) = idle_pids(pool)
    os.kill(psutil.Process(idle).ppid(), signal.SIGKILL)
    os.kill(idle, signal.SIGKILL)
    assert await pool._call(60.0, answer) == 42
    await neighbour


async def test_child_that_has_grown_is_replaced_before_its_next_job(pool: Pool) -> None:
    jobs = RECYCLE_AFTER_GROWTH_BYTES // LEAK_BYTES + 1
    with capture_logs() as log:
        pids = [await pool._call(60.0, leak) for _ in range(4 * jobs)]
    assert list(Counter(pids).values()) == [jobs] * 4
    recycled = [line for line in log if line["event"] == "child_recycled"]
    assert [line["jobs"] for line in recycled] == [jobs] * 4
    assert all(line["grown_bytes"] > RECYCLE_AFTER_GROWTH_BYTES for line in recycled)
    assert not losses(log)


async def test_child_is_replaced_after_its_maximum_of_jobs(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stt_async.worker.child.RECYCLE_AFTER_JOBS", 3)
    with capture_logs() as log:
        pids = [await pool._call(60.0, whoami) for _ in range(12)]
    assert set(Counter(pids).values()) == {3}
    assert not losses(log)


async def test_real_recordings_do_not_grow_a_child_to_its_limit(dev_data: Path, tmp_path: Path) -> None:
    recordings = sorted(file for file in dev_data.rglob("*") if file.suffix in {".mp3", ".ogg", ".flac", ".wav"})[:50]
    with capture_logs() as log:
        async with open_pool(Settings(processes=1)) as pool:
            for number, recording in enumerate(recordings):
                with suppress(PermanentError):
                    await pool.split(recording, new_folder(tmp_path / str(number)), SplitParams(), SplitLimits())
            (child,) = pool._idle
    assert child.jobs == len(recordings)
    assert child.grown_bytes < RECYCLE_AFTER_GROWTH_BYTES / 2
    assert [line for line in log if line["event"].startswith("child")] == []


async def test_children_that_cannot_start_raise_no_child() -> None:
    with capture_logs() as log, pytest.raises(TransientError) as caught:
        async with open_pool(Settings.model_construct(processes=2, job_timeout_s=60.0, child_max_bytes=1024)):
            pass
    assert caught.value.code == "no_child"
    assert len(losses(log)) == 1


async def test_children_are_killed_first_when_memory_runs_out(pool: Pool) -> None:
    scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in idle_pids(pool)]
    assert scores == [500, 500]


async def test_runtime_error_of_a_job_reaches_the_caller(pool: Pool) -> None:
    with pytest.raises(RuntimeError, match="primitive"):
        await pool._call(60.0, fail)
    assert await pool._call(60.0, answer) == 42


async def test_error_of_a_recording_reaches_the_caller(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "page.mp3").write_text("<html>")
    with pytest.raises(PermanentError) as caught:
        await pool.split(tmp_path / "page.mp3", new_folder(tmp_path / "out"), SplitParams(), SplitLimits())
    assert caught.value.code == "not_audio"
