"""Scenario F10: heartbeats that fail once, or for as long as the lease lasts."""

from pathlib import Path

from tests.support.commands import StartWorker
from tests.support.evidence.history import Call
from tests.support.evidence.outputs import verified
from tests.support.faults.calls import error, failed_entry, reset
from tests.support.site import Counts, OpenSite, Site
from tests.support.stages import KEY, HoldJob, hold_download
from tests.support.waiting import wait_until

_VISIBILITY_TIMEOUT_S = 6
_HEARTBEAT = "ChangeMessageVisibilityBatch"


def _served(site: Site) -> list[Call]:
    """The heartbeats that extended the lease."""
    return [call for call in site.history.of("sqs", _HEARTBEAT) if call.served and not call.faults]


async def _wait_for_served(site: Site, count: int) -> None:
    await wait_until(lambda: len(_served(site)) >= count, what=f"{count} heartbeats to be served")


async def test_failed_heartbeats_are_sent_again_and_a_long_job_is_delivered_once(
    open_site: OpenSite, hold_job: HoldJob
) -> None:
    site = await open_site(visibility_timeout_s=_VISIBILITY_TIMEOUT_S)
    held = await hold_job(site)
    for fault in (error(500, "InternalError"), reset, failed_entry("InternalError")):
        missed = site.gateway.fault("sqs", _HEARTBEAT, fault, times=1)
        await missed.has_struck()
        await _wait_for_served(site, len(_served(site)) + 1)
    # Three intervals of a third of the timeout with a fault, and these: more than two visibility timeouts in all.
    await _wait_for_served(site, 6)
    held.resume()
    (done,) = await held.worker.wait_for("job_succeeded")
    await wait_until(site.is_drained, what="the message to be deleted")
    assert done["receive_count"] == 1
    assert held.worker.events("job_lease_lost") == []
    await verified(site, KEY)


async def test_lost_lease_abandons_the_job_without_commit_or_delete(
    open_site: OpenSite, start_worker: StartWorker, speech: Path
) -> None:
    site = await open_site(visibility_timeout_s=_VISIBILITY_TIMEOUT_S)
    worker = await start_worker(site)
    await worker.wait_for("worker_started")
    faults = {
        "no heartbeat succeeded": error(500, "InternalError"),
        "MessageNotInflight": failed_entry("MessageNotInflight"),
    }
    for number, (why, fault) in enumerate(faults.items()):
        key = f"{number}.wav"
        await site.put_recordings({key: speech})
        refused = site.gateway.fault("sqs", _HEARTBEAT, fault)
        with hold_download(site, key):
            await site.send(site.job(key))
            lost = (await worker.wait_for("job_lease_lost", count=number + 1))[number]
        assert why in lost["error"]
        assert lost["receive_count"] == 1
        assert len(await site.manifests()) == len(site.history.of("sqs", "DeleteMessage")) == number
        assert site.history.of("sqs", "ChangeMessageVisibility") == []
        refused.lift()
        done = (await worker.wait_for("job_succeeded", count=number + 1))[number]
        await wait_until(site.is_drained, what="the message to be deleted")
        assert done["receive_count"] > 1
        await verified(site, key)
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)
