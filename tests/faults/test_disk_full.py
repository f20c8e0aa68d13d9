"""No space left in the scratch folder: the job is retried, the worker lives."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import StartWorker
from tests.support.outputs import verified
from tests.support.site import Counts, Site

_DISK_BYTES = 16 * 1024**2


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", folder],  # noqa: S607 - wherever it lies
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a small file system here: {error}")
    yield folder
    subprocess.run(["umount", folder], check=True)  # noqa: S607 - wherever it lies


@pytest.mark.parametrize("stage", ["download", "split"])
async def test_a_full_disk_costs_a_retry_and_no_worker(
    site: Site, tiny_disk: Path, start_worker: StartWorker, five_minutes: Path, stage: str
) -> None:
    worker = await start_worker(site, scratch=tiny_disk, STT_RETRY_TIMEOUT_S="1")
    await worker.wait_for("worker_started")
    await site.put_recordings([five_minutes])
    source_bytes = five_minutes.stat().st_size
    left = source_bytes // 2 if stage == "download" else source_bytes * 3 // 2
    filler = tiny_disk / "filler"
    free = os.statvfs(tiny_disk)
    filler.write_bytes(bytes(free.f_bavail * free.f_frsize - left))
    await site.send(site.job(five_minutes.name))
    (retried,) = await worker.wait_for("job_retried")
    assert (retried["failure"], retried["code"]) == ("transient", "disk_full")
    filler.unlink()
    (done,) = await worker.wait_for("job_succeeded")
    assert done["receive_count"] > 1
    await verified(site, five_minutes.name)
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)
