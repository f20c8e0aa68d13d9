"""Scenario F10: heartbeats that do not come through, once, or for as long as the lease lasts."""

import pytest

from tests.support.evidence.outputs import verified
from tests.support.faults.calls import error, failed_entry, reset
from tests.support.faults.gateway import Fault
from tests.support.site import Counts, OpenSite
from tests.support.stages import KEY, HoldJob
from tests.support.waiting import wait_until

_VISIBILITY_TIMEOUT_S = 6
_HEARTBEAT = "ChangeMessageVisibilityBatch"


@pytest.mark.parametrize(
    "fault", [error(500, "InternalError"), reset, failed_entry("InternalError")], ids=["500", "reset", "entry"]
)
async def test_one_that_fails_is_sent_again_and_nothing_happens(
    open_site: OpenSite, hold_job: HoldJob, fault: Fault
) -> None:
    site = await open_site(visibility_timeout_s=_VISIBILITY_TIMEOUT_S)
    missed = site.gateway.fault("sqs", _HEARTBEAT, fault, times=1)
    held = await hold_job(site, "download")
    await missed.has_struck()
    await wait_until(
        lambda: len([call for call in site.history.of("sqs", _HEARTBEAT) if call.served]) >= 3,
        what="three heartbeats to come through",
    )
    held.let_go()
    (done,) = await held.worker.wait_for("job_succeeded")
    await wait_until(site.is_drained, what="the message to be deleted")
    assert done["receive_count"] == 1
    assert held.worker.events("job_lease_lost") == []
    await verified(site, KEY)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        pytest.param(error(500, "InternalError"), "no heartbeat succeeded", id="for the whole lease"),
        pytest.param(failed_entry("MessageNotInflight"), "MessageNotInflight", id="not in flight"),
        pytest.param(failed_entry("ReceiptHandleIsInvalid"), "ReceiptHandleIsInvalid", id="handle invalid"),
    ],
)
async def test_a_lost_lease_abandons_the_job_neither_committed_nor_deleted(
    open_site: OpenSite, hold_job: HoldJob, fault: Fault, why: str
) -> None:
    site = await open_site(visibility_timeout_s=_VISIBILITY_TIMEOUT_S)
    refused = site.gateway.fault("sqs", _HEARTBEAT, fault)
    held = await hold_job(site, "download")
    (lost,) = await held.worker.wait_for("job_lease_lost")
    assert why in lost["error"]
    assert lost["receive_count"] == 1
    assert await site.manifests() == {}
    assert site.history.of("sqs", "DeleteMessage") == []
    assert site.history.of("sqs", "ChangeMessageVisibility") == []
    refused.lift()
    held.let_go()
    (done,) = await held.worker.wait_for("job_succeeded")
    await wait_until(site.is_drained, what="the message to be deleted")
    assert done["receive_count"] > 1
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)
    await verified(site, KEY)
