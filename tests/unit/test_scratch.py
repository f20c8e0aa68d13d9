"""Scratch space: its bound, its folders, and the folders of dead workers."""

import asyncio
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stt_async.errors import DISK_FULL, PermanentError, TransientError
from stt_async.worker.scratch import Scratch, open_scratch
from tests.unit.fakes import TIMEOUT_S, run_ready_tasks, wait_until

MOST_BYTES = 100
ENDINGS = ("leave", "fail", "cancel")


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    """Scratch space of 100 bytes."""
    return Scratch(tmp_path, MOST_BYTES)


class Job:
    """A job that holds scratch space until `leave`."""

    def __init__(self, scratch: Scratch, needed_bytes: int, entered: list["Job"]) -> None:
        self._scratch = scratch
        self._needed_bytes = needed_bytes
        self._entered = entered
        self._leave = asyncio.Event()
        self.folder: Path | None = None
        self.task = asyncio.create_task(self._stay())

    async def _stay(self) -> None:
        async with self._scratch.job_folder(self._needed_bytes) as self.folder:
            self._entered.append(self)
            await self._leave.wait()

    async def leave(self) -> None:
        self._leave.set()
        await self.task


async def test_space_is_granted_first_come_first_served(scratch: Scratch) -> None:
    entered: list[Job] = []
    first, large, small = (Job(scratch, size, entered) for size in (60, 80, 10))
    await run_ready_tasks()
    assert entered == [first]  # the small job would fit, but it came after the large one
    await first.leave()
    await wait_until(lambda: len(entered) == 3)
    assert entered == [first, large, small]
    await large.leave()
    await small.leave()


async def test_cancelled_waiting_job_admits_the_next(scratch: Scratch) -> None:
    entered: list[Job] = []
    first, large, small = (Job(scratch, size, entered) for size in (60, 80, 10))
    await run_ready_tasks()
    large.task.cancel()
    await wait_until(lambda: entered == [first, small])
    await first.leave()
    await small.leave()
    whole = Job(scratch, MOST_BYTES, entered)
    await wait_until(lambda: whole in entered)
    await whole.leave()


async def test_oversized_job_gets_the_whole_space(scratch: Scratch) -> None:
    entered: list[Job] = []
    small, huge, after = (Job(scratch, size, entered) for size in (1, MOST_BYTES * 1000, 1))
    await run_ready_tasks()
    assert entered == [small]
    await small.leave()
    await wait_until(lambda: huge in entered)
    await run_ready_tasks()
    assert after not in entered
    await huge.leave()
    await wait_until(lambda: after in entered)
    await after.leave()


@given(
    st.lists(st.tuples(st.integers(0, 150), st.sampled_from(["leave", "fail", "cancel"])), max_size=20), st.randoms()
)
def test_bound_holds_and_all_space_is_released(jobs: list[tuple[int, str]], rng: random.Random) -> None:
    folder = Path(os.environ["TMPDIR"]) / "budget"
    folder.mkdir()
    used = 0

    async def visit(scratch: Scratch, size: int, ending: str) -> None:
        nonlocal used
        async with scratch.job_folder(size):
            taken = min(MOST_BYTES, size)  # an oversized job takes the whole space
            used += taken
            try:
                assert used <= MOST_BYTES
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)
                if ending == "fail":
                    raise ZeroDivisionError
            finally:
                used -= taken

    async def run() -> None:
        scratch = Scratch(folder, MOST_BYTES)
        tasks = [asyncio.create_task(visit(scratch, *job)) for job in jobs]
        for task, (_, ending) in zip(tasks, jobs, strict=True):
            if ending == "cancel":
                for _ in range(rng.randrange(5)):
                    await asyncio.sleep(0)
                task.cancel()
        async with asyncio.timeout(TIMEOUT_S):
            results = await asyncio.gather(*tasks, return_exceptions=True)
            async with scratch.job_folder(MOST_BYTES):
                pass
        expected = (ZeroDivisionError, asyncio.CancelledError)
        assert all(result is None or isinstance(result, expected) for result in results)

    try:
        asyncio.run(run())
        assert list(folder.iterdir()) == []
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("ending", ENDINGS)
async def test_job_folder_is_removed_however_its_job_ends(scratch: Scratch, tmp_path: Path, ending: str) -> None:
    async def job() -> None:
        async with scratch.job_folder(10) as folder:
            (folder / "out").mkdir()
            (folder / "out" / "segment.flac").write_bytes(b"x")
            assert (folder.stat().st_mode & 0o777) == 0o700
            if ending == "fail":
                raise ZeroDivisionError
            if ending == "cancel":
                await asyncio.Event().wait()

    task = asyncio.create_task(job())
    await run_ready_tasks()
    task.cancel()
    [result] = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(result, {"leave": type(None), "fail": ZeroDivisionError, "cancel": BaseException}[ending])
    assert list(tmp_path.iterdir()) == []


def test_used_percent_agrees_with_df(scratch: Scratch, tmp_path: Path) -> None:
    df = subprocess.run(["df", "--output=pcent", tmp_path], capture_output=True, text=True, check=True)  # noqa: S607
    assert scratch.used_percent() == pytest.approx(int(df.stdout.split()[1].rstrip("%")), abs=2)


async def test_failed_folder_counts_as_a_full_disk_and_holds_no_space(tmp_path: Path) -> None:
    folder = tmp_path / "missing"
    scratch = Scratch(folder, 8)
    with pytest.raises(TransientError) as caught:
        async with scratch.job_folder(1):
            pytest.fail("the folder could not be created")
    assert caught.value.code == "disk_full"
    folder.mkdir()
    async with asyncio.timeout(TIMEOUT_S), scratch.job_folder(1):
        pass


def _worker_folders(scratch_dir: Path) -> list[Path]:
    return [entry for entry in scratch_dir.iterdir() if entry.is_dir()]


async def test_worker_has_its_own_folder_and_leaves_none(tmp_path: Path) -> None:
    scratch_dir = tmp_path / "deep" / "scratch"
    with open_scratch(scratch_dir, None) as scratch:
        [own] = _worker_folders(scratch_dir)
        assert str(os.getpid()) in own.name
        async with scratch.job_folder(1) as job_folder:
            assert job_folder.parent == own
        assert (scratch_dir.stat().st_mode & 0o777) == 0o700
    assert _worker_folders(scratch_dir) == []


_OPENED_BY_ANOTHER = """
import sys
from pathlib import Path
from stt_async.worker.scratch import open_scratch
with open_scratch(Path(sys.argv[1]), 1000):
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_worker(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """A function that starts another worker process in the same scratch space."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _OPENED_BY_ANOTHER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_only_folders_of_dead_workers_are_removed(
    tmp_path: Path, other_worker: Callable[[], subprocess.Popen[str]]
) -> None:
    dead, living = other_worker(), other_worker()
    dead.kill()
    dead.wait()
    [dead_folder] = tmp_path.glob(f"worker-{dead.pid}-*")
    [living_folder] = tmp_path.glob(f"worker-{living.pid}-*")
    (dead_folder / "job-x").mkdir()
    (tmp_path / "other").mkdir()
    with open_scratch(tmp_path, None):
        assert not dead_folder.exists()
        assert living_folder.exists()
        assert (tmp_path / "other").exists()


def test_workers_that_start_together_keep_each_others_folders(tmp_path: Path) -> None:
    def worker(_: int) -> bool:
        with open_scratch(tmp_path, 1000):
            return True

    with ThreadPoolExecutor(8) as workers:
        assert all(workers.map(worker, range(400)))
    assert _worker_folders(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "share"), [(TransientError(DISK_FULL, "full"), 0.5), (PermanentError("not_audio", "html"), 1.0)]
)
async def test_full_disk_halves_the_space(tmp_path: Path, error: Exception, share: float) -> None:
    most_bytes = 100
    scratch = Scratch(tmp_path, most_bytes)
    with pytest.raises(type(error)):
        async with scratch.job_folder(10):
            raise error
    assert scratch._capacity_bytes.total == most_bytes * share
    for _ in range(10):
        async with scratch.job_folder(10):
            pass
    assert scratch._capacity_bytes.total == most_bytes
