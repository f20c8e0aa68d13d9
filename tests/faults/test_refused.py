"""Scenarios F21, F23 and F24: a service refuses all jobs or one, or cannot be reached."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from ssl import SSLContext

import pytest

from tests.support.commands import StartWorker, Worker
from tests.support.evidence.history import Service
from tests.support.evidence.outputs import verified
from tests.support.fakes.imds import FakeImds
from tests.support.faults.calls import error
from tests.support.faults.names import NAME, Names
from tests.support.faults.proxy import OpenProxy, Proxy
from tests.support.faults.tls import Authority, server_context
from tests.support.outage import expect_pause, expect_recovery
from tests.support.site import Counts, OpenSite, Site
from tests.support.stages import KEY, HoldJob
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)

_SHORT_RETRIES = {"STT_RETRY_TIMEOUT_S": "1", "STT_RETRY_MAX_WAIT_S": "0.2"}
_MAX_FAILURES = 5
_FAILURES = {"job_retried", "job_suspended", "job_failed"}


@dataclass(frozen=True)
class Jobs:
    """The jobs of one outage."""

    early: str
    """Sent before the worker can know of the outage."""
    last: str
    """On its last receive."""
    last_receipt: str
    """Makes the last one visible."""
    late: list[str]
    """Sent when the worker knows."""


async def _prepare(site: Site, name: str, speech: Path) -> Jobs:
    early, last, *late = (f"{name}-{part}.wav" for part in ("early", "last", "late-1", "late-2", "late-3"))
    await site.put_recordings(dict.fromkeys([early, last, *late], speech))
    return Jobs(early, last, await _send_for_last_receive(site, last), late)


async def _send_for_last_receive(site: Site, key: str) -> str:
    """Send a job, receive its message four times, and return the receipt handle with which to make it visible."""
    await site.send(site.job(key))
    for visibility_timeout_s in (0, 0, 0, 3600):
        received = await site.sqs.receive_message(
            QueueUrl=site.services.queues.url, VisibilityTimeout=visibility_timeout_s
        )
        (message,) = received["Messages"]
    return message["ReceiptHandle"]


async def _survive(
    site: Site, worker: Worker, outages: Sequence[tuple[AbstractAsyncContextManager[None], str]], jobs: Sequence[Jobs]
) -> None:
    """Expect of one outage after the other, each with its code, that it stops the receiving and costs no job."""
    await worker.wait_for("worker_started")
    for number, ((outage, code), its) in enumerate(zip(outages, jobs, strict=True)):
        lines = len(worker.lines())
        async with outage:
            await site.make_visible(its.last_receipt)
            await site.send(site.job(its.early))
            await worker.wait_for("breaker_opened", count=number + 1)
            await expect_pause(site, worker, its.late)
            assert len([line for line in worker.lines()[lines:] if line.get("event") in _FAILURES]) <= _MAX_FAILURES
        hidden = len(jobs) - number - 1
        receive_counts = await expect_recovery(site, worker, late=its.late, others=[its.early, its.last], hidden=hidden)
        assert receive_counts[its.last] == 5
        assert [event["code"] for event in worker.events("breaker_opened")[number:]] == [code]


@asynccontextmanager
async def _refused(site: Site, service: Service, operation: str, code: str) -> AsyncIterator[None]:
    with site.gateway.fault(service, operation, error(403, code)):
        yield


@asynccontextmanager
async def _unreachable(proxy: Proxy) -> AsyncIterator[None]:
    await proxy.refuse()
    yield
    await proxy.accept()


@asynccontextmanager
async def _expired(proxy: Proxy, tls: SSLContext, authority: Authority) -> AsyncIterator[None]:
    await proxy.refuse()
    tls.load_cert_chain(authority.certificate(ended=timedelta(hours=1)))
    await proxy.accept()
    yield
    tls.load_cert_chain(authority.certificate())


async def test_source_outage_stops_receiving_and_costs_no_job(
    *, site: Site, start_worker: StartWorker, open_proxy: OpenProxy, speech: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    tls = server_context(authority.certificate())
    proxy = await open_proxy(site.gateway.objects_url, tls)
    outages = [
        (_refused(site, "minio", "*", "AccessDenied"), "AccessDenied"),
        (_refused(site, "minio", "GetObject", "AccessDenied"), "AccessDenied"),
        (_refused(site, "minio", "*", "RequestTimeTooSkewed"), "RequestTimeTooSkewed"),
        (_unreachable(proxy), "unreachable"),
        (_expired(proxy, tls, authority), "unreachable"),
    ]
    jobs = [await _prepare(site, str(number), speech) for number in range(len(outages))]
    worker = await start_worker(
        site,
        STT_MINIO_ENDPOINT=proxy.endpoint,
        STT_MINIO_SECURE="true",
        SSL_CERT_FILE=str(authority.file),
        **_SHORT_RETRIES,
    )
    await _survive(site, worker, outages, jobs)
    assert "certificate has expired" in worker.events("breaker_opened")[-1]["error"]


async def test_output_outage_stops_receiving_and_costs_no_job(
    site: Site, start_worker: StartWorker, open_proxy: OpenProxy, speech: Path
) -> None:
    proxy = await open_proxy(site.gateway.objects_url)
    outages = [
        (_refused(site, "s3", "*", "AccessDenied"), "AccessDenied"),
        (_refused(site, "s3", "*", "ExpiredToken"), "ExpiredToken"),
        (_unreachable(proxy), "unreachable"),
    ]
    jobs = [await _prepare(site, str(number), speech) for number in range(len(outages))]
    worker = await start_worker(site, AWS_ENDPOINT_URL_S3=proxy.url, **_SHORT_RETRIES)
    await _survive(site, worker, outages, jobs)


async def test_queue_outage_after_the_commit_leaves_the_job_done_once(
    open_site: OpenSite, hold_job: HoldJob, open_proxy: OpenProxy, speech: Path
) -> None:
    site = await open_site(visibility_timeout_s=60)  # the job ends within it, on a loaded machine too
    proxy = await open_proxy(site.services.servers.queues_url)
    held = await hold_job(site, AWS_ENDPOINT_URL_SQS=proxy.url, **_SHORT_RETRIES)
    await proxy.refuse()
    held.resume()
    await held.worker.wait_for("job_succeeded")
    await held.worker.wait_for("message_unsettled")
    committed = await verified(site, KEY)
    await held.worker.wait_for("breaker_opened")
    await site.put_recordings({"next.wav": speech})
    await site.send(site.job("next.wav"))
    await proxy.accept()
    await held.worker.wait_for("breaker_closed")
    done = await held.worker.wait_for("job_succeeded", count=2)
    assert done[1]["receive_count"] == 1
    [unsettled, _] = [call for call in site.history.of("sqs", "ReceiveMessage") if call.messages]
    await site.make_visible(unsettled.messages[0]["ReceiptHandle"])
    (skipped,) = await held.worker.wait_for("job_skipped")
    assert skipped["receive_count"] == 2
    await wait_until(site.is_drained, what="both messages to be deleted")
    assert await verified(site, KEY) == committed
    await verified(site, "next.wav")
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["STT_MINIO_ENDPOINT", "AWS_ENDPOINT_URL_S3"])
async def test_name_that_stops_resolving_stops_receiving_and_costs_no_job(
    site: Site, start_worker: StartWorker, open_proxy: OpenProxy, *, speech: Path, names: Names, variable: str
) -> None:
    proxy = await open_proxy(site.gateway.objects_url)

    @asynccontextmanager
    async def outage() -> AsyncIterator[None]:
        names.remove()
        await proxy.refuse()  # a resolved address serves for some seconds more, as does a connection
        yield
        await wait_until(names.failed_lookups, what="a probe to look the name up", timeout_s=60)
        await proxy.accept()
        names.restore()

    jobs = await _prepare(site, "name", speech)
    address = proxy.endpoint.replace("127.0.0.1", NAME)
    endpoint = {variable: address if variable.startswith("STT") else f"http://{address}"}
    worker = await start_worker(site, **_SHORT_RETRIES, **names.environment(), **endpoint)
    await _survive(site, worker, [(outage(), "unreachable")], [jobs])


async def test_recording_refused_alone_is_dead_lettered_and_opens_no_breaker(
    site: Site, start_worker: StartWorker, speech: Path
) -> None:
    forbidden = "0-forbidden.wav"  # the first that a probe would read
    keys = [f"{number}.wav" for number in range(1, 5)]
    await site.put_recordings(dict.fromkeys([forbidden, *keys], speech))
    site.gateway.fault("minio", "GetObject", error(403, "AccessDenied"), where=lambda call: call.key == forbidden)
    await site.make_visible(await _send_for_last_receive(site, forbidden))
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


async def test_job_survives_role_credentials_that_cannot_be_renewed_for_a_while(
    site: Site, hold_job: HoldJob, imds: FakeImds
) -> None:
    # From nine minutes before their end, botocore tries to renew them at each call, and else uses what it has.
    imds.has_role(site.services.servers.objects.owner, for_s=540)
    role = imds.environment() | {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    held = await hold_job(site, **role)
    await imds.set_mode("down")
    await held.worker.wait_for("imds_failed")
    held.resume()
    (done,) = await held.worker.wait_for("job_succeeded")
    await wait_until(site.is_drained, what="the message to be deleted")
    assert done["receive_count"] == 1
    await verified(site, KEY)
