"""Limits of SQS, and its errors.

Numbers: "Amazon SQS message quotas" in the Developer Guide (quotas-messages.html), and the operation's page in the API
Reference. Codes: "Errors" on that page, and "Common Errors" (CommonErrors.html). The two names of each error:
"Interpreting Amazon SQS JSON API responses" (sqs-json-api-responses.html).
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

MAX_BATCH_ENTRIES = 10
MAX_RECEIVED_MESSAGES = 10
MAX_MESSAGE_ATTRIBUTES = 10
MAX_WAIT_TIME_S = 20
MAX_VISIBILITY_TIMEOUT_S = 43_200
MAX_DELAY_S = 900
MAX_MESSAGE_BYTES = 1_048_576

_UNQUALIFIED = {
    "IncompleteSignature",
    "InvalidAttributeName",
    "InvalidAttributeValue",
    "InvalidMessageContents",
    "InvalidParameterValue",
    "InvalidSignatureException",
    "MissingAction",
    "MissingParameter",
    "ReceiptHandleIsInvalid",
    "ValidationError",
}
_RENAMED = {"QueueDoesNotExist": "AWS.SimpleQueueService.NonExistentQueue", "QueueNameExists": "QueueAlreadyExists"}
_ENTRY_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")
# API_SendMessage: #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF
_NOT_ALLOWED = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class RefusedError(Exception):
    """SQS refuses a request.

    Args:
        shape: Name of the error in the API Reference.
        message: Text of the error.
    """

    def __init__(self, shape: str, message: str) -> None:
        super().__init__(message)
        self.shape = shape
        self.message = message

    @property
    def code(self) -> str:
        """Name of the error in the older query protocol, which clients still show as the error code."""
        if self.shape in _UNQUALIFIED:
            return self.shape
        return _RENAMED.get(self.shape, f"AWS.SimpleQueueService.{self.shape}")


def invalid(parameter: str, value: object, reason: str) -> RefusedError:
    """Return the error for an invalid value of a parameter."""
    return RefusedError(
        "InvalidParameterValue", f"Value {value} for parameter {parameter} is invalid. Reason: {reason}"
    )


def require_range(parameter: str, value: int, least: int, most: int) -> None:
    """Refuse a number that is out of range."""
    if not least <= value <= most:
        raise invalid(parameter, value, f"Must be >= {least} and <= {most}, if provided.")


def require_text(body: str) -> None:
    """Refuse an empty body, and characters that XML does not allow."""
    if not body:
        raise RefusedError("MissingParameter", "The request must contain the parameter MessageBody.")
    if found := _NOT_ALLOWED.search(body):
        raise RefusedError(
            "InvalidMessageContents", f"Invalid binary character '#x{ord(found[0]):X}' was found in the message body."
        )


def require_attributes(attributes: Mapping[str, Any]) -> None:
    """Refuse attributes that break "Message attribute components" (sqs-message-metadata.html)."""
    if len(attributes) > MAX_MESSAGE_ATTRIBUTES:
        raise RefusedError(
            "InvalidParameterValue",
            f"Number of message attributes [{len(attributes)}] exceeds the allowed maximum [{MAX_MESSAGE_ATTRIBUTES}].",
        )
    for name, value in attributes.items():
        kind = value["DataType"].split(".", 1)[0]
        content = value.get("BinaryValue" if kind == "Binary" else "StringValue")
        if kind not in {"String", "Number", "Binary"} or not content or _NOT_ALLOWED.search(content):
            raise RefusedError(
                "InvalidParameterValue",
                f"Message (user) attribute '{name}' must contain a non-empty, valid value of type '{kind}'.",
            )


def message_bytes(body: str, attributes: Mapping[str, Any]) -> int:
    """Return the size that SQS limits: the body, and the name, type and value of each attribute."""
    texts = [body, *attributes, *(value["DataType"] for value in attributes.values())]
    texts += [value["StringValue"] for value in attributes.values() if "StringValue" in value]
    binaries = [base64.b64decode(value["BinaryValue"]) for value in attributes.values() if "BinaryValue" in value]
    return sum(len(text.encode()) for text in texts) + sum(len(binary) for binary in binaries)


def require_batch(ids: Sequence[str]) -> None:
    """Refuse a whole batch if it has too few or too many entries, or invalid ids."""
    if not ids:
        raise RefusedError("EmptyBatchRequest", "There should be at least one entry in the request.")
    if len(ids) > MAX_BATCH_ENTRIES:
        raise RefusedError(
            "TooManyEntriesInBatchRequest",
            f"Maximum number of entries per request are {MAX_BATCH_ENTRIES}. You have sent {len(ids)}.",
        )
    for each in ids:
        if not _ENTRY_ID.fullmatch(each):
            raise RefusedError(
                "InvalidBatchEntryId",
                "A batch entry id can only contain alphanumeric characters, hyphens and underscores. "
                "It can be at most 80 letters long.",
            )
        if ids.count(each) > 1:
            raise RefusedError("BatchEntryIdsNotDistinct", f"Id {each} repeated.")
