"""SQS on loopback: the server of moto, an emulator (no queue server in a wheel speaks SQS), and the queues on it."""

import importlib.util
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from stt_async.errors import DependencyError
from stt_async.local.loopback import HOST, REGION, Keys, sqs_client, until_ready
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
    """Run an SQS emulator and give its URL.

    Args:
        log: File that takes its output.
        port: A free port.
        keys: Keys for the first request; the emulator checks none.

    Raises:
        DependencyError: moto is not installed, or does not start.
    """
    if importlib.util.find_spec("moto") is None:
        raise DependencyError(
            "local_server_missing",
            "the SQS emulator for local use (moto) is not installed: pip install 'stt-async[local]'",
        )
    url = f"http://{HOST}:{port}"
    async with ChildProcess(
        [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)],
        environment=plain_environment() | {"AWS_DEFAULT_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true"},
        log=log,
    ) as process:
        async with sqs_client(url, keys) as sqs:
            await until_ready(process, "SQS emulator", ports=[port], request=sqs.list_queues)
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
