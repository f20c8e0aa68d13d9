"""The SQS of `local.sqs` as a process, and the queues on it."""

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
    """A queue and the dead-letter queue that takes what was received too often."""

    name: str
    url: str
    dead_letter_name: str
    dead_letter_url: str


@asynccontextmanager
async def queue_server(log: Path, *, port: int, keys: Keys) -> AsyncIterator[str]:
    """Run an SQS server and yield its URL.

    It has a process, and so an event loop, to itself: heartbeats are answered in time whatever the demo or a test does.

    Args:
        log: File that takes its output.
        port: A free port.
        keys: Keys for the first request; the server checks none.

    Raises:
        DependencyError: it does not start.
    """
    url = f"http://{HOST}:{port}"
    async with ChildProcess(
        [sys.executable, "-m", "stt_async.local.sqs", str(port)], environment=plain_environment(), log=log
    ) as process:
        async with sqs_client(url, keys) as sqs:
            await until_ready(process, "SQS server", ports=[port], request=sqs.list_queues)
        yield url


async def create_queue_pair(sqs: "SQSClient", name: str, *, visibility_timeout_s: int) -> QueuePair:
    """Create a queue and its dead-letter queue, as the stack of the real ones does."""
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
