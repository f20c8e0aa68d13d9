"""The services of one test: new buckets and queues on servers that the whole session shares."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import pytest_asyncio

from stt_async.local.loopback import s3_client, sqs_client
from stt_async.local.queues import MAX_RECEIVES
from stt_async.local.servers import LocalServers, LocalServices, local_servers, open_services
from tests.support.evidence.evidence import Evidence
from tests.support.evidence.history import History, Letter
from tests.support.evidence.invariants import broken
from tests.support.evidence.ledger import Ledger
from tests.support.faults.gateway import Gateway, open_gateway
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_sqs import SQSClient

VISIBILITY_TIMEOUT_S = 30
_PARALLEL_READS = 8
"""With a thousand segments, reads that wait too long for a connection fail."""


@dataclass(frozen=True)
class Counts:
    """Approximate numbers of a queue's messages."""

    visible: int
    in_flight: int


@dataclass(frozen=True)
class Site:
    """Buckets and queues of one test, with clients of the owner, who may do everything, to fill and inspect them.

    The clients connect to the servers; the addresses in `services` and `environment()` lead through the gateway.
    """

    services: LocalServices
    gateway: Gateway
    s3: "S3Client"
    sqs: "SQSClient"
    visibility_timeout_s: int

    @property
    def history(self) -> History:
        """All calls through the gateway."""
        return self.gateway.history

    def environment(self) -> dict[str, str]:
        """The variables of a worker or enqueue, with polls of a second."""
        return self.services.environment() | {
            "STT_VISIBILITY_TIMEOUT_S": str(self.visibility_timeout_s),
            "STT_WAIT_TIME_S": "1",
        }

    async def put_recordings(self, recordings: Mapping[str, Path | bytes] | Sequence[Path]) -> list[str]:
        """Put recordings into the source bucket, by key or under their file names; return the keys."""
        by_key = recordings if isinstance(recordings, Mapping) else {file.name: file for file in recordings}
        for key, recording in by_key.items():
            body = recording.read_bytes() if isinstance(recording, Path) else recording
            await self.s3.put_object(Bucket=self.services.source_bucket, Key=key, Body=body)
        return list(by_key)

    async def objects(self, prefix: str = "", *, bucket: str | None = None) -> dict[str, int]:
        """Sizes of all objects, by key, in the output bucket (or another)."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(
            Bucket=bucket or self.services.output_bucket, Prefix=prefix
        )
        return {found["Key"]: found["Size"] async for page in pages for found in page.get("Contents", [])}

    async def read(self, key: str, *, bucket: str | None = None) -> bytes:
        """The content of an object in the output bucket (or another)."""
        found = await self.s3.get_object(Bucket=bucket or self.services.output_bucket, Key=key)
        return await found["Body"].read()

    async def manifests(self) -> dict[str, Any]:
        """All manifests of the output bucket, parsed, by prefix."""
        name = "/metadata.json"
        keys = [key for key in await self.objects() if key.endswith(name)]
        return {key.removesuffix(name): orjson.loads(await self.read(key)) for key in keys}

    async def open_uploads(self) -> list[str]:
        """Keys of multipart uploads that are neither completed nor aborted."""
        listed = await self.s3.list_multipart_uploads(Bucket=self.services.output_bucket)
        return [upload["Key"] for upload in listed.get("Uploads", [])]

    def job(self, key: str, **fields: Any) -> dict[str, Any]:
        """A job for a recording of the source bucket, in the flat form; `fields` override its fields."""
        return {
            "job_id": f"job-{key}",
            "source_type": "minio",
            "source_bucket": self.services.source_bucket,
            "source_key": key,
            "output_bucket": self.services.output_bucket,
            "output_prefix": f"{key}/",
            **fields,
        }

    async def send(self, job: Mapping[str, Any] | str) -> None:
        """Send a job, or any other body, to the split queue."""
        body = job if isinstance(job, str) else orjson.dumps(job).decode()
        sent = await self.sqs.send_message(QueueUrl=self.services.queues.url, MessageBody=body)
        self.history.sent[sent["MessageId"]] = body

    async def counts(self) -> Counts:
        """The counts of the split queue."""
        return await self._counts(self.services.queues.url)

    async def dead_letter_counts(self) -> Counts:
        """The counts of the dead-letter queue."""
        return await self._counts(self.services.queues.dead_letter_url)

    async def wait_for_polls(self) -> None:
        """Wait until no poll is in flight; a worker that may not receive starts no other."""
        polls = self.history.of("sqs", "ReceiveMessage")
        await wait_until(lambda: all(poll.ended_s is not None for poll in polls), what="the polls in flight to end")

    async def make_visible(self, receipt_handle: str) -> None:
        """Make a message visible at once that is hidden, or was released with a delay."""
        await self.sqs.change_message_visibility(
            QueueUrl=self.services.queues.url, ReceiptHandle=receipt_handle, VisibilityTimeout=0
        )

    async def set_max_receives(self, count: int) -> None:
        """Set `maxReceiveCount`, which is else 5: the delay doubles with each attempt."""
        url = self.services.queues.url
        answer = await self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"])
        policy = orjson.loads(answer["Attributes"]["RedrivePolicy"]) | {"maxReceiveCount": count}
        await self.sqs.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": orjson.dumps(policy).decode()})

    async def is_drained(self) -> bool:
        """Whether the split queue has no message, visible or in flight."""
        return await self.counts() == Counts(visible=0, in_flight=0)

    async def take_dead_letters(self) -> list[Letter]:
        """Receive and delete all messages of the dead-letter queue."""
        letters = await self._take_all(self.services.queues.dead_letter_url)
        self.history.dead_letters += letters
        return letters

    async def take_messages(self) -> list[Letter]:
        """Receive and delete all visible messages of the split queue."""
        letters = await self._take_all(self.services.queues.url)
        self.history.taken |= {letter.message_id for letter in letters}
        return letters

    def is_idle(self, worker: str) -> bool:
        """Whether a worker holds no message."""
        queue = self.services.queues.name
        ledger = Ledger(self.history, queue=queue, visibility_timeout_s=self.visibility_timeout_s)
        return not any(each.holder == worker and each.is_open(time.monotonic()) for each in ledger.deliveries)

    async def evidence(self) -> Evidence:
        """The evidence for the invariants; takes the dead letters."""
        await self.take_dead_letters()
        counts = await self.counts()
        servers, queues = self.services.servers, self.services.queues
        return Evidence(
            history=self.history,
            source_bucket=self.services.source_bucket,
            output_bucket=self.services.output_bucket,
            queue=queues.name,
            dead_letter_queue=queues.dead_letter_name,
            visibility_timeout_s=self.visibility_timeout_s,
            max_receive_count=MAX_RECEIVES,
            secrets={
                "the secret key of MinIO": servers.objects.reader.secret_key,
                "the secret key of AWS": servers.objects.owner.secret_key,
            },
            objects=await self._read_all(list(await self.objects())),
            left_in_queue=counts.visible + counts.in_flight,
        )

    async def _read_all(self, keys: Sequence[str]) -> dict[str, bytes]:
        free = asyncio.Semaphore(_PARALLEL_READS)

        async def read(key: str) -> bytes:
            async with free:
                return await self.read(key)

        return dict(zip(keys, await asyncio.gather(*map(read, keys)), strict=True))

    async def _counts(self, url: str) -> Counts:
        answer = await self.sqs.get_queue_attributes(
            QueueUrl=url,
            AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"],
        )
        numbers = answer["Attributes"]
        return Counts(
            visible=int(numbers["ApproximateNumberOfMessages"]),
            in_flight=int(numbers["ApproximateNumberOfMessagesNotVisible"]),
        )

    async def _take_all(self, url: str) -> list[Letter]:
        letters: list[Letter] = []
        while True:
            received = await self.sqs.receive_message(
                QueueUrl=url,
                MaxNumberOfMessages=10,
                WaitTimeSeconds=0,
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["ApproximateReceiveCount"],
            )
            messages = received.get("Messages", [])
            for message in messages:
                attributes = message.get("MessageAttributes", {})
                letters.append(
                    Letter(
                        message_id=message["MessageId"],
                        body=message["Body"],
                        attributes={name: value.get("StringValue", "") for name, value in attributes.items()},
                        receive_count=int(message["Attributes"]["ApproximateReceiveCount"]),
                    )
                )
                await self.sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            if not messages:
                return letters


OpenSite = Callable[..., Awaitable[Site]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalServers]:
    """One S3 server and one SQS server for the whole session.

    They run on the loop of the session, and tests on other loops: tests use their addresses and keys only.
    """
    async with local_servers(tmp_path_factory.mktemp("servers"), readable=["source-*"]) as running:
        yield running


@pytest_asyncio.fixture
async def open_site(servers: LocalServers) -> AsyncIterator[OpenSite]:
    """A function that opens a site for the test: `await open_site(visibility_timeout_s=3)`.

    Its queues are on the session's server, or on an SQS at a given URL (request the fixture `open_sqs` first).
    """
    async with AsyncExitStack() as stack:
        owner = servers.objects.owner
        s3 = await stack.enter_async_context(s3_client(servers.objects.url, owner))

        async def opened(*, visibility_timeout_s: int = VISIBILITY_TIMEOUT_S, queues_url: str | None = None) -> Site:
            name = uuid.uuid4().hex[:12]
            site_servers = replace(servers, queues_url=queues_url or servers.queues_url)
            sqs = await stack.enter_async_context(sqs_client(site_servers.queues_url, owner))
            services = await open_services(
                site_servers,
                source_bucket=f"source-{name}",
                output_bucket=f"output-{name}",
                split_queue=f"split-{name}",
                visibility_timeout_s=visibility_timeout_s,
            )
            gateway = await stack.enter_async_context(
                open_gateway(objects_url=servers.objects.url, queues_url=site_servers.queues_url, history=History())
            )
            site = Site(_through(gateway, services), gateway, s3, sqs, visibility_timeout_s)
            stack.push_async_callback(_close, site)
            return site

        yield opened


@pytest_asyncio.fixture
async def site(open_site: OpenSite) -> Site:
    """New buckets and queues."""
    return await open_site()


def _through(gateway: Gateway, services: LocalServices) -> LocalServices:
    """Return the same services at the addresses of the gateway."""
    objects = replace(services.servers.objects, endpoint=gateway.objects_url.removeprefix("http://"))
    return replace(services, servers=LocalServers(objects, gateway.queues_url))


async def _close(site: Site) -> None:
    """Remove buckets and queues. An open multipart upload or a broken invariant fails the test."""
    left_open = await site.open_uploads()
    complaints = broken(await site.evidence())
    services = site.services
    for bucket in (services.source_bucket, services.output_bucket):
        await site.s3.delete_bucket(Bucket=bucket)  # this server also removes its objects
    for url in (services.queues.url, services.queues.dead_letter_url):
        await site.sqs.delete_queue(QueueUrl=url)
    assert not left_open, f"multipart uploads left open: {left_open}"
    assert not complaints, "\n".join(complaints)
