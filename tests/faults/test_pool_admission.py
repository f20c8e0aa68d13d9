"""Long recordings that exceed the scratch space together take turns, stay within memory, and all succeed."""

import asyncio
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.children import children
from tests.support.commands import StartWorker, Worker
from tests.support.site import Counts, Site
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_SCRATCH_MAX_BYTES = 1_700_000_000
_MAX_FOLDERS = 2
"""Recordings that fit at once: each has 98 MB, and is admitted with eight times as much."""

_MEMORY_MAX_BYTES = 900_000_000
"""Of the worker, the fork server and four children. The decoded audio of all eight takes 3.1 GB, or twice as floats."""


async def test_eight_long_recordings_stay_within_scratch_space_and_memory(
    site: Site, start_worker: StartWorker, three_hours: Path
) -> None:
    keys = [f"{number}.wav" for number in range(8)]
    await site.put_recordings(dict.fromkeys(keys, three_hours))
    for key in keys:
        await site.send(site.job(key, source_size=three_hours.stat().st_size))
    worker = await start_worker(
        site, STT_PROCESSES="4", STT_SCRATCH_MAX_BYTES=str(_SCRATCH_MAX_BYTES), STT_LAYOUT="tar"
    )
    scratch_bytes, memory_bytes, folders = [], [], []
    done = asyncio.create_task(worker.wait_for("job_succeeded", count=len(keys), timeout_s=800))
    while not done.done():
        scratch_bytes.append(_scratch_bytes(worker))
        memory_bytes.append(_memory_bytes(worker))
        folders.append(len([path for path in worker.scratch.glob("worker-*/job-*") if path.suffix != ".gone"]))
        await asyncio.wait({done}, timeout=0.1)
    assert [line["receive_count"] for line in done.result()] == [1] * len(keys)
    assert 800_000_000 < max(scratch_bytes) < _SCRATCH_MAX_BYTES
    assert max(folders) == _MAX_FOLDERS
    assert 100_000_000 < max(memory_bytes) < _MEMORY_MAX_BYTES
    await wait_until(site.is_drained, what="all messages to be deleted")
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)
    manifests = await site.manifests()
    assert manifests.keys() == set(keys)
    assert {manifest["recording"]["truncated"] for manifest in manifests.values()} == {False}
    assert min(manifest["segments"][-1]["end_sec"] for manifest in manifests.values()) > 12_150
    assert not list(worker.scratch.glob("worker-*/job-*"))


def _scratch_bytes(worker: Worker) -> int:
    """Return the disk space of its files, including unnamed ones such as the decoded audio."""
    # Not rglob, which fails if a folder is removed meanwhile.
    named = _stats(Path(folder, name) for folder, _, names in os.walk(worker.scratch) for name in names)
    device = worker.scratch.stat().st_dev
    opened = _stats(file for pid in children(worker) for file in Path(f"/proc/{pid}/fd").glob("*"))
    unnamed = [found for found in opened if found.st_nlink == 0 and found.st_dev == device]
    taken = {found.st_ino: found.st_blocks * 512 for found in [*named, *unnamed] if stat.S_ISREG(found.st_mode)}
    return sum(taken.values())


def _stats(files: Iterable[Path]) -> list[os.stat_result]:
    found = []
    for file in files:
        with suppress(FileNotFoundError):
            found.append(file.stat())
    return found


def _memory_bytes(worker: Worker) -> int:
    """Return the memory of all its processes, each shared page counted once."""
    total = 0
    for process in [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total
