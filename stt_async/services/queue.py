"""SQS: messages in, and what becomes of them."""

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
"""Messages in one SQS call, at most."""

_LOST = frozenset({"MessageNotInflight", "ReceiptHandleIsInvalid", "InvalidParameterValue"})
_ATTRIBUTE_CHARACTERS = 1000
_ATTRIBUTES_BYTES = 8 * 1024
"""More than all attributes of a copy take, at four bytes a character."""

_MESSAGE_BYTES = (256 * 1024, 1024 * 1024)
"""Body and attributes of a message, at most: of a queue made before August 2025, and of one made since (AWS, "Amazon
SQS message quotas"). Which one this is, nobody needs to be asked: a dead-letter queue takes what its queue took."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message received; its job is not parsed yet."""

    message_id: str
    receipt_handle: str = field(repr=False)
    body: str
    receive_count: int
    received_at_s: float
    """On the monotonic clock, taken before the call: the visibility timeout runs from no earlier than this."""
    queue_wait_s: float = 0.0
    """From its sending to its first receive, by SQS's clock."""


@dataclass(frozen=True, slots=True)
class Depth:
    """How many messages a queue holds, as SQS estimates."""

    visible: int
    in_flight: int
    delayed: int

    @property
    def empty(self) -> bool:
        """Nothing waits, nothing is being worked on, nothing comes back later."""
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
        """Return the same queue, spoken to through another client."""
        return JobQueue(
            client,
            url=self.url,
            dead_letter_url=self.dead_letter_url,
            max_receive_count=self.max_receive_count,
            retry=self._retry,
        )

    async def receive(self, *, most: int, wait_time_s: int, visibility_timeout_s: int) -> list[Message]:
        """Long poll for up to `most` messages (10 a call). Not retried here: the caller polls again anyway."""
        asked_at_s = time.monotonic()
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
                received_at_s=asked_at_s,
                queue_wait_s=_queue_wait_s(message["Attributes"]),
            )
            for message in answer.get("Messages", [])
        ]

    async def extend(self, messages: Sequence[Message], visibility_timeout_s: int) -> dict[str, str]:
        """Set (not add to) the visibility timeout of up to 10 messages.

        Returns:
            The error code of each message that was not extended, by receipt handle: one message may be held twice.
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
        """Give a message back: anybody may receive it `after_s` seconds from now."""
        await self._retry(self._settle, "change_message_visibility", message, VisibilityTimeout=after_s)

    async def delete(self, message: Message) -> None:
        """Delete a message.

        Raises:
            LeaseLostError: it was no longer ours; SQS will deliver it again.
        """
        await self._retry(self._settle, "delete_message", message)

    async def dead_letter(self, message: Message, error: ClassifiedError) -> None:
        """Copy a message to the dead-letter queue, body unchanged, with the reason as attributes; then delete it.

        Of a body that leaves no room for the reason the beginning is copied, and `body_bytes` says how long it was (a
        job has 64 KiB at most): else SQS would refuse the copy until it redrives the message without a word.

        Should the delete fail, the job comes again and is dead-lettered twice: a duplicate, never a loss.
        """
        reason = {
            "failure": error.failure,
            "code": error.code,
            "reason": error.message,
            "receive_count": str(message.receive_count),
            "message_id": message.message_id,
        }
        body, written = message.body, message.body.encode(errors="surrogatepass")
        room = next((most for most in _MESSAGE_BYTES if len(written) <= most), _MESSAGE_BYTES[-1]) - _ATTRIBUTES_BYTES
        if len(written) > room:
            body, reason["body_bytes"] = written[:room].decode(errors="ignore"), str(len(written))
        await self._retry(self._send_dead_letter, body, reason)
        await self.delete(message)

    async def send(self, bodies: Sequence[str]) -> None:
        """Send up to 10 messages; what SQS refuses out of them is sent again."""
        left = list(bodies)

        async def send_left() -> None:
            with translated("SQS"):
                answer = await self._client.send_message_batch(
                    QueueUrl=self.url,
                    Entries=[{"Id": str(n), "MessageBody": body} for n, body in enumerate(left)],
                )
            refused = answer.get("Failed", [])
            left[:] = [left[int(failed["Id"])] for failed in refused]
            if refused:
                raise TransientError("send_refused", f"SQS refused {len(refused)} messages: {refused[0]['Code']}")

        await self._retry(send_left)

    async def depth(self) -> Depth:
        """Return how many messages there are."""
        return await self._retry(self._depth, self.url)

    async def dead_letter_depth(self) -> Depth:
        """Return how many messages the dead-letter queue holds."""
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
        DependencyError: either is not there, or the queue has no redrive policy.
    """
    return await retry(_find, client, name_or_url, retry)


async def _find(client: "SQSClient", name_or_url: str, retry: Retry) -> JobQueue:
    with translated(f"SQS (queue {name_or_url})"):
        url = name_or_url if "/" in name_or_url else (await client.get_queue_url(QueueName=name_or_url))["QueueUrl"]
        answer = await client.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"])
        if "RedrivePolicy" not in answer.get("Attributes", {}):
            raise DependencyError(
                "no_dead_letter_queue",
                f"the queue {url} has no redrive policy: what fails for ever would circle for ever. "
                "Give it a dead-letter queue and a maxReceiveCount of 5.",
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
    """Tell whether an error code means that the message is no longer ours.

    `InvalidParameterValue` is how SQS words an expired handle in some calls.
    """
    return code.rsplit(".", 1)[-1] in _LOST


def _queue_wait_s(attributes: "Mapping[MessageSystemAttributeNameType, str]") -> float:
    return (int(attributes["ApproximateFirstReceiveTimestamp"]) - int(attributes["SentTimestamp"])) / 1000


def _attribute(text: str) -> str:
    """Make a text fit for a message attribute: SQS refuses empty ones, and characters that XML has not."""
    clean = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return clean[:_ATTRIBUTE_CHARACTERS] or "-"
