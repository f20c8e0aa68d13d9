"""Scenario F25: scratch has no space or no inode left. The job is retried, fewer are admitted, the worker lives."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import StartWorker, Worker
from tests.support.evidence.history import Call
from tests.support.evidence.outputs import verified
from tests.support.faults.calls import hold_before
from tests.support.site import Counts, Site
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)

_DISK_BYTES = 24 * 1024**2
_INODES = 64
_SOURCE_SHARES_LEFT = {"download": 0.5, "scratch": 3.0, "segment": 6.0}
"""Free space by the step that has too little, in sizes of the recording: the download takes 1 (8 kHz mu-law), the
decoded audio 4, the segments 4."""

_ESTIMATE_SHARE = 8
"""What the worker reserves for a job, in sizes of its recording."""

_INODES_LEFT = {"folder": 0, "download": 1, "folder of segments": 2, "scratch": 3, "segment": 6}
"""Free inodes by the step that has too few: a job takes them in this order, one each, then one for each segment."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB and 64 inodes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = f"size={_DISK_BYTES},nr_inodes={_INODES}"
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder],  # noqa: S607 - wherever the system has it
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a small file system here: {error}")
    yield folder
    subprocess.run(["umount", folder], check=True)  # noqa: S607 - wherever the system has it


def _fill_space(disk: Path, left: int) -> Callable[[], None]:
    filler = disk / "filler"
    free = os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - left)
    return filler.unlink


def _fill_inodes(disk: Path, left: int) -> Callable[[], None]:
    fillers = [disk / f"filler-{number}" for number in range(os.statvfs(disk).f_favail - left)]
    for filler in fillers:
        filler.touch()

    def free() -> None:
        for filler in fillers:
            filler.unlink()

    return free


@pytest.mark.parametrize("lacking", ["space", "inodes"])
async def test_full_disk_at_any_step_costs_a_retry_and_no_worker(
    *, site: Site, small_disk: Path, start_worker: StartWorker, five_minutes: Path, lacking: str
) -> None:
    worker = await start_worker(site, scratch=small_disk, STT_RETRY_TIMEOUT_S="1", STT_FORMAT="wav")
    await worker.wait_for("worker_started")
    source_bytes = five_minutes.stat().st_size
    bytes_left = {step: int(share * source_bytes) for step, share in _SOURCE_SHARES_LEFT.items()}
    steps, fill = (bytes_left, _fill_space) if lacking == "space" else (_INODES_LEFT, _fill_inodes)
    await site.put_recordings(dict.fromkeys(steps, five_minutes))

    for number, (step, left) in enumerate(steps.items(), start=1):
        free = fill(small_disk, left)
        await site.send(site.job(step))
        retried = (await worker.wait_for("job_retried", count=number))[-1]
        assert (retried["failure"], retried["code"]) == ("transient", "disk_full"), step
        free()
        await site.make_visible(await _released(site, number))
        done = (await worker.wait_for("job_succeeded", count=number))[-1]
        assert done["receive_count"] == 2, step
        await wait_until(lambda: not list(worker.scratch.glob("worker-*/job-*")), what="the job folder to be removed")
        await verified(site, step)
    await wait_until(site.is_drained, what="all messages to be deleted")
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)
    assert not worker.events("job_crashed")


async def test_full_disk_halves_the_jobs_admitted_together(
    site: Site, small_disk: Path, start_worker: StartWorker, speech: Path
) -> None:
    source_bytes = speech.stat().st_size
    two_jobs = 2 * _ESTIMATE_SHARE * source_bytes
    worker = await start_worker(
        site, scratch=small_disk, STT_RETRY_TIMEOUT_S="1", STT_SCRATCH_MAX_BYTES=str(two_jobs), STT_PROCESSES="2"
    )
    await worker.wait_for("worker_started")
    first, full, later = ["1.wav", "2.wav", "3.wav", "4.wav"], "full.wav", ["6.wav", "7.wav", "8.wav"]
    await site.put_recordings(dict.fromkeys([*first, full, *later], speech))

    async def expect_folders(keys: list[str], count: int) -> None:
        """While no download continues, so many of these jobs have a folder, and the others wait for one."""

        async def are_held() -> bool:
            counts = await site.counts()
            return counts.visible == 0 and counts.in_flight >= len(keys)

        with site.gateway.fault("minio", "GetObject", hold_before) as held:
            for key in keys:
                await site.send(site.job(key, source_size=source_bytes))
            await wait_until(are_held, what="all messages to be received")
            await held.has_struck(count)
            await wait_until(lambda: len(_folders(worker)) == count, what=f"{count} jobs to have a folder")

    await expect_folders(first, 2)
    before = await worker.wait_for("job_succeeded", count=4)
    assert _most_at_once(before) == 2

    free = _fill_space(small_disk, source_bytes // 2)
    await site.send(site.job(full, source_size=source_bytes))
    (narrowed, *_) = await worker.wait_for("scratch_full")
    assert narrowed["admitted_bytes"] == two_jobs // 2
    free()
    await worker.wait_for("job_retried")  # by then a probe has read from the source
    await expect_folders(later, 1)
    after = (await worker.wait_for("job_succeeded", count=8))[4:]
    assert _most_at_once(after) == 1
    await wait_until(site.is_drained, what="all messages to be deleted")


async def _released(site: Site, count: int) -> str:
    """Wait until so many messages were released, and return the last one's receipt handle."""

    def releases() -> list[Call]:
        return [call for call in site.history.of("sqs", "ChangeMessageVisibility") if call.succeeded]

    await wait_until(lambda: len(releases()) == count, what=f"{count} messages to be released")
    return releases()[-1].receipts[0]


def _folders(worker: Worker) -> list[Path]:
    return [folder for folder in worker.scratch.glob("worker-*/job-*") if folder.suffix != ".gone"]


def _most_at_once(jobs: list[Any]) -> int:
    """How many of these jobs had their folders at the same time."""
    spans: list[tuple[float, float]] = [(job["stages"]["fetch"][0], job["stages"]["put"][1]) for job in jobs]
    return max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)
