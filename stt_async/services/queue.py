"""SQS: receive, extend, settle and send messages."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson
from botocore.exceptions import ClientError

from stt_async.errors import ClassifiedError, DependencyError, LeaseLostError, TransientError
from stt_async.retry import Retry
from stt_async.services.aws import error_code, translated

if TYPE_CHECKING:
    from types_aiobotocore_sqs import SQSClient
    from types_aiobotocore_sqs.literals import MessageSystemAttributeNameType

BATCH = 10
"""Most messages in one SQS call."""

_LOST = frozenset({"MessageNotInflight", "ReceiptHandleIsInvalid", "InvalidParameterValue"})
_ATTRIBUTE_CHARACTERS = 1000
_ATTRIBUTES_BYTES = 8 * 1024
"""Upper bound of all attributes of a dead letter, at four bytes a character."""

_MESSAGE_BYTES = (256 * 1024, 1024 * 1024)
"""Most bytes of body and attributes: in queues created before August 2025, and in later ones (AWS, "Amazon SQS message
quotas"). A body above the first quota comes from a later queue, and its dead-letter queue allows as much."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message received. Its job is not parsed yet."""

    message_id: str
    receipt_handle: str = field(repr=False)
    body: str
    receive_count: int
    received_at_s: float
    """Monotonic clock, read before the call: the visibility timeout starts no earlier."""
    queue_wait_s: float = 0.0
    """From the send to the first receive, by SQS's clock."""


@dataclass(frozen=True, slots=True)
class Depth:
    """The number of messages in a queue, as SQS estimates."""

    visible: int
    in_flight: int
    delayed: int

    @property
    def empty(self) -> bool:
        """Whether the queue holds no message at all."""
        return not (self.visible or self.in_flight or self.delayed)


class JobQueue:
    """One queue of jobs and its dead-letter queue. Every method raises the failure classes of `errors`."""

    def __init__(
        self, client: "SQSClient", *, url: str, dead_letter_url: str, max_receive_count: int, retry: Retry
    ) -> None:
        self._client = client
        self._retry = retry
        self.url = url
        self.dead_letter_url = dead_letter_url
        self.max_receive_count = max_receive_count

    def on(self, client: "SQSClient") -> "JobQueue":
        """Return the same queue on another client."""
        return JobQueue(
            client,
            url=self.url,
            dead_letter_url=self.dead_letter_url,
            max_receive_count=self.max_receive_count,
            retry=self._retry,
        )

    async def receive(self, *, most: int, wait_time_s: int, visibility_timeout_s: int) -> list[Message]:
        """Long poll for up to `most` messages (at most 10). A failed call is not retried: the caller polls again."""
        called_at_s = time.monotonic()
        with translated("SQS"):
            answer = await self._client.receive_message(
                QueueUrl=self.url,
                MaxNumberOfMessages=min(BATCH, most),
                WaitTimeSeconds=wait_time_s,
                VisibilityTimeout=visibility_timeout_s,
                MessageSystemAttributeNames=[
                    "ApproximateReceiveCount",
                    "SentTimestamp",
                    "ApproximateFirstReceiveTimestamp",
                ],
            )
        return [
            Message(
                message_id=message["MessageId"],
                receipt_handle=message["ReceiptHandle"],
                body=message["Body"],
                receive_count=int(message["Attributes"]["ApproximateReceiveCount"]),
                received_at_s=called_at_s,
                queue_wait_s=_queue_wait_s(message["Attributes"]),
            )
            for message in answer.get("Messages", [])
        ]

    async def extend(self, messages: Sequence[Message], visibility_timeout_s: int) -> dict[str, str]:
        """Set (not add to) the visibility timeout of up to 10 messages.

        Returns:
            The error code of each message that was not extended, by receipt handle: a worker may hold a message twice.
        """
        with translated("SQS"):
            answer = await self._client.change_message_visibility_batch(
                QueueUrl=self.url,
                Entries=[
                    {"Id": str(n), "ReceiptHandle": m.receipt_handle, "VisibilityTimeout": visibility_timeout_s}
                    for n, m in enumerate(messages)
                ],
            )
        return {messages[int(failed["Id"])].receipt_handle: failed["Code"] for failed in answer.get("Failed", [])}

    async def release(self, message: Message, *, after_s: int) -> None:
        """Make a message visible to all workers after `after_s` seconds."""
        await self._retry(self._settle, "change_message_visibility", message, VisibilityTimeout=after_s)

    async def delete(self, message: Message) -> None:
        """Delete a message.

        Raises:
            LeaseLostError: the receipt handle is no longer valid; SQS delivers the message again.
        """
        await self._retry(self._settle, "delete_message", message)

    async def dead_letter(self, message: Message, error: ClassifiedError) -> None:
        """Copy a message to the dead-letter queue, body unchanged, with the reason as attributes; then delete it.

        A body that leaves no room for the reason is cut, and `body_bytes` holds its full length (a job has at most
        64 KiB). Otherwise SQS would refuse the copy, and finally redrive the message without a reason.

        If the delete fails, SQS delivers the message again and it is dead-lettered twice: a duplicate, never a loss.
        """
        reason = {
            "failure": error.failure,
            "code": error.code,
            "reason": error.message,
            "receive_count": str(message.receive_count),
            "message_id": message.message_id,
        }
        body, encoded = message.body, message.body.encode(errors="surrogatepass")
        quota_bytes = next((quota for quota in _MESSAGE_BYTES if len(encoded) <= quota), _MESSAGE_BYTES[-1])
        if len(encoded) > (most_bytes := quota_bytes - _ATTRIBUTES_BYTES):
            body, reason["body_bytes"] = encoded[:most_bytes].decode(errors="ignore"), str(len(encoded))
        await self._retry(self._send_dead_letter, body, reason)
        await self.delete(message)

    async def send(self, bodies: Sequence[str]) -> None:
        """Send up to 10 messages. Messages that SQS refuses are sent again."""
        unsent = list(bodies)

        async def send_batch() -> None:
            with translated("SQS"):
                answer = await self._client.send_message_batch(
                    QueueUrl=self.url,
                    Entries=[{"Id": str(n), "MessageBody": body} for n, body in enumerate(unsent)],
                )
            refused = answer.get("Failed", [])
            unsent[:] = [unsent[int(failed["Id"])] for failed in refused]
            if refused:
                raise TransientError("send_refused", f"SQS refused {len(refused)} messages: {refused[0]['Code']}")

        await self._retry(send_batch)

    async def depth(self) -> Depth:
        """Return the number of messages in the queue."""
        return await self._retry(self._depth, self.url)

    async def dead_letter_depth(self) -> Depth:
        """Return the number of messages in the dead-letter queue."""
        return await self._retry(self._depth, self.dead_letter_url)

    async def _depth(self, url: str) -> Depth:
        with translated("SQS"):
            answer = await self._client.get_queue_attributes(
                QueueUrl=url,
                AttributeNames=[
                    "ApproximateNumberOfMessages",
                    "ApproximateNumberOfMessagesNotVisible",
                    "ApproximateNumberOfMessagesDelayed",
                ],
            )
        counts = answer["Attributes"]
        return Depth(
            visible=int(counts["ApproximateNumberOfMessages"]),
            in_flight=int(counts["ApproximateNumberOfMessagesNotVisible"]),
            delayed=int(counts["ApproximateNumberOfMessagesDelayed"]),
        )

    async def _settle(self, operation: str, message: Message, **arguments: int) -> None:
        with translated("SQS"):
            try:
                await getattr(self._client, operation)(
                    QueueUrl=self.url, ReceiptHandle=message.receipt_handle, **arguments
                )
            except ClientError as error:
                if is_lost(error_code(error)):
                    raise LeaseLostError(f"{operation} of message {message.message_id}: {error_code(error)}") from error
                raise

    async def _send_dead_letter(self, body: str, reason: dict[str, str]) -> None:
        with translated("SQS"):
            await self._client.send_message(
                QueueUrl=self.dead_letter_url,
                MessageBody=body,
                MessageAttributes={
                    name: {"DataType": "String", "StringValue": _attribute(value)} for name, value in reason.items()
                },
            )


async def open_queue(client: "SQSClient", name_or_url: str, retry: Retry) -> JobQueue:
    """Find a queue and, by its redrive policy, its dead-letter queue.

    Raises:
        DependencyError: a queue does not exist, or it has no redrive policy.
    """
    return await retry(_find, client, name_or_url, retry)


async def _find(client: "SQSClient", name_or_url: str, retry: Retry) -> JobQueue:
    with translated(f"SQS (queue {name_or_url})"):
        url = name_or_url if "/" in name_or_url else (await client.get_queue_url(QueueName=name_or_url))["QueueUrl"]
        answer = await client.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"])
        if "RedrivePolicy" not in answer.get("Attributes", {}):
            raise DependencyError(
                "no_dead_letter_queue",
                f"the queue {url} has no redrive policy, so a message that always fails would return for ever. "
                "Give the queue a dead-letter queue and a maxReceiveCount of 5.",
            )
        policy = orjson.loads(answer["Attributes"]["RedrivePolicy"])
        dead_letter_name = policy["deadLetterTargetArn"].rsplit(":", 1)[1]
        dead_letter_url = (await client.get_queue_url(QueueName=dead_letter_name))["QueueUrl"]
    return JobQueue(
        client,
        url=url,
        dead_letter_url=dead_letter_url,
        max_receive_count=int(policy["maxReceiveCount"]),
        retry=retry,
    )


def is_lost(code: str) -> bool:
    """Return whether an error code means that this worker no longer holds the message.

    Some calls answer `InvalidParameterValue` to an expired handle.
    """
    return code.rsplit(".", 1)[-1] in _LOST


def _queue_wait_s(attributes: "Mapping[MessageSystemAttributeNameType, str]") -> float:
    return (int(attributes["ApproximateFirstReceiveTimestamp"]) - int(attributes["SentTimestamp"])) / 1000


def _attribute(text: str) -> str:
    """Return the text as a valid message attribute: SQS refuses empty ones, and characters that XML does not allow."""
    clean = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return clean[:_ATTRIBUTE_CHARACTERS] or "-"
