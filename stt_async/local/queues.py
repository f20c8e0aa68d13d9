"""The local SQS server as a child process, and queues on it."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from stt_async.local.loopback import HOST, Keys, sqs_client, until_ready
from stt_async.local.process import ChildProcess, plain_environment

if TYPE_CHECKING:
    from types_aiobotocore_sqs import SQSClient

MAX_RECEIVES = 5


@dataclass(frozen=True)
class QueuePair:
    """A queue and its dead-letter queue."""

    name: str
    url: str
    dead_letter_name: str
    dead_letter_url: str


@asynccontextmanager
async def queue_server(log: Path, *, port: int) -> AsyncIterator[str]:
    """Run an SQS server and yield its URL.

    It runs in its own process and event loop, so it answers heartbeats in time while the demo or a test is busy.

    Args:
        log: File for the server's output.
        port: A free port.

    Raises:
        DependencyError: the server does not start.
    """
    url = f"http://{HOST}:{port}"
    async with ChildProcess(
        [sys.executable, "-m", "stt_async.local.sqs", str(port)], environment=plain_environment(), log=log
    ) as process:
        async with sqs_client(url, Keys.random()) as sqs:
            await until_ready(process, "SQS server", ports=[port], request=sqs.list_queues)
        yield url


async def create_queue_pair(sqs: "SQSClient", name: str, *, visibility_timeout_s: int) -> QueuePair:
    """Create a queue with a dead-letter queue."""
    dead_letter_name = f"{name}-dlq"
    dead_letter_url = (await sqs.create_queue(QueueName=dead_letter_name))["QueueUrl"]
    described = await sqs.get_queue_attributes(QueueUrl=dead_letter_url, AttributeNames=["QueueArn"])
    redrive = {"deadLetterTargetArn": described["Attributes"]["QueueArn"], "maxReceiveCount": MAX_RECEIVES}
    created = await sqs.create_queue(
        QueueName=name,
        Attributes={
            "VisibilityTimeout": str(visibility_timeout_s),
            "RedrivePolicy": orjson.dumps(redrive).decode(),
        },
    )
    return QueuePair(name, created["QueueUrl"], dead_letter_name, dead_letter_url)
