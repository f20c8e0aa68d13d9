"""The local SQS server with concurrent clients, malformed requests, and clients that disconnect."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
import pytest

from stt_async.local.loopback import Keys, sqs_client
from tests.support.fakes.sqs import OpenSqs
from tests.support.site import Site
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from types_aiobotocore_sqs import SQSClient

CLIENTS = 32
MESSAGES = 20_000
BATCH = 10


@dataclass
class Progress:
    """Message bodies to send, received and deleted, over all clients."""

    unsent: list[str]
    received: Counter[str] = field(default_factory=Counter)
    deleted: int = 0


async def _send_receive_extend_delete(sqs: "SQSClient", url: str, progress: Progress) -> None:
    """Repeat the four calls until the clients have deleted all messages."""
    while progress.deleted < MESSAGES:
        bodies = [progress.unsent.pop() for _ in range(min(BATCH, len(progress.unsent)))]
        if bodies:
            sent = await sqs.send_message_batch(
                QueueUrl=url, Entries=[{"Id": str(n), "MessageBody": body} for n, body in enumerate(bodies)]
            )
            assert len(sent["Successful"]) == len(bodies)
        answer = await sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=BATCH, WaitTimeSeconds=0 if bodies else 1)
        messages = answer.get("Messages", [])
        progress.received.update(message["Body"] for message in messages)
        if messages:
            entries: list[Any] = [
                {"Id": str(n), "ReceiptHandle": message["ReceiptHandle"]} for n, message in enumerate(messages)
            ]
            extended = await sqs.change_message_visibility_batch(
                QueueUrl=url, Entries=[entry | {"VisibilityTimeout": 600} for entry in entries]
            )
            assert len(extended["Successful"]) == len(messages)
            deleted = await sqs.delete_message_batch(QueueUrl=url, Entries=entries)
            assert len(deleted["Successful"]) == len(messages)
            progress.deleted += len(messages)


async def test_32_clients_receive_each_of_20000_messages_once(site: Site) -> None:
    url = (await site.sqs.create_queue(QueueName="many", Attributes={"VisibilityTimeout": "300"}))["QueueUrl"]
    bodies = [f"message {n}" for n in range(MESSAGES)]
    progress = Progress(list(bodies))
    async with AsyncExitStack() as stack, asyncio.timeout(240):
        clients = [
            await stack.enter_async_context(sqs_client(site.services.servers.queues_url, Keys.random()))
            for _ in range(CLIENTS)
        ]
        async with asyncio.TaskGroup() as running:
            for client in clients:
                running.create_task(_send_receive_extend_delete(client, url, progress))
    assert progress.received == Counter(bodies)
    counts = await site.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])
    assert {value for name, value in counts["Attributes"].items() if name.startswith("ApproximateNumber")} == {"0"}


def _headers(operation: str) -> dict[str, str]:
    """Those of a request that is signed now."""
    return {"X-Amz-Target": f"AmazonSQS.{operation}", "X-Amz-Date": f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"}


@pytest.mark.parametrize(
    ("operation", "headers", "body", "code"),
    [
        ("ListQueues", {}, b"no JSON", "ValidationError"),
        ("ListQueues", {}, b"[]", "ValidationError"),
        ("ListQueues", {}, b"\xff", "ValidationError"),
        ("SendMessage", {}, b'{"QueueUrl": 5, "MessageBody": "a"}', "ValidationError"),
        ("SendMessageBatch", {}, b'{"QueueUrl": "/jobs", "Entries": [{"Id": "0"}]}', "ValidationError"),
        ("ReceiveMessage", {}, b"{}", "ValidationError"),
        ("ListDeadLetterSourceQueues", {}, b"{}", "AWS.SimpleQueueService.UnsupportedOperation"),
        ("ListQueues", {"X-Amz-Target": ""}, b"{}", "MissingAction"),
        ("ListQueues", {"X-Amz-Target": "DynamoDB_20120810.ListTables"}, b"{}", "MissingAction"),
        ("ListQueues", {"X-Amz-Date": ""}, b"{}", "IncompleteSignature"),
        ("ListQueues", {"X-Amz-Date": "20150830T123600Z"}, b"{}", "InvalidSignatureException"),
    ],
)
async def test_malformed_request_is_refused_with_400(
    open_sqs: OpenSqs, operation: str, headers: dict[str, str], body: bytes, code: str
) -> None:
    url, headers = (await open_sqs()).url, _headers(operation) | headers
    async with aiohttp.ClientSession() as session, session.post(url, headers=headers, data=body) as answer:
        assert answer.status == 400
        assert answer.headers["x-amzn-query-error"] == f"{code};Sender"
        assert (await answer.json(content_type=None))["message"]


async def test_poll_receives_no_message_after_its_client_disconnected(open_sqs: OpenSqs) -> None:
    local = await open_sqs()
    async with sqs_client(local.url, Keys.random()) as sqs:
        url = (await sqs.create_queue(QueueName="jobs"))["QueueUrl"]
        waiting = local.sqs.queue("jobs").arrival._waiters
        async with aiohttp.ClientSession() as session:
            body = orjson.dumps({"QueueUrl": url, "WaitTimeSeconds": 20})
            poll = asyncio.create_task(session.post(local.url, headers=_headers("ReceiveMessage"), data=body))
            await wait_until(lambda: len(waiting) == 1, what="the poll to wait")
            poll.cancel()
        await wait_until(lambda: not waiting, what="the poll to end", timeout_s=10)
        await sqs.send_message(QueueUrl=url, MessageBody="a")
        [message] = (await sqs.receive_message(QueueUrl=url, WaitTimeSeconds=10))["Messages"]
        assert message["Body"] == "a"
