"""Scenarios F21, F23 and F24: a service refuses all, or cannot be reached, or refuses one job alone."""

from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.commands import StartWorker, Worker
from tests.support.evidence.history import Call, Service
from tests.support.evidence.outputs import verified
from tests.support.fakes.imds import FakeImds
from tests.support.faults.calls import error
from tests.support.faults.names import NAME, Names
from tests.support.faults.proxy import OpenProxy
from tests.support.faults.tls import Authority, server_context
from tests.support.outage import see_it_pause, see_it_recover
from tests.support.site import Site
from tests.support.stages import KEY, HoldJob
from tests.support.waiting import wait_until

_SHORT_RETRIES = {"STT_RETRY_TIMEOUT_S": "1", "STT_RETRY_MAX_WAIT_S": "0.2"}
_MOST_FAILURES = 5
_EARLY, _LAST, _LATE = "early.wav", "last.wav", [f"late-{number}.wav" for number in range(4)]


async def _send_and_keep_before_its_last_receive(site: Site, key: str) -> str:
    """Send a job and receive its message four times; it stays hidden, and is let go by the handle that is returned."""
    await site.send(site.job(key))
    for visibility_timeout_s in (0, 0, 0, 3600):
        received = await site.sqs.receive_message(
            QueueUrl=site.services.queues.url, VisibilityTimeout=visibility_timeout_s
        )
        (message,) = received["Messages"]
    return message["ReceiptHandle"]


async def _let_go(site: Site, receipt_handle: str) -> None:
    await site.sqs.change_message_visibility(
        QueueUrl=site.services.queues.url, ReceiptHandle=receipt_handle, VisibilityTimeout=0
    )


async def _suffer(site: Site, worker: Worker, last: str) -> None:
    """Send jobs in an outage that has begun: two that may be received before it shows, one for the last time."""
    await _let_go(site, last)
    await site.send(site.job(_EARLY))
    await worker.wait_for("breaker_opened")
    await see_it_pause(site, worker, _LATE)
    failures = [line for line in worker.lines() if line.get("event") in {"job_retried", "job_suspended", "job_failed"}]
    assert len(failures) <= _MOST_FAILURES


async def _recover(site: Site, worker: Worker) -> None:
    """See that the worker goes on by itself once the outage is over, and that it cost nobody."""
    receives = await see_it_recover(site, worker, late=_LATE, jobs=2 + len(_LATE))
    assert receives[_LAST] == 5


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(("minio", "*", "AccessDenied"), id="MinIO, everything"),
        pytest.param(("minio", "GetObject", "AccessDenied"), id="MinIO, every GET"),
        pytest.param(("minio", "*", "RequestTimeTooSkewed"), id="MinIO, by the clock"),
        pytest.param(("s3", "*", "AccessDenied"), id="S3"),
        pytest.param(("s3", "*", "ExpiredToken"), id="S3, credentials run out for long"),
    ],
)
async def test_while_a_service_refuses_all_nothing_is_received_and_no_job_is_spent(
    site: Site, start_worker: StartWorker, speech: Path, refusal: tuple[Service, str, str]
) -> None:
    service, operation, code = refusal
    await site.put_recordings(dict.fromkeys([_EARLY, _LAST, *_LATE], speech))
    last = await _send_and_keep_before_its_last_receive(site, _LAST)
    worker = await start_worker(site, **_SHORT_RETRIES)
    await worker.wait_for("worker_started")
    with site.gateway.fault(service, operation, error(403, code)):
        await _suffer(site, worker, last)
    await _recover(site, worker)
    (opened,) = worker.events("breaker_opened")
    assert opened["code"] == code


async def test_a_certificate_that_expires_stops_the_receiving_until_it_is_renewed(
    site: Site, start_worker: StartWorker, open_proxy: OpenProxy, speech: Path, tmp_path: Path
) -> None:
    await site.put_recordings(dict.fromkeys([_EARLY, _LAST, *_LATE], speech))
    last = await _send_and_keep_before_its_last_receive(site, _LAST)
    authority = Authority(tmp_path)
    good, expired = authority.certificate(), authority.certificate(ended=timedelta(hours=1))
    tls = server_context(good)
    proxy = await open_proxy(site.gateway.objects_url, tls)
    worker = await start_worker(
        site,
        STT_MINIO_ENDPOINT=proxy.endpoint,
        STT_MINIO_SECURE="true",
        SSL_CERT_FILE=str(authority.file),
        **_SHORT_RETRIES,
    )
    await worker.wait_for("worker_started")
    await proxy.refuse()
    tls.load_cert_chain(expired)
    await proxy.accept()
    await _suffer(site, worker, last)
    tls.load_cert_chain(good)
    await _recover(site, worker)
    (opened,) = worker.events("breaker_opened")
    assert opened["code"] == "unreachable"
    assert "certificate has expired" in opened["error"]


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["STT_MINIO_ENDPOINT", "AWS_ENDPOINT_URL_S3"])
async def test_a_name_that_no_longer_resolves_stops_the_receiving_until_it_does(
    site: Site, start_worker: StartWorker, open_proxy: OpenProxy, *, speech: Path, names: Names, variable: str
) -> None:
    await site.put_recordings(dict.fromkeys([_EARLY, _LAST, *_LATE], speech))
    last = await _send_and_keep_before_its_last_receive(site, _LAST)
    proxy = await open_proxy(site.gateway.objects_url)
    address = proxy.endpoint.replace("127.0.0.1", NAME)
    worker = await start_worker(
        site,
        **_SHORT_RETRIES,
        **names.environment(),
        **{variable: address if variable.startswith("STT") else f"http://{address}"},
    )
    await worker.wait_for("worker_started")
    names.forget()
    await proxy.refuse()  # an address looked up before serves for some seconds more, as does a connection
    await _suffer(site, worker, last)
    await wait_until(names.asked_in_vain, what="a probe to look for the name", timeout_s=60)
    await proxy.accept()
    names.remember()
    await _recover(site, worker)


async def test_a_recording_that_is_refused_alone_is_a_dead_letter_and_stops_nobody(
    site: Site, start_worker: StartWorker, speech: Path
) -> None:
    forbidden = "0-forbidden.wav"  # the first that a probe would read
    keys = [f"{number}.wav" for number in range(1, 5)]
    await site.put_recordings(dict.fromkeys([forbidden, *keys], speech))
    site.gateway.fault("minio", "GetObject", error(403, "AccessDenied"), where=lambda call: call.key == forbidden)
    await _let_go(site, await _send_and_keep_before_its_last_receive(site, forbidden))
    for key in keys:
        await site.send(site.job(key))
    worker = await start_worker(site)
    done = await worker.wait_for("job_succeeded", count=len(keys))
    await wait_until(site.is_drained, what="all messages to be deleted")
    assert {line["receive_count"] for line in done} == {1}
    (letter,) = await site.take_dead_letters()
    assert letter.job["source_key"] == forbidden
    assert letter.attributes["code"] == "AccessDenied"
    assert forbidden in letter.attributes["reason"]
    assert worker.events("breaker_opened") == []


async def test_credentials_that_are_renewed_within_the_call_cost_nothing(
    site: Site, start_worker: StartWorker, speech: Path
) -> None:
    await site.put_recordings([speech])
    worker = await start_worker(site)
    await worker.wait_for("worker_started")

    def is_segment(call: Call) -> bool:
        return not call.is_of_manifest

    site.gateway.fault("s3", "PutObject", error(400, "ExpiredToken"), times=3, where=is_segment)
    site.gateway.fault("sqs", "DeleteMessage", error(403, "ExpiredToken"), times=1)
    await site.send(site.job(speech.name))
    (done,) = await worker.wait_for("job_succeeded")
    await wait_until(site.is_drained, what="the message to be deleted")
    assert done["receive_count"] == 1
    assert worker.events("breaker_opened") == []
    assert worker.events("message_unsettled") == []
    await verified(site, speech.name)


async def test_a_role_whose_credentials_cannot_be_renewed_for_a_while_costs_nothing(
    site: Site, hold_job: HoldJob, imds: FakeImds
) -> None:
    # Nine minutes before their end botocore renews them at each call, or makes do with what it has.
    imds.has_role(site.services.servers.objects.owner, for_s=540)
    role = imds.environment() | {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    held = await hold_job(site, "download", **role)
    await imds.set_mode("down")
    await held.worker.wait_for("imds_failed")
    held.let_go()
    (done,) = await held.worker.wait_for("job_succeeded")
    await wait_until(site.is_drained, what="the message to be deleted")
    assert done["receive_count"] == 1
    await verified(site, KEY)


@pytest.mark.parametrize(
    "variable",
    ["STT_MINIO_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_SQS"],
)
async def test_a_name_that_does_not_resolve_ends_the_worker_before_it_receives(
    site: Site, start_worker: StartWorker, variable: str
) -> None:
    await site.send(site.job("any.wav"))
    address = "nowhere.invalid"  # RFC 6761, section 6.4: never resolves
    worker = await start_worker(
        site, **_SHORT_RETRIES, **{variable: address if variable.startswith("STT") else f"http://{address}"}
    )
    assert await worker.wait() == 3
    assert "nowhere.invalid" in worker.process.log.read_text()
    (letter,) = await site.take_messages()
    assert letter.receive_count == 1  # by us
