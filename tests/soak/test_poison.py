"""Scenario F5, measured: the cost for other jobs of a recording that kills each child that splits it."""

import asyncio
import os
import random
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.soak.jobs import SOURCE_LATENCY_S, Commits, excerpts, wait_for_commits
from tests.support.children import kill_splitting_children
from tests.support.commands import StartWorker
from tests.support.faults.calls import delay
from tests.support.site import OpenSite, Site
from tests.support.waiting import wait_until

JOBS = min(600, int(os.environ.get("STT_TEST_SOAK_JOBS", "150")))
POISON = "poison.wav"
MAX_RECEIVES = 3
_WORKER = {"STT_PROCESSES": "2", "STT_SLOTS": "4", "STT_DOWNLOADS": "4"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_recording_that_kills_its_child_costs_the_others_little(
    open_site: OpenSite, start_worker: StartWorker, speech: Path, five_minutes: Path
) -> None:
    calm = await _jobs_s(await open_site(), start_worker, speech, poison=None)
    rough = await _jobs_s(await open_site(), start_worker, speech, poison=five_minutes)
    print(  # noqa: T201 - the result, shown with -s
        f"\n{JOBS} jobs: {calm:.2f} jobs/s; beside a recording that kills {MAX_RECEIVES} children: "
        f"{rough:.2f} jobs/s, {rough / calm:.2f} of that rate"
    )


async def _jobs_s(site: Site, start_worker: StartWorker, speech: Path, *, poison: Path | None) -> float:
    """Return the rate at which a worker does the other jobs, per second."""
    rng = random.Random(5)  # noqa: S311 - no secret
    recordings = excerpts(speech, rng)
    keys = [f"{number:05d}.wav" for number in range(JOBS)]
    await site.set_max_receives(MAX_RECEIVES)
    await site.put_recordings({key: rng.choice(recordings) for key in keys})
    site.gateway.fault("minio", "GetObject", delay(SOURCE_LATENCY_S))
    worker = await start_worker(site, **_WORKER)
    await worker.wait_for("worker_started")
    async with AsyncExitStack() as stack:
        if poison is not None:
            await site.put_recordings({POISON: poison})
            killing = asyncio.create_task(kill_splitting_children(worker, source_bytes=poison.stat().st_size))
            stack.callback(killing.cancel)
            await site.send(site.job(POISON))
        began_s = time.monotonic()
        for key in keys:
            await site.send(site.job(key))
        await wait_for_commits(Commits(site.gateway), JOBS)
        elapsed_s = time.monotonic() - began_s
        await wait_until(site.is_drained, what="all messages to be deleted", timeout_s=120)
        assert {line["receive_count"] for line in worker.events("job_succeeded")} == {1}
        assert len(worker.events("child_lost")) == (0 if poison is None else MAX_RECEIVES)
        assert [letter.job["source_key"] for letter in await site.take_dead_letters()] == (
            [] if poison is None else [POISON]
        )
    return JOBS / elapsed_s
