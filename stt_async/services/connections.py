"""All clients of a process, made once and passed down."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stt_async.errors import LastingOutageError, RetryJobError
from stt_async.progress import wait_lines
from stt_async.retry import Retry
from stt_async.services.aws import open_session, s3_client, sqs_client
from stt_async.services.bucket import Bucket
from stt_async.services.failure_records import FailureRecords
from stt_async.services.queue import JobQueue, open_queue
from stt_async.services.sink import Sink
from stt_async.services.source import Source, open_source
from stt_async.settings import Settings

if TYPE_CHECKING:
    from types_aiobotocore_sqs import SQSClient


@dataclass(frozen=True, slots=True)
class Connections:
    """The services that a process uses. No call has been made yet."""

    source: Source
    sink: Sink
    failure_records: FailureRecords
    heartbeat_sqs: "SQSClient"
    """A separate client, so that no poll delays a heartbeat."""
    _sqs: "SQSClient"
    _queue: str
    _retry: Retry

    async def queue(self) -> JobQueue:
        """Find the queue and its dead-letter queue.

        Raises:
            DependencyError: SQS is out of reach, or a queue does not exist.
        """
        return await open_queue(self._sqs, self._queue, self._retry)


def daemon_retry(settings: Settings) -> Retry:
    """Return the policy of the daemon: it retries whatever may pass."""
    return Retry(settings.retry_timeout_s, settings.retry_max_wait_s)


def operator_retry(settings: Settings) -> Retry:
    """Return the policy of a command that a person typed: it shows its waits, and fails at once if they do not help."""
    return Retry(
        settings.retry_timeout_s,
        settings.retry_max_wait_s,
        never=(RetryJobError, LastingOutageError),
        on_wait=wait_lines(),
    )


@asynccontextmanager
async def connect(settings: Settings, retry: Retry) -> AsyncIterator[Connections]:
    """Open the clients, and close them at the end."""
    session = await open_session(settings)
    async with (
        sqs_client(session) as sqs,
        sqs_client(session) as heartbeat_sqs,
        s3_client(session, settings) as s3,
        open_source(settings, s3, retry) as source,
    ):
        output = Bucket(
            s3,
            settings.output_bucket,
            uploads=settings.uploads,
            part_bytes=settings.multipart_chunksize_bytes,
            retry=retry,
        )
        yield Connections(source, Sink(output), FailureRecords(output), heartbeat_sqs, sqs, settings.split_queue, retry)
