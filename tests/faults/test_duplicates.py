"""SQS delivers at least once: the same job twice is one result."""

from pathlib import Path

import pytest

from tests.support.commands import StartWorker
from tests.support.outputs import verified
from tests.support.proxy import OpenProxy
from tests.support.site import Counts, Site
from tests.support.waiting import wait_until


@pytest.mark.parametrize("workers", [1, 2])
async def test_one_job_delivered_twice_at_once_is_one_result(
    site: Site, start_worker: StartWorker, open_proxy: OpenProxy, speech: Path, workers: int
) -> None:
    await site.put_recordings([speech])
    proxy = await open_proxy(site.services.servers.objects.url)
    slots = str(2 // workers)
    team = [
        await start_worker(site, STT_SLOTS=slots, STT_PROCESSES=slots, STT_MINIO_ENDPOINT=proxy.endpoint)
        for _ in range(workers)
    ]
    for worker in team:
        await worker.wait_for("worker_started")
    proxy.hold("down")
    for _ in range(2):
        await site.send(site.job(speech.name))
    await wait_until(
        lambda: sum(len(list(worker.scratch.glob("worker-*/job-*"))) for worker in team) == 2,
        what="both deliveries to be on their way",
    )
    proxy.release()
    await wait_until(site.is_drained, what="both messages to be deleted")
    ends = [line["event"] for worker in team for line in worker.lines() if line["event"].startswith("job_")]
    assert set(ends) <= {"job_succeeded", "job_skipped"}
    assert len(ends) == 2
    await verified(site, speech.name)
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)
