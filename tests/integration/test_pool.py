"""The process pool, with real children."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from stt_async.errors import PermanentError
from stt_async.params import SplitLimits, SplitParams
from stt_async.settings import Settings
from stt_async.worker.pool import Pool, Split, open_pool, split_timeout_s
from tests.support.jobs import answer, eat_memory, fail


@pytest_asyncio.fixture
async def pool() -> AsyncIterator[Pool]:
    async with open_pool(Settings(processes=2)) as running:
        yield running


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


async def test_job_that_runs_alone_overlaps_no_other(pool: Pool, speech: Path, tmp_path: Path) -> None:
    params, limits = SplitParams(), SplitLimits()
    async with asyncio.TaskGroup() as group:
        before = [
            group.create_task(pool.split(speech, made(tmp_path / f"before-{n}"), params, limits)) for n in range(3)
        ]
        alone = group.create_task(pool.split_alone(speech, made(tmp_path / "alone"), params, limits))
        after = [group.create_task(pool.split(speech, made(tmp_path / f"after-{n}"), params, limits)) for n in range(3)]
    only = alone.result()
    others: list[Split] = [task.result() for task in before + after]
    assert all(each.ended_s <= only.started_s or each.started_s >= only.ended_s for each in others)


async def test_child_that_wants_too_much_memory_fails_its_own_job_alone(pool: Pool) -> None:
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(MemoryError):
        await pool._call(60.0, eat_memory)
    assert await pool._call(60.0, answer) == 42
    assert {child.pid for child in psutil.Process().children(recursive=True)} == children


async def test_runtime_error_of_a_job_is_not_taken_for_a_broken_pool(pool: Pool) -> None:
    with pytest.raises(RuntimeError, match="primitive"):
        await pool._call(60.0, fail)
    assert await pool._call(60.0, answer) == 42


async def test_error_of_a_recording_comes_out_of_the_child_as_it_is(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "page.mp3").write_text("<html>")
    with pytest.raises(PermanentError) as caught:
        await pool.split(tmp_path / "page.mp3", made(tmp_path / "out"), SplitParams(), SplitLimits())
    assert caught.value.code == "not_audio"


@pytest.mark.parametrize(
    ("source_bytes", "bytes_s", "expected_s"),
    [
        (1_000, None, 600.0),  # never less than the floor
        (100_000_000, 1e9, 600.0),
        (100_000_000, 1e6, 2_000.0),  # twenty times what it should take
        (100_000_000, None, 12_500.0),  # nothing measured yet: a slow machine is assumed
        (10**12, 1e6, 21_600.0),  # never more than a job may take
    ],
)
def test_time_a_split_may_take_follows_its_size(source_bytes: int, bytes_s: float | None, expected_s: float) -> None:
    assert split_timeout_s(source_bytes, bytes_s, 21_600.0) == expected_s
