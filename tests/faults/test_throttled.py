"""Scenario F22: S3 and SQS ask for less, fail for a moment, fail behind a status of 200, or are not heard."""

from pathlib import Path

import pytest

from tests.support.commands import StartWorker
from tests.support.evidence.outputs import verified
from tests.support.faults.calls import error, error_in_200, lost_answer
from tests.support.faults.gateway import Fault
from tests.support.site import Site
from tests.support.waiting import wait_until

_TAR = {"STT_LAYOUT": "tar", "STT_FORMAT": "wav", "STT_MULTIPART_CHUNKSIZE_BYTES": str(5 * 1024**2)}


@pytest.mark.parametrize(
    "fault", [error(503, "SlowDown"), error(500, "InternalError"), lost_answer], ids=["SlowDown", "500", "lost answer"]
)
async def test_objects_that_s3_does_not_take_at_once_are_put_again(
    site: Site, start_worker: StartWorker, five_minutes: Path, fault: Fault
) -> None:
    await site.put_recordings([five_minutes])
    worker = await start_worker(site, STT_UPLOADS="8")
    await worker.wait_for("worker_started")
    segments = site.gateway.fault("s3", "PutObject", fault, times=6, where=lambda call: not call.is_of_manifest)
    commits = site.gateway.fault("s3", "PutObject", fault, times=1, where=lambda call: call.is_of_manifest)
    await site.send(site.job(five_minutes.name))
    (done,) = await worker.wait_for("job_succeeded")
    await wait_until(site.is_drained, what="the message to be deleted")
    assert (segments.struck, commits.struck) == (6, 1)
    assert done["receive_count"] == 1
    assert worker.events("breaker_opened") == []
    await verified(site, five_minutes.name)
    if any(call.error_code == "SlowDown" for call in segments.calls):
        narrowed = [line["width"] for line in worker.events("throttled")]
        assert narrowed
        assert narrowed[0] == 4


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        pytest.param("CreateMultipartUpload", error(503, "SlowDown"), id="create, SlowDown"),
        pytest.param("UploadPart", error(500, "InternalError"), id="part, 500"),
        pytest.param("CompleteMultipartUpload", error(503, "SlowDown"), id="complete, SlowDown"),
        pytest.param("CompleteMultipartUpload", error_in_200("InternalError"), id="complete, error behind a 200"),
        pytest.param("CompleteMultipartUpload", lost_answer, id="complete, done and not heard"),
    ],
)
async def test_a_tar_that_s3_does_not_take_at_once_goes_up_in_one_attempt(
    site: Site, start_worker: StartWorker, five_minutes: Path, operation: str, fault: Fault
) -> None:
    await site.put_recordings([five_minutes])
    worker = await start_worker(site, **_TAR)
    await worker.wait_for("worker_started")
    site.gateway.fault("s3", operation, fault, times=2 if fault is not lost_answer else 1)
    probes = len(site.history.of("s3", "CreateMultipartUpload"))
    await site.send(site.job(five_minutes.name))
    (done,) = await worker.wait_for("job_succeeded")
    await wait_until(site.is_drained, what="the message to be deleted")
    assert done["receive_count"] == 1
    await verified(site, five_minutes.name)
    assert await site.open_uploads() == []
    created = [call for call in site.history.of("s3", "CreateMultipartUpload")[probes:] if call.served]
    assert len(created) == 1


async def test_a_queue_that_asks_for_less_loses_nothing(site: Site, start_worker: StartWorker, speech: Path) -> None:
    await site.put_recordings([speech])
    worker = await start_worker(site)
    await worker.wait_for("worker_started")
    throttled = error(400, "ThrottlingException")
    site.gateway.fault("sqs", "ReceiveMessage", throttled, times=2)
    site.gateway.fault("sqs", "DeleteMessage", throttled, times=2)
    await site.send(site.job(speech.name))
    (done,) = await worker.wait_for("job_succeeded")
    await wait_until(site.is_drained, what="the message to be deleted")
    assert done["receive_count"] == 1
    assert worker.events("breaker_opened") == []
    await verified(site, speech.name)
