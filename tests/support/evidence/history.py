"""What happened at a site: every call to SQS, S3 and MinIO, as the gateway saw it, and what the test did."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote

import orjson

from stt_async.manifest import MANIFEST_NAME

Service = Literal["sqs", "s3", "minio"]

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
    """One HTTP call. Times are on the monotonic clock. None or empty: it has not happened yet."""

    service: Service
    operation: str
    """AWS's name: `PutObject`, `ReceiveMessage`."""
    sender: str = ""
    """The worker, as `worker-1`, or the command, as `enqueue`; empty for MinIO's client, which sends no name."""
    method: str = ""
    target: str = ""
    """Path and query, still encoded."""
    bucket: str = ""
    key: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    started_s: float = field(default_factory=time.monotonic)
    request: bytes = b""
    """The body, of SQS calls and manifests only."""
    request_bytes: int = 0
    request_sha256: str = ""
    was_passed_on: bool = False
    """Whether the call reached the server. Without a `served_status`, its effect is unknown."""
    served_status: int | None = None
    """The server's status, whether or not it reached the sender."""
    served_s: float | None = None
    served_answer: bytes = b""
    """The body of the server's answer, of SQS calls, manifests and XML only."""
    answer: bytes = b""
    """The body that the sender got: the same, except for faults."""
    answered_s: float | None = None
    """When the answer to the sender started."""
    status: int | None = None
    """The status that the sender got; None: no answer."""
    error_code: str = ""
    """The error code that the sender got, also in an answer with status 200."""
    ended_s: float | None = None
    faults: list[str] = field(default_factory=list)
    """The names of the rules that struck it."""

    def __str__(self) -> str:
        where = f"{self.bucket}/{self.key}" if self.bucket else self.queue
        struck = f" [{', '.join(self.faults)}]" if self.faults else ""
        status = self.status if self.status is not None else "no answer"
        return (
            f"{self.sender or 'unknown'}: {self.service} {self.operation} {where} -> {status} {self.error_code}{struck}"
        )

    @property
    def succeeded(self) -> bool:
        """Whether the sender got a successful answer."""
        return self.status is not None and self.status < 300 and not self.error_code

    @property
    def served(self) -> bool:
        """Whether the server executed it, whatever the sender got."""
        return self.served_status is not None and self.served_status < 300

    @property
    def is_of_manifest(self) -> bool:
        """Whether its object is a manifest."""
        return self.key.endswith(f"/{MANIFEST_NAME}")

    @property
    def arguments(self) -> Any:
        """The parameters of an SQS call."""
        return orjson.loads(self.request or b"{}")

    @property
    def result(self) -> Any:
        """The answer to an SQS call that the server executed."""
        return orjson.loads(self.served_answer or b"{}") if self.served else {}

    @property
    def queue(self) -> str:
        """The name of the queue of an SQS call."""
        arguments = self.arguments if self.service == "sqs" else {}
        return str(arguments.get("QueueUrl") or arguments.get("QueueName", "")).rsplit("/", 1)[-1]

    @property
    def entries(self) -> list[Any]:
        """The entries of a batch; a call for one message is one entry."""
        arguments = self.arguments
        return list(arguments.get("Entries", [arguments]))

    @property
    def served_entries(self) -> list[Any]:
        """The entries that the server executed."""
        if not self.served:
            return []
        failed = {each["Id"] for each in self.result.get("Failed", [])}
        return [entry for entry in self.entries if entry.get("Id") not in failed]

    @property
    def receipts(self) -> list[str]:
        """The receipt handles of an SQS call, in the order of its entries."""
        return [entry["ReceiptHandle"] for entry in self.entries if "ReceiptHandle" in entry]

    @property
    def messages(self) -> list[Any]:
        """The messages of a receive."""
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
        """The id of the message that became this dead letter."""
        return self.attributes.get("message_id", self.message_id)


@dataclass(eq=False, kw_only=True)
class Life:
    """A worker, as recorded by its starter. Without `ended_s` it has not ended yet."""

    name: str
    log: Path
    scratch: Path
    killed: bool = False
    """By SIGKILL from the test, so that it could not clean up."""
    ended_s: float | None = None
    returncode: int | None = None
    left: list[str] = field(default_factory=list)
    """Its processes and files that outlived it."""
    open_at_start: frozenset[str] = frozenset()
    """The regular files that it had open before its first receive."""
    open_when_idle: frozenset[str] | None = None
    """The same at the end of the test, if it was running and held no message; else None."""
    peak_memory_bytes: int | None = None

    @property
    def exited(self) -> bool:
        """Whether it ended without a signal that kills, and so could clean up."""
        return not self.killed and self.returncode is not None and self.returncode >= 0


class History:
    """All calls at a site, in the order of their starts, and what the test did."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.workers: list[Life] = []
        self.sent: dict[str, str] = {}
        """The bodies of messages that the test sent to the split queue, by message id."""
        self.taken: set[str] = set()
        """Ids of messages that the test took out of the split queue."""
        self.dead_letters: list[Letter] = []
        """The dead letters that the test took."""

    def of(self, service: Service, operation: str, *, sender: str | None = None) -> list[Call]:
        """Return the calls of one operation, by one sender or by all."""
        return [
            call
            for call in self.calls
            if (call.service, call.operation) == (service, operation) and sender in {None, call.sender}
        ]


def parse(service: Literal["sqs", "objects"], method: str, target: str, headers: Mapping[str, str]) -> Call:
    """Return the call of a request, without its body. The User-Agent distinguishes MinIO from S3."""
    agent = headers.get("User-Agent", "")
    application = _APPLICATION.search(agent)
    sender = application[1] if application else ""
    if service == "sqs":
        operation = headers.get("X-Amz-Target", "").removeprefix("AmazonSQS.")
        return Call(service="sqs", operation=operation, sender=sender, method=method, target=target)
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
