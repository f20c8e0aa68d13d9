"""Scenario F7: SQS delivers at least once. The same job twice is one result."""

import signal
from pathlib import Path

import pytest

from tests.support.commands import StartWorker, Worker
from tests.support.evidence.outputs import verified
from tests.support.faults.calls import hold_before
from tests.support.faults.proxy import OpenProxy
from tests.support.site import Counts, OpenSite, Site
from tests.support.stages import KEY, HoldJob
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)


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
    commits = [call for call in site.history.of("s3", "PutObject") if call.is_of_manifest]
    assert sorted(call.status or 0 for call in commits) in ([200], [200, 412])  # a slow one finds the result there
    assert len(site.history.of("sqs", "DeleteMessage")) == 2


async def test_who_commits_second_reads_what_stands_and_is_done(
    site: Site, start_worker: StartWorker, speech: Path
) -> None:
    await site.put_recordings([speech])
    first = await start_worker(site, STT_SLOTS="1", STT_PROCESSES="1")
    second = await start_worker(site, STT_SLOTS="1", STT_PROCESSES="1")
    for worker in (first, second):
        await worker.wait_for("worker_started")
    with site.gateway.fault("s3", "PutObject", hold_before, where=lambda call: call.is_of_manifest, times=2) as both:
        for _ in range(2):
            await site.send(site.job(speech.name))
        await both.has_struck(2)
    for worker in (first, second):
        await worker.wait_for("job_succeeded")
    await wait_until(site.is_drained, what="both messages to be deleted")
    assert sorted(call.status or 0 for call in both.calls) == [200, 412]
    assert {call.sender for call in both.calls} == {first.name, second.name}
    reads = [call for call in site.history.of("s3", "GetObject") if call.is_of_manifest]
    assert [call.status for call in reads] == [404, 404, 200]
    segments = {call.key: call.request_sha256 for call in site.history.of("s3", "PutObject") if not call.is_of_manifest}
    manifest = await verified(site, speech.name)
    assert len(segments) == manifest["total_segments"]  # the same names, so the same bytes, from both


async def test_a_worker_frozen_for_longer_than_its_lease_changes_nothing_when_it_wakes(
    open_site: OpenSite, start_worker: StartWorker, hold_job: HoldJob, speech: Path
) -> None:
    site = await open_site(visibility_timeout_s=3)
    held = await hold_job(site, "download")
    frozen = held.worker
    frozen.signal(signal.SIGSTOP)
    heir = await start_worker(site, **held.variables)
    (done,) = await heir.wait_for("job_succeeded")
    assert done["receive_count"] == 2
    await wait_until(site.is_drained, what="the message to be deleted")
    standing = await verified(site, KEY)
    heir.signal(signal.SIGTERM)
    assert await heir.wait() == 0

    frozen.signal(signal.SIGCONT)
    held.let_go()
    await site.put_recordings({"next.wav": speech})
    await site.send(site.job("next.wav"))
    await wait_until(lambda: _ends(frozen, KEY), what="the job it held to be given up")
    await wait_until(lambda: _ends(frozen, "next.wav"), what="the next job to be done")
    await wait_until(site.is_drained, what="all messages to be deleted")
    assert await verified(site, KEY) == standing
    await verified(site, "next.wav")
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)


def _ends(worker: Worker, key: str) -> list[str]:
    """The events with which a worker told the end of the jobs of a recording."""
    lines = (line for line in worker.lines() if str(line.get("recording", "")).endswith(f"/{key}"))
    return [line["event"] for line in lines if line["event"].startswith("job_")]
