"""Scenario F25: no space or no inode left for scratch. The job is retried, fewer are let in, the worker lives."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import StartWorker, Worker
from tests.support.evidence.outputs import verified
from tests.support.faults.calls import hold_before
from tests.support.site import Counts, Site
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)

_DISK_BYTES = 24 * 1024**2
_INODES = 64
_SOURCE_SHARES = {"download": 0.5, "scratch": 3.0, "segment": 6.0}
"""What is left on the disk, in times the recording: it takes 1 (8 kHz mu-law), its decoded audio 4, its segments 4."""

_TAKEN_BY_A_ROOM = 8
"""Times the recording's size: what the worker sets aside for it."""

_INODES_LEFT = {"room": 0, "download": 1, "folder of segments": 2, "scratch": 3, "segment": 6}
"""For what there is none left: a job takes them in this order, one each, and then one for each segment."""


@contextmanager
def _mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder],  # noqa: S607 - wherever it lies
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a small file system here: {error}")
    yield folder
    subprocess.run(["umount", folder], check=True)  # noqa: S607 - wherever it lies


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 24 MB and a few files."""
    with _mounted(tmp_path / "disk", f"size={_DISK_BYTES},nr_inodes={_INODES}") as folder:
        yield folder


def _fill_space(disk: Path, left_bytes: int) -> Callable[[], None]:
    filler = disk / "filler"
    free = os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - left_bytes)
    return filler.unlink


def _fill_inodes(disk: Path, left: int) -> Callable[[], None]:
    fillers = [disk / f"filler-{number}" for number in range(os.statvfs(disk).f_favail - left)]
    for filler in fillers:
        filler.touch()

    def free() -> None:
        for filler in fillers:
            filler.unlink()

    return free


def _rooms(worker: Worker) -> list[Path]:
    return [room for room in worker.scratch.glob("worker-*/job-*") if room.suffix != ".gone"]


async def _retries_and_recovers(site: Site, worker: Worker, key: str, free: Callable[[], None]) -> None:
    """A job fails for want of room; once there is some, it is done, by the same worker."""
    await site.send(site.job(key))
    (retried, *_) = await worker.wait_for("job_retried")
    assert (retried["failure"], retried["code"]) == ("transient", "disk_full")
    free()
    (done,) = await worker.wait_for("job_succeeded")
    assert done["receive_count"] > 1
    await wait_until(lambda: not _rooms(worker), what="the rooms of the job to be removed")
    await verified(site, key)
    await wait_until(site.is_drained, what="the message to be deleted")
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)
    assert not worker.events("job_crashed")


@pytest.mark.parametrize("stage", _SOURCE_SHARES)
async def test_a_full_disk_costs_a_retry_and_no_worker(
    site: Site, small_disk: Path, start_worker: StartWorker, five_minutes: Path, stage: str
) -> None:
    worker = await start_worker(site, scratch=small_disk, STT_RETRY_TIMEOUT_S="1", STT_FORMAT="wav")
    await worker.wait_for("worker_started")
    await site.put_recordings([five_minutes])
    free = _fill_space(small_disk, int(_SOURCE_SHARES[stage] * five_minutes.stat().st_size))
    await _retries_and_recovers(site, worker, five_minutes.name, free)


@pytest.mark.parametrize("lacking", _INODES_LEFT)
async def test_no_inode_left_costs_a_retry_and_no_worker(
    site: Site, small_disk: Path, start_worker: StartWorker, five_minutes: Path, lacking: str
) -> None:
    worker = await start_worker(site, scratch=small_disk, STT_RETRY_TIMEOUT_S="1")
    await worker.wait_for("worker_started")
    await site.put_recordings([five_minutes])
    free = _fill_inodes(small_disk, _INODES_LEFT[lacking])
    await _retries_and_recovers(site, worker, five_minutes.name, free)


async def test_after_a_full_disk_jobs_come_in_one_by_one_that_came_in_two_by_two(
    site: Site, small_disk: Path, start_worker: StartWorker, speech: Path
) -> None:
    source_bytes = speech.stat().st_size
    two_rooms = 2 * _TAKEN_BY_A_ROOM * source_bytes
    worker = await start_worker(
        site, scratch=small_disk, STT_RETRY_TIMEOUT_S="1", STT_SCRATCH_MAX_BYTES=str(two_rooms), STT_PROCESSES="2"
    )
    await worker.wait_for("worker_started")
    first, full, later = ["1.wav", "2.wav", "3.wav", "4.wav"], "full.wav", ["6.wav", "7.wav", "8.wav"]
    await site.put_recordings(dict.fromkeys([*first, full, *later], speech))

    async def send_and_see(keys: list[str], rooms: int) -> None:
        """While no recording comes in, so many of these jobs have a room, and the others wait for one."""
        with site.gateway.fault("minio", "GetObject", hold_before):
            for key in keys:
                await site.send(site.job(key, source_size=source_bytes))
            await wait_until(lambda: _are_held(site, len(keys)), what="all messages to be received")
            await wait_until(lambda: len(_rooms(worker)) == rooms, what=f"{rooms} rooms to be taken")

    await send_and_see(first, 2)
    before = await worker.wait_for("job_succeeded", count=4)
    assert _most_at_once(before) == 2

    free = _fill_space(small_disk, source_bytes // 2)
    await site.send(site.job(full, source_size=source_bytes))
    (narrowed, *_) = await worker.wait_for("scratch_full")
    assert narrowed["admitted_bytes"] == two_rooms // 2
    free()
    await worker.wait_for("job_retried")  # by then a probe has read from the source
    await send_and_see(later, 1)
    after = (await worker.wait_for("job_succeeded", count=8))[4:]
    assert _most_at_once(after) == 1
    await wait_until(site.is_drained, what="all messages to be deleted")


async def _are_held(site: Site, count: int) -> bool:
    counts = await site.counts()
    return counts.visible == 0 and counts.in_flight >= count


def _most_at_once(jobs: list[Any]) -> int:
    """How many of these jobs were in their rooms at the same time."""
    spans: list[tuple[float, float]] = [(job["stages"]["fetch"][0], job["stages"]["put"][1]) for job in jobs]
    return max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)
