"""Scenarios F22 and F24: S3 and SQS throttle, fail for a moment, hide an error behind a 200, or lose an answer."""

from collections.abc import Callable, Collection
from pathlib import Path

from tests.support.commands import StartWorker, Worker
from tests.support.evidence.history import Call
from tests.support.evidence.outputs import verified
from tests.support.faults.calls import error, error_in_200, lost_answer
from tests.support.faults.proxy import OpenProxy
from tests.support.site import Site
from tests.support.waiting import wait_until

_TAR = {"STT_LAYOUT": "tar", "STT_FORMAT": "wav", "STT_MULTIPART_CHUNKSIZE_BYTES": str(5 * 1024**2)}


def _of(prefix: str) -> Callable[[Call], bool]:
    return lambda call: call.key.startswith(prefix)


async def _expect_done_at_first_receive(site: Site, worker: Worker, keys: Collection[str]) -> None:
    for key in keys:
        await site.send(site.job(key))
    done = await worker.wait_for("job_succeeded", count=len(keys))
    await wait_until(site.is_drained, what="all messages to be deleted")
    assert {line["receive_count"] for line in done} == {1}
    assert worker.events("breaker_opened") == worker.events("message_unsettled") == []
    for key in keys:
        await verified(site, key)


async def test_objects_and_messages_survive_calls_that_fail_for_a_moment(
    site: Site, start_worker: StartWorker, five_minutes: Path
) -> None:
    faults = {
        "slow-down.wav": error(503, "SlowDown"),
        "500.wav": error(500, "InternalError"),
        "expired.wav": error(400, "ExpiredToken"),  # credentials that are renewed at the next call
        "lost-answer.wav": lost_answer,
    }
    await site.put_recordings(dict.fromkeys(faults, five_minutes))
    worker = await start_worker(site, STT_UPLOADS="8")
    await worker.wait_for("worker_started")
    for operation in ("ReceiveMessage", "DeleteMessage"):
        site.gateway.fault("sqs", operation, error(400, "ThrottlingException"), times=2)
    expired = error(403, "ExpiredToken")
    site.gateway.fault("sqs", "DeleteMessage", expired, times=1, where=lambda call: not call.faults)
    rules = [
        site.gateway.fault("s3", "PutObject", fault, times=times, where=_of(f"{key}/{name}"))
        for key, fault in faults.items()
        for name, times in (("segment", 6), ("metadata.json", 1))
    ]
    await _expect_done_at_first_receive(site, worker, faults)
    assert [rule.struck for rule in rules] == [6, 1] * len(faults)
    assert worker.events("throttled")[0]["width"] == 4


async def test_tars_that_s3_does_not_take_at_once_go_up_in_one_attempt(
    site: Site, start_worker: StartWorker, open_proxy: OpenProxy, five_minutes: Path
) -> None:
    faults = {
        "create.wav": ("CreateMultipartUpload", error(503, "SlowDown"), 2),
        "part.wav": ("UploadPart", error(500, "InternalError"), 2),
        "complete.wav": ("CompleteMultipartUpload", error(503, "SlowDown"), 2),
        "error-in-200.wav": ("CompleteMultipartUpload", error_in_200("InternalError"), 2),
        "lost-answer.wav": ("CompleteMultipartUpload", lost_answer, 1),
    }
    proxy = await open_proxy(site.gateway.objects_url)
    await site.put_recordings(dict.fromkeys(faults, five_minutes))
    worker = await start_worker(site, AWS_ENDPOINT_URL_S3=proxy.url, **_TAR)
    await worker.wait_for("worker_started")
    for key, (operation, fault, times) in faults.items():
        site.gateway.fault("s3", operation, fault, times=times, where=_of(f"{key}/"))
    proxy.cut("up", after=6_000_000)
    await _expect_done_at_first_receive(site, worker, faults)
    assert proxy.cut_is_done
    assert await site.open_uploads() == []
    created = [call.key for call in site.history.of("s3", "CreateMultipartUpload") if call.served]
    assert [len([each for each in created if each.startswith(f"{key}/")]) for key in faults] == [1] * len(faults)
