"""The world outside on loopback: an S3 server, an SQS server, and the settings for a worker."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from stt_async.errors import DependencyError
from stt_async.local.loopback import REGION, Keys, ServerExitedError, free_ports, s3_client, sqs_client
from stt_async.local.objects import PORTS, ObjectServer, object_server
from stt_async.local.queues import QueuePair, create_queue_pair, queue_server


@dataclass(frozen=True)
class LocalServers:
    """The running servers, without buckets and queues yet."""

    objects: ObjectServer
    queues_url: str


@dataclass(frozen=True)
class LocalServices:
    """One set of buckets and queues on running servers."""

    servers: LocalServers
    source_bucket: str
    output_bucket: str
    queues: QueuePair

    @property
    def owner(self) -> Keys:
        """Keys that may do everything, to fill the source bucket and read the output."""
        return self.servers.objects.owner

    def environment(self) -> dict[str, str]:
        """Return the variables that a worker needs."""
        objects = self.servers.objects
        return {
            "STT_MINIO_ENDPOINT": objects.endpoint,
            "STT_MINIO_ACCESS_KEY": objects.reader.access_key,
            "STT_MINIO_SECRET_KEY": objects.reader.secret_key,
            "STT_MINIO_SECURE": "false",
            "STT_SOURCE_BUCKET": self.source_bucket,
            "STT_OUTPUT_BUCKET": self.output_bucket,
            "STT_SPLIT_QUEUE": self.queues.name,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": objects.owner.access_key,
            "AWS_SECRET_ACCESS_KEY": objects.owner.secret_key,
            "AWS_ENDPOINT_URL_S3": objects.url,
            "AWS_ENDPOINT_URL_SQS": self.servers.queues_url,
            "AWS_EC2_METADATA_DISABLED": "true",  # the demo is no instance, even if it runs on one
        }


@asynccontextmanager
async def local_servers(directory: Path, *, readable: Sequence[str]) -> AsyncIterator[LocalServers]:
    """Run both servers, which start concurrently; stop them after the block.

    Args:
        directory: Folder for data, configuration and logs; it is kept.
        readable: Buckets that the read-only identity may read; `name*` matches a prefix.

    Raises:
        DependencyError: a server is not installed or does not start; the message ends with its log.
    """
    async with AsyncExitStack() as stack:
        try:
            servers = await _start(stack, directory, readable)
        except ServerExitedError:  # another process may have taken a free port: try once more with other ports
            await stack.aclose()
            servers = await _start(stack, directory, readable)
        yield servers


async def open_services(
    servers: LocalServers, *, source_bucket: str, output_bucket: str, split_queue: str, visibility_timeout_s: int
) -> LocalServices:
    """Create one set of buckets and queues; existing buckets keep their objects."""
    owner = servers.objects.owner
    async with s3_client(servers.objects.url, owner) as s3, sqs_client(servers.queues_url, owner) as sqs:
        for bucket in (source_bucket, output_bucket):
            with suppress(s3.exceptions.BucketAlreadyExists, s3.exceptions.BucketAlreadyOwnedByYou):
                await s3.create_bucket(Bucket=bucket)
        queues = await create_queue_pair(sqs, split_queue, visibility_timeout_s=visibility_timeout_s)
    return LocalServices(servers, source_bucket, output_bucket, queues)


@asynccontextmanager
async def local_services(
    directory: Path,
    *,
    source_bucket: str = "audio",
    output_bucket: str = "segments",
    split_queue: str = "stt-split-jobs",
    visibility_timeout_s: int = 300,
) -> AsyncIterator[LocalServices]:
    """Run servers with one set of buckets and queues; see `local_servers` and `open_services`."""
    async with local_servers(directory, readable=[source_bucket]) as servers:
        yield await open_services(
            servers,
            source_bucket=source_bucket,
            output_bucket=output_bucket,
            split_queue=split_queue,
            visibility_timeout_s=visibility_timeout_s,
        )


async def _start(stack: AsyncExitStack, directory: Path, readable: Sequence[str]) -> LocalServers:
    queue_port, *object_ports = free_ports(1 + PORTS)
    queues = queue_server(directory / "sqs.log", port=queue_port)
    objects = object_server(directory / "objects", ports=object_ports, readable=readable)
    try:
        async with asyncio.TaskGroup() as starting:
            queues_url = starting.create_task(stack.enter_async_context(queues))
            running_objects = starting.create_task(stack.enter_async_context(objects))
    except ExceptionGroup as failures:
        first = failures.exceptions[0]
        raise first if isinstance(first, DependencyError) else failures from None
    return LocalServers(running_objects.result(), queues_url.result())
