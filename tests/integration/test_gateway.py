"""The gateway that all tests use: it passes calls unchanged, records them, and applies faults on demand."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, cast

import aioboto3
import pytest
import pytest_asyncio
from aiobotocore.config import AioConfig
from aiohttp import ClientPayloadError, ClientSession
from botocore.exceptions import ClientError, ConnectionClosedError
from miniopy_async.api import Minio
from miniopy_async.error import S3Error

from stt_async.local.loopback import REGION
from tests.support.evidence.history import History
from tests.support.faults.calls import (
    cut_body,
    delay,
    error,
    error_in_200,
    failed_entry,
    flip_bit,
    hold_after,
    hold_before,
    lost_answer,
    other_etag,
    reset,
    short_body,
)
from tests.support.faults.gateway import Fault, Gateway
from tests.support.site import Counts, Site
from tests.support.waiting import wait_until

KEY = "amdo/ལྷ་ས 1+2%2F/a.mp3"
LARGE = bytes(range(256)) * 4 * 8192  # 8 MiB


def _client(site: Site, service: str) -> Any:
    keys = site.services.owner
    session: Any = aioboto3.Session()
    return session.client(
        service,
        endpoint_url=site.gateway.objects_url if service == "s3" else site.gateway.queues_url,
        region_name=REGION,
        aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key,
        config=AioConfig(retries={"total_max_attempts": 1}, user_agent_appid="test", read_timeout=60),
    )


@pytest_asyncio.fixture
async def s3(site: Site) -> AsyncIterator[Any]:
    async with _client(site, "s3") as client:
        yield client


@pytest_asyncio.fixture
async def sqs(site: Site) -> AsyncIterator[Any]:
    async with _client(site, "sqs") as client:
        yield client


async def _body(answer: Any) -> bytes:
    async with answer["Body"] as stream:
        body: bytes = await stream.read()
        return body


async def test_object_passes_unchanged_and_each_call_is_recorded(site: Site, s3: Any) -> None:
    bucket = site.services.output_bucket
    await s3.put_object(Bucket=bucket, Key=KEY, Body=LARGE)
    got = await s3.get_object(Bucket=bucket, Key=KEY)
    assert await _body(got) == LARGE
    ranged = await s3.get_object(Bucket=bucket, Key=KEY, Range="bytes=5-9")
    assert await _body(ranged) == LARGE[5:10]
    head = await s3.head_object(Bucket=bucket, Key=KEY)
    assert head["ContentLength"] == len(LARGE)
    assert [found["Key"] for found in (await s3.list_objects_v2(Bucket=bucket, Prefix="amdo/ལྷ"))["Contents"]] == [KEY]
    await s3.delete_object(Bucket=bucket, Key=KEY)
    with pytest.raises(s3.exceptions.NoSuchKey):
        await s3.get_object(Bucket=bucket, Key=KEY)

    assert [(call.sender, call.service, call.operation, call.status) for call in site.history.calls] == [
        ("test", "s3", "PutObject", 200),
        ("test", "s3", "GetObject", 200),
        ("test", "s3", "GetObject", 206),
        ("test", "s3", "HeadObject", 200),
        ("test", "s3", "ListObjectsV2", 200),
        ("test", "s3", "DeleteObject", 204),
        ("test", "s3", "GetObject", 404),
    ]
    put, *_, missing = site.history.calls
    assert (put.bucket, put.key) == (bucket, KEY)
    assert (put.request_bytes, put.request_sha256) == (len(LARGE), hashlib.sha256(LARGE).hexdigest())
    assert (put.request, put.answer) == (b"", b"")
    assert missing.error_code == "NoSuchKey"
    assert put.served_s is not None
    assert put.ended_s is not None
    assert put.started_s <= put.served_s <= put.ended_s <= missing.started_s


async def test_bodies_of_manifests_and_calls_of_uploads_are_recorded(site: Site, s3: Any) -> None:
    bucket = site.services.output_bucket
    await s3.put_object(Bucket=bucket, Key="a.mp3/metadata.json", Body=b"{}", IfNoneMatch="*")
    assert await _body(await s3.get_object(Bucket=bucket, Key="a.mp3/metadata.json")) == b"{}"
    put, get = site.history.calls
    assert (put.is_of_manifest, put.request, get.answer) == (True, b"{}", b"{}")

    upload = {"Bucket": bucket, "Key": "a.tar"}
    for end in ("complete", "abort"):
        created = upload | {"UploadId": (await s3.create_multipart_upload(**upload))["UploadId"]}
        part = await s3.upload_part(**created, PartNumber=1, Body=LARGE)
        await s3.list_multipart_uploads(Bucket=bucket)
        if end == "complete":
            parts = {"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]}
            await s3.complete_multipart_upload(**created, MultipartUpload=parts)
        else:
            await s3.abort_multipart_upload(**created)
    starts = ["CreateMultipartUpload", "UploadPart", "ListMultipartUploads"]
    operations = [call.operation for call in site.history.calls[2:]]
    assert operations == [*starts, "CompleteMultipartUpload", *starts, "AbortMultipartUpload"]


async def test_calls_of_the_minio_client_are_recorded_as_minio(site: Site) -> None:
    await site.put_recordings({KEY: b"sound"})
    reader = site.services.servers.objects.reader
    bucket = site.services.source_bucket
    async with ClientSession() as session:
        minio = Minio(
            site.gateway.objects_url.removeprefix("http://"),
            access_key=reader.access_key,
            secret_key=reader.secret_key,
            secure=False,
            region=REGION,
            session=session,
        )
        async with await minio.get_object(bucket, KEY) as response:
            assert await response.read() == b"sound"
        assert [found.object_name async for found in minio.list_objects(bucket, recursive=True)] == [KEY]
        site.gateway.fault("minio", "GetObject", error(403, "AccessDenied"))
        with pytest.raises(S3Error, match="AccessDenied"):
            await minio.get_object(bucket, KEY)
    operations = [(call.service, call.operation, call.status) for call in site.history.calls]
    assert operations == [
        ("minio", "GetObject", 200),
        ("minio", "ListObjectsV2", 200),
        ("minio", "GetObject", 403),
    ]


async def test_sqs_calls_are_recorded_with_messages_and_receipt_handles(site: Site, sqs: Any) -> None:
    # Another queue than the split queue: the invariants forbid deleting a job's message without a manifest.
    name = f"other-{site.services.queues.name}"
    await site.sqs.create_queue(QueueName=name)
    url = (await sqs.get_queue_url(QueueName=name))["QueueUrl"]
    sent = await sqs.send_message(QueueUrl=url, MessageBody="one")
    received = await sqs.receive_message(QueueUrl=url)
    handle = received["Messages"][0]["ReceiptHandle"]
    entry = {"Id": "0", "ReceiptHandle": handle, "VisibilityTimeout": 5}
    await sqs.change_message_visibility_batch(QueueUrl=url, Entries=[entry])
    await sqs.delete_message(QueueUrl=url, ReceiptHandle=handle)
    with pytest.raises(ClientError):
        await sqs.delete_message(QueueUrl=url, ReceiptHandle="none")
    operations = [call.operation for call in site.history.calls]
    assert operations[:3] == ["GetQueueUrl", "SendMessage", "ReceiveMessage"]
    assert operations[3:] == ["ChangeMessageVisibilityBatch", "DeleteMessage", "DeleteMessage"]
    _, send, receive, change, delete, refused = site.history.calls
    assert {call.queue for call in site.history.calls} == {name}
    assert send.result["MessageId"] == sent["MessageId"]
    assert [message["MessageId"] for message in receive.messages] == [sent["MessageId"]]
    assert change.receipts == delete.receipts == [handle]
    assert (refused.error_code, refused.succeeded) == ("ReceiptHandleIsInvalid", False)
    await site.sqs.delete_queue(QueueUrl=url)


async def test_long_poll_waits_for_a_message_and_ends_with_its_client(site: Site, sqs: Any) -> None:
    url = site.services.queues.url
    poll = asyncio.create_task(sqs.receive_message(QueueUrl=url, WaitTimeSeconds=20))
    await wait_until(lambda: site.history.of("sqs", "ReceiveMessage"), what="the poll to start")
    await site.send("one")
    assert [message["Body"] for message in (await poll)["Messages"]] == ["one"]

    cancelled = asyncio.create_task(sqs.receive_message(QueueUrl=url, WaitTimeSeconds=20))
    await wait_until(lambda: len(site.history.of("sqs", "ReceiveMessage")) == 2, what="the second poll to start")
    cancelled.cancel()
    _, second = site.history.of("sqs", "ReceiveMessage")
    await wait_until(lambda: second.ended_s is not None, what="the poll to end with its client", timeout_s=5)
    assert second.status is None


async def test_fault_before_the_server_changes_nothing(site: Site, s3: Any) -> None:
    bucket = site.services.output_bucket
    # A reset strikes twice: aiohttp repeats a PUT whose connection broke.
    faults: list[tuple[Fault, type[Exception], int]] = [
        (error(503, "SlowDown"), ClientError, 1),
        (reset, ConnectionClosedError, 2),
    ]
    for fault, raised, times in faults:
        first = len(site.history.calls)
        with site.gateway.fault("s3", "PutObject", fault, times=times) as rule:
            with pytest.raises(raised):
                await s3.put_object(Bucket=bucket, Key="a", Body=LARGE)
            assert await site.objects() == {}
            await s3.put_object(Bucket=bucket, Key="a", Body=LARGE)
        assert rule.struck == times
        assert await site.objects() == {"a": len(LARGE)}
        await site.s3.delete_object(Bucket=bucket, Key="a")
        struck, *_, passed = site.history.calls[first:]
        assert (struck.served_status, struck.served, passed.served_status, passed.succeeded) == (None, False, 200, True)
        assert struck.faults
        assert struck.request_sha256 == passed.request_sha256


async def test_error_has_the_form_of_its_service(site: Site, s3: Any, sqs: Any) -> None:
    bucket, url = site.services.output_bucket, site.services.queues.url
    site.gateway.fault("s3", "GetObject", error(403, "RequestTimeTooSkewed"))
    site.gateway.fault("s3", "HeadObject", error(403, "AccessDenied"))
    site.gateway.fault("s3", "CopyObject", error_in_200("InternalError"))
    site.gateway.fault("sqs", "SendMessage", error(400, "RequestThrottled"))
    site.gateway.fault("sqs", "Change*", error(400, "AWS.SimpleQueueService.MessageNotInflight"))

    async def code(call: Any) -> Any:
        with pytest.raises(ClientError) as caught:
            await call
        return caught.value.response["Error"]["Code"]

    assert await code(s3.get_object(Bucket=bucket, Key="a")) == "RequestTimeTooSkewed"
    assert await code(s3.head_object(Bucket=bucket, Key="a")) == "403"
    assert await code(s3.copy_object(Bucket=bucket, Key="b", CopySource=f"{bucket}/a")) == "InternalError"
    assert await code(sqs.send_message(QueueUrl=url, MessageBody="one")) == "RequestThrottled"
    change = sqs.change_message_visibility(QueueUrl=url, ReceiptHandle="h", VisibilityTimeout=0)
    assert await code(change) == "AWS.SimpleQueueService.MessageNotInflight"
    assert [call.error_code for call in site.history.calls] == [
        "RequestTimeTooSkewed",
        "",
        "InternalError",
        "RequestThrottled",
        "MessageNotInflight",
    ]
    assert not any(call.succeeded for call in site.history.calls)
    assert await site.is_drained()


async def test_lost_answer_hides_a_call_that_the_server_has_done(site: Site, s3: Any) -> None:
    manifests = site.gateway.fault("s3", "PutObject", lost_answer, times=2, where=lambda call: call.is_of_manifest)
    with pytest.raises(ConnectionClosedError):
        await s3.put_object(Bucket=site.services.output_bucket, Key="a.mp3/metadata.json", Body=b"{}")
    await s3.put_object(Bucket=site.services.output_bucket, Key="a.mp3/segment", Body=b"sound")
    assert manifests.struck == 2
    assert await site.read("a.mp3/metadata.json") == b"{}"
    lost = manifests.calls[0]
    assert (lost.served, lost.succeeded, lost.status) == (True, False, None)


async def test_held_call_ends_once_its_rule_is_lifted_and_delayed_call_is_late(site: Site, s3: Any) -> None:
    for hold, is_done in ((hold_before, False), (hold_after, True)):
        key = hold.__name__
        with site.gateway.fault("s3", "PutObject", hold) as held:
            put = asyncio.create_task(s3.put_object(Bucket=site.services.output_bucket, Key=key, Body=b"sound"))
            await held.has_struck()
            if is_done:
                await wait_until(partial(site.objects, key), what="the object to exist")
            assert (await site.objects(key) != {}) == is_done
            assert not put.done()
        await put
        assert await site.objects(key) == {key: 5}

    site.gateway.fault("s3", "PutObject", delay(0.2))
    await s3.put_object(Bucket=site.services.output_bucket, Key="a", Body=b"sound")
    late = site.history.calls[-1]
    assert late.served_s is not None
    assert late.served_s - late.started_s >= 0.2


async def test_wrong_answers_have_a_wrong_body_or_etag(site: Site, s3: Any) -> None:
    # Range: no checksums, as from MinIO. botocore would find the fault by a checksum of the whole object.
    get = {"Bucket": site.services.output_bucket, "Key": "a", "Range": "bytes=0-"}
    await site.s3.put_object(Bucket=site.services.output_bucket, Key="a", Body=LARGE)
    etag = (await site.s3.head_object(Bucket=site.services.output_bucket, Key="a"))["ETag"]
    short, flipped = LARGE[: len(LARGE) // 4], b"\x01" + LARGE[1:]
    answers: list[tuple[list[Fault], bytes, str]] = [
        ([short_body(0.25)], short, etag),
        ([flip_bit], flipped, etag),
        ([other_etag("other")], LARGE, '"other"'),
        ([other_etag("other"), short_body(0.25)], short, '"other"'),  # of rules that match, each is applied
    ]
    for faults, body, seen_etag in answers:
        for fault in faults:
            site.gateway.fault("s3", "Get*", fault, times=1)
        answer = await s3.get_object(**get)
        assert (await _body(answer), answer["ETag"]) == (body, seen_etag)

    site.gateway.fault("s3", "GetObject", cut_body(0.5), times=1)
    answer = await s3.get_object(**get)
    assert answer["ContentLength"] == len(LARGE)
    with pytest.raises(ClientPayloadError):
        await _body(answer)


async def test_failed_entry_of_a_batch_is_not_done(site: Site, sqs: Any) -> None:
    site.gateway.fault("sqs", "SendMessageBatch", failed_entry("InternalError"))
    for others in (0, 2):
        entries = [{"Id": str(number), "MessageBody": "one"} for number in range(1 + others)]
        answer = await sqs.send_message_batch(QueueUrl=site.services.queues.url, Entries=entries)
        assert [(failed["Id"], failed["Code"]) for failed in answer["Failed"]] == [("0", "InternalError")]
        assert len(answer.get("Successful", [])) == others
        assert await site.counts() == Counts(visible=others, in_flight=0)


def test_fault_that_strikes_no_call_fails_its_test() -> None:
    gateway = Gateway(History(), cast("ClientSession", None))
    gateway.fault("s3", "PutObject", reset)
    with pytest.raises(AssertionError, match=r"struck nothing.*reset on s3 PutObject"):
        gateway.require_all_struck()
