"""What happened at a site: every call to SQS, S3 and MinIO, seen from outside of who made it, and what the test did."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote

import orjson

from stt_async.manifest import MANIFEST_NAME

Service = Literal["sqs", "s3", "minio", "other"]
"""`other` is what else the SQS emulator can do."""

_APPLICATION = re.compile(r"\bapp/(\S+)")
_MINIO_CLIENT = "miniopy"

_OBJECT_OPERATIONS = {
    ("PUT", "partNumber"): "UploadPart",
    ("POST", "uploads"): "CreateMultipartUpload",
    ("POST", "uploadId"): "CompleteMultipartUpload",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
    ("GET", "uploadId"): "ListParts",
}
_BUCKET_OPERATIONS = {
    ("GET", "list-type"): "ListObjectsV2",
    ("GET", "uploads"): "ListMultipartUploads",
    ("GET", "location"): "GetBucketLocation",
    ("POST", "delete"): "DeleteObjects",
}
_PLAIN_OBJECT_OPERATIONS = {
    "GET": "GetObject",
    "HEAD": "HeadObject",
    "PUT": "PutObject",
    "DELETE": "DeleteObject",
}
_PLAIN_BUCKET_OPERATIONS = {
    "GET": "ListObjects",
    "HEAD": "HeadBucket",
    "PUT": "CreateBucket",
    "DELETE": "DeleteBucket",
}


@dataclass(slots=True, eq=False, kw_only=True)
class Call:
    """One HTTP call. Times are on the monotonic clock; what is None or empty has not happened (yet)."""

    service: Service
    operation: str
    """As AWS names it: `PutObject`, `ReceiveMessage`."""
    sender: str = ""
    """Who made it: `worker-1`, or the command (`enqueue`). MinIO's client does not tell: empty."""
    method: str = ""
    target: str = ""
    """Path and query as they came."""
    bucket: str = ""
    key: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    started_s: float = field(default_factory=time.monotonic)
    request: bytes = b""
    """The body of an SQS call and of a manifest; others are not kept."""
    request_bytes: int = 0
    request_sha256: str = ""
    served_status: int | None = None
    """What the server answered, whether or not the sender came to hear of it."""
    served_s: float | None = None
    served_answer: bytes = b""
    """The body of the server's answer: to an SQS call, of a manifest, of anything in XML; others are not kept."""
    answer: bytes = b""
    """The body that the sender got; the same, but for faults."""
    told_s: float | None = None
    """When the sender was answered."""
    status: int | None = None
    """What the sender was told; None if it was told nothing."""
    error_code: str = ""
    """Of the answer that the sender got, also of one with status 200."""
    ended_s: float | None = None
    faults: list[str] = field(default_factory=list)
    """The faults that struck it."""

    def __str__(self) -> str:
        where = f"{self.bucket}/{self.key}" if self.bucket else self.queue
        struck = f" [{', '.join(self.faults)}]" if self.faults else ""
        told = self.status if self.status is not None else "no answer"
        return (
            f"{self.sender or 'somebody'}: {self.service} {self.operation} {where} -> {told} {self.error_code}{struck}"
        )

    @property
    def succeeded(self) -> bool:
        """Whether the sender was told that it was done."""
        return self.status is not None and self.status < 300 and not self.error_code

    @property
    def served(self) -> bool:
        """Whether the server did it, whatever the sender was told."""
        return self.served_status is not None and self.served_status < 300

    @property
    def is_of_manifest(self) -> bool:
        """Whether it is about a recording's metadata.json."""
        return self.key.endswith(f"/{MANIFEST_NAME}")

    @property
    def arguments(self) -> Any:
        """The parameters of an SQS call."""
        return orjson.loads(self.request or b"{}")

    @property
    def result(self) -> Any:
        """What the server answered to an SQS call that it did."""
        return orjson.loads(self.served_answer or b"{}") if self.served else {}

    @property
    def queue(self) -> str:
        """The name of the queue of an SQS call."""
        arguments = self.arguments if self.service == "sqs" else {}
        return str(arguments.get("QueueUrl") or arguments.get("QueueName", "")).rsplit("/", 1)[-1]

    @property
    def entries(self) -> list[Any]:
        """The entries of a batch; the parameters of a call for one message are one."""
        arguments = self.arguments
        return list(arguments.get("Entries", [arguments]))

    @property
    def done_entries(self) -> list[Any]:
        """Those that the server did."""
        if not self.served:
            return []
        failed = {each["Id"] for each in self.result.get("Failed", [])}
        return [entry for entry in self.entries if entry.get("Id") not in failed]

    @property
    def receipts(self) -> list[str]:
        """The receipt handles that an SQS call names, in the order of its entries."""
        return [entry["ReceiptHandle"] for entry in self.entries if "ReceiptHandle" in entry]

    @property
    def messages(self) -> list[Any]:
        """The messages that a receive brought."""
        return list(self.result.get("Messages", []))


@dataclass(frozen=True)
class Letter:
    """A message taken from a queue."""

    message_id: str
    body: str
    attributes: dict[str, str]
    receive_count: int

    @property
    def job(self) -> Any:
        """The body, parsed."""
        return orjson.loads(self.body)

    @property
    def origin(self) -> str:
        """Of a dead letter: the id of the message that it was."""
        return self.attributes.get("message_id", self.message_id)


@dataclass(eq=False, kw_only=True)
class Life:
    """A worker as its starter saw it. Without `ended_s` it has not ended yet."""

    name: str
    log: Path
    scratch: Path
    killed: bool = False
    """By SIGKILL, on purpose: it could not tidy up."""
    ended_s: float | None = None
    returncode: int | None = None
    left: list[str] = field(default_factory=list)
    """Processes and files of its that outlived it."""
    open_at_start: frozenset[str] = frozenset()
    """The regular files that it had open when it was about to receive for the first time."""
    open_when_idle: frozenset[str] | None = None
    """The same, at the end of the test, when it held no message; None if it did not come to that."""
    peak_memory_bytes: int | None = None

    @property
    def ended_in_order(self) -> bool:
        """Whether it ended by itself, and so had the time to tidy up."""
        return not self.killed and self.returncode is not None and self.returncode >= 0


class History:
    """Everything that was done at a site, in the order in which it began."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.workers: list[Life] = []
        self.sent: dict[str, str] = {}
        """The bodies of the messages that the test itself sent to the split queue, by message id."""
        self.taken: set[str] = set()
        """Ids of the messages that the test itself took out of the split queue."""
        self.dead_letters: list[Letter] = []
        """What was in the dead-letter queue; the test takes them out to look at them."""

    def of(self, service: Service, operation: str, *, sender: str | None = None) -> list[Call]:
        """The calls of one operation, by one sender or by all."""
        return [
            call
            for call in self.calls
            if (call.service, call.operation) == (service, operation) and sender in {None, call.sender}
        ]


def parse(service: Literal["sqs", "objects"], method: str, target: str, headers: Mapping[str, str]) -> Call:
    """The call that a request is, still without its body. Which of the object stores, its User-Agent tells."""
    agent = headers.get("User-Agent", "")
    application = _APPLICATION.search(agent)
    sender = application[1] if application else ""
    if service == "sqs":
        protocol, _, operation = headers.get("X-Amz-Target", "").partition(".")
        spoken: Service = "sqs" if protocol == "AmazonSQS" else "other"
        return Call(service=spoken, operation=operation, sender=sender, method=method, target=target)
    path, _, query_string = target.partition("?")
    query = dict(parse_qsl(query_string, keep_blank_values=True))
    bucket, _, key = unquote(path).removeprefix("/").partition("/")
    return Call(
        service="minio" if _MINIO_CLIENT in agent else "s3",
        operation=_object_operation(method, bucket, key, query, headers),
        sender=sender,
        method=method,
        target=target,
        bucket=bucket,
        key=key,
        query=query,
    )


def _object_operation(method: str, bucket: str, key: str, query: Mapping[str, str], headers: Mapping[str, str]) -> str:
    if not bucket:
        return "ListBuckets"
    special, plain = (
        (_OBJECT_OPERATIONS, _PLAIN_OBJECT_OPERATIONS) if key else (_BUCKET_OPERATIONS, _PLAIN_BUCKET_OPERATIONS)
    )
    for (verb, parameter), operation in special.items():
        if method == verb and parameter in query:
            return operation
    if "x-amz-copy-source" in headers:
        return "CopyObject"
    return plain.get(method, method)
