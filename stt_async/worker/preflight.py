"""Preflight: every service must be reachable and permitted. Also the breaker's probe, and part of doctor."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from stt_async.errors import ClassifiedError
from stt_async.services.connections import Connections
from stt_async.settings import Settings

_QUEUE = (
    "Check STT_SPLIT_QUEUE, AWS_REGION and the AWS credentials, which need sqs:GetQueueUrl, sqs:GetQueueAttributes, "
    "sqs:ReceiveMessage, sqs:ChangeMessageVisibility and sqs:DeleteMessage"
)
_DEAD_LETTERS = (
    "Check the queue's RedrivePolicy; the AWS credentials need sqs:GetQueueUrl, sqs:GetQueueAttributes and "
    "sqs:SendMessage on the dead-letter queue"
)
_SOURCE = (
    "Check STT_MINIO_ENDPOINT, STT_MINIO_SECURE, STT_SOURCE_BUCKET, STT_MINIO_ACCESS_KEY and STT_MINIO_SECRET_KEY; "
    "the key needs s3:ListBucket and s3:GetObject"
)
_OUTPUT = (
    "Check STT_OUTPUT_BUCKET, AWS_REGION and the AWS credentials, which need s3:ListBucket on the bucket, and "
    "s3:GetObject, s3:PutObject and s3:AbortMultipartUpload on its objects"
)


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    name: str
    error: ClassifiedError | None
    detail: str

    @property
    def ok(self) -> bool:
        """Whether the check passed."""
        return self.error is None


async def run_check(name: str, call: Callable[[], Awaitable[str]], advice: str) -> Check:
    """Run one check: `call` returns a detail or raises a ClassifiedError, to which `advice` is appended."""
    try:
        return Check(name, None, await call())
    except ClassifiedError as error:
        return Check(name, error, f"{error.message}. {advice}")


async def checks(services: Connections, settings: Settings) -> AsyncIterator[Check]:
    """Run the checks, one after the other."""

    async def jobs() -> str:
        depth = await (await services.queue()).depth()
        return (
            f"{depth.visible} waiting, {depth.in_flight} in flight; not tried, as it would receive messages: "
            "sqs:ReceiveMessage, sqs:ChangeMessageVisibility, sqs:DeleteMessage"
        )

    async def dead_letters() -> str:
        queue = await services.queue()
        depth = await queue.dead_letter_depth()
        return (
            f"{depth.visible} waiting; SQS moves a message here after {queue.max_receive_count} receives; "
            "not tried, as it would leave a message: sqs:SendMessage"
        )

    async def recordings() -> str:
        return await services.source.probe(settings.source_bucket)

    async def segments() -> str:
        await services.sink.probe()
        return "a missing object reads as missing; uploaded a part, and aborted its multipart upload"

    yield await run_check(f"queue {settings.split_queue}", jobs, _QUEUE)
    yield await run_check("its dead-letter queue", dead_letters, _DEAD_LETTERS)
    yield await run_check(f"source {settings.minio_endpoint}/{settings.source_bucket}", recordings, _SOURCE)
    yield await run_check(f"output {settings.output_bucket}", segments, _OUTPUT)


async def require_services(services: Connections, settings: Settings) -> None:
    """Raise the first error of `checks`."""
    async for check in checks(services, settings):
        if check.error is not None:
            raise check.error
