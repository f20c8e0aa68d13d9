"""Scenario F7: SQS delivers at least once. The same job twice is one result."""

import signal
from pathlib import Path

import pytest

from tests.support.commands import StartWorker, Worker
from tests.support.evidence.outputs import verified
from tests.support.faults.calls import hold_before
from tests.support.site import Counts, OpenSite, Site
from tests.support.stages import KEY, HoldJob
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("count", [1, 2])
async def test_job_run_twice_at_once_commits_once_and_deletes_both_messages(
    site: Site, start_worker: StartWorker, speech: Path, count: int
) -> None:
    await site.put_recordings([speech])
    slots = str(2 // count)
    workers = [await start_worker(site, STT_SLOTS=slots, STT_PROCESSES=slots) for _ in range(count)]
    for worker in workers:
        await worker.wait_for("worker_started")
    with site.gateway.fault("s3", "PutObject", hold_before, where=lambda call: call.is_of_manifest, times=2) as both:
        for _ in range(2):
            await site.send(site.job(speech.name))
        await both.has_struck(2)
    await wait_until(site.is_drained, what="both messages to be deleted")
    assert [event for worker in workers for event in _ends(worker, speech.name)] == ["job_succeeded"] * 2
    assert sorted(call.status or 0 for call in both.calls) == [200, 412]
    assert {call.sender for call in both.calls} == {worker.name for worker in workers}
    reads = [call for call in site.history.of("s3", "GetObject") if call.is_of_manifest]
    assert [call.status for call in reads] == [404, 404, 200]
    assert len(site.history.of("sqs", "DeleteMessage")) == 2
    segments = {call.key: call.request_sha256 for call in site.history.of("s3", "PutObject") if not call.is_of_manifest}
    manifest = await verified(site, speech.name)
    assert len(segments) == manifest["total_segments"]  # both attempts give the same names, and so the same bytes
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)


async def test_worker_frozen_beyond_its_lease_changes_nothing_when_it_wakes(
    open_site: OpenSite, start_worker: StartWorker, hold_job: HoldJob, speech: Path
) -> None:
    site = await open_site(visibility_timeout_s=6)
    held = await hold_job(site)
    frozen = held.worker
    frozen.signal(signal.SIGSTOP)
    successor = await start_worker(site)
    (done,) = await successor.wait_for("job_succeeded")
    assert done["receive_count"] == 2
    await wait_until(site.is_drained, what="the message to be deleted")
    committed = await verified(site, KEY)
    successor.signal(signal.SIGTERM)
    assert await successor.wait() == 0

    frozen.signal(signal.SIGCONT)
    held.resume()
    await site.put_recordings({"next.wav": speech})
    await site.send(site.job("next.wav"))
    await wait_until(lambda: _ends(frozen, KEY), what="the frozen job to end")
    await wait_until(lambda: _ends(frozen, "next.wav"), what="the next job to be done")
    await wait_until(site.is_drained, what="all messages to be deleted")
    assert await verified(site, KEY) == committed
    await verified(site, "next.wav")
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)


def _ends(worker: Worker, key: str) -> list[str]:
    """The events with which a worker logged the end of a recording's jobs."""
    lines = (line for line in worker.lines() if str(line.get("recording", "")).endswith(f"/{key}"))
    return [line["event"] for line in lines if line["event"].startswith("job_")]
