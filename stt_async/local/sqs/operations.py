"""Operations of the SQS API: each turns a request into a call of the model, and the result into an answer. No I/O.

The parameters of each function are those of the operation's page in the API Reference, in snake case. botocore's
description of SQS checks names and types. A parameter that this server does not implement is `UnsupportedOperation`:
none is silently ignored.
"""

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import botocore.session
from botocore import xform_name
from botocore.model import ServiceModel
from botocore.validate import ParamValidator

from stt_async.local.sqs import limits
from stt_async.local.sqs.limits import RefusedError, require_range
from stt_async.local.sqs.model import ACCOUNT, Sqs
from stt_async.local.sqs.queue import Message, Queue

Answer = dict[str, Any]
Entries = Sequence[Mapping[str, Any]]


def perform(sqs: Sqs, operation: str, parameters: Mapping[str, Any]) -> Answer:
    """Answer one request. A receive returns the messages that are visible now.

    Raises:
        RefusedError: SQS refuses the request, or this server does not implement it.
    """
    function = _OPERATIONS.get(operation)
    if function is None:
        raise RefusedError("UnsupportedOperation", f"This server does not implement {operation}.")
    shape: Any = _description().operation_model(operation).input_shape
    errors = ParamValidator().validate(parameters, shape)
    if errors.has_errors():
        raise RefusedError("ValidationError", errors.generate_report())
    return _call(function, sqs, operation, parameters)


@cache
def _description() -> ServiceModel:
    return botocore.session.get_session().get_service_model("sqs")


def _call(function: Callable[..., Answer], sqs: Sqs, operation: str, parameters: Mapping[str, Any]) -> Answer:
    arguments = {xform_name(name): value for name, value in parameters.items()}
    try:
        inspect.signature(function).bind(sqs, **arguments)
    except TypeError as error:
        raise RefusedError("UnsupportedOperation", f"{operation}: {error}.") from None
    return function(sqs, **arguments)


def _create_queue(sqs: Sqs, *, queue_name: str, attributes: Mapping[str, str] | None = None) -> Answer:
    return {"QueueUrl": _url(sqs, sqs.create_queue(queue_name, attributes or {}))}


def _list_queues(sqs: Sqs, *, queue_name_prefix: str = "") -> Answer:
    found = [_url(sqs, queue) for name, queue in sqs.queues.items() if name.startswith(queue_name_prefix)]
    return {"QueueUrls": found} if found else {}


def _get_queue_url(sqs: Sqs, *, queue_name: str) -> Answer:
    return {"QueueUrl": _url(sqs, sqs.queue(queue_name))}


def _delete_queue(sqs: Sqs, *, queue_url: str) -> Answer:
    sqs.delete_queue(sqs.queue(queue_url))
    return {}


def _get_queue_attributes(sqs: Sqs, *, queue_url: str, attribute_names: Sequence[str] = ()) -> Answer:
    found = sqs.attributes(sqs.queue(queue_url), attribute_names)
    return {"Attributes": found} if found else {}


def _set_queue_attributes(sqs: Sqs, *, queue_url: str, attributes: Mapping[str, str]) -> Answer:
    sqs.set_attributes(sqs.queue(queue_url), attributes)
    return {}


def _send_message(
    sqs: Sqs,
    *,
    queue_url: str,
    message_body: str,
    delay_seconds: int | None = None,
    message_attributes: Mapping[str, Any] | None = None,
) -> Answer:
    queue = sqs.queue(queue_url)
    attributes = message_attributes or {}
    delay_s = int(queue.attributes["DelaySeconds"]) if delay_seconds is None else delay_seconds
    limits.require_text(message_body)
    limits.require_attributes(attributes)
    require_range("DelaySeconds", delay_s, 0, limits.MAX_DELAY_S)
    max_bytes = int(queue.attributes["MaximumMessageSize"])
    if limits.message_bytes(message_body, attributes) > max_bytes:
        raise RefusedError(
            "InvalidParameterValue",
            f"One or more parameters are invalid. Reason: Message must be shorter than {max_bytes} bytes.",
        )
    message = queue.send(message_body, attributes, delay_s=delay_s)
    return {"MessageId": message.message_id, "MD5OfMessageBody": _md5(message_body)}


def _send_message_batch(sqs: Sqs, *, queue_url: str, entries: Entries) -> Answer:
    total = sum(limits.message_bytes(each["MessageBody"], each.get("MessageAttributes", {})) for each in entries)
    if total > limits.MAX_MESSAGE_BYTES:
        raise RefusedError(
            "BatchRequestTooLong",
            f"Batch requests cannot be longer than {limits.MAX_MESSAGE_BYTES} bytes. You have sent {total} bytes.",
        )
    return _batch(sqs, "SendMessage", queue_url, entries)


def _receive_message(
    sqs: Sqs,
    *,
    queue_url: str,
    max_number_of_messages: int = 1,
    visibility_timeout: int | None = None,
    wait_time_seconds: int = 0,
    message_attribute_names: Sequence[str] = (),
    attribute_names: Sequence[str] = (),
    message_system_attribute_names: Sequence[str] = (),
) -> Answer:
    queue = sqs.queue(queue_url)
    require_range("WaitTimeSeconds", wait_time_seconds, 0, limits.MAX_WAIT_TIME_S)  # the server waits
    require_range("MaxNumberOfMessages", max_number_of_messages, 1, limits.MAX_RECEIVED_MESSAGES)
    timeout_s = int(queue.attributes["VisibilityTimeout"]) if visibility_timeout is None else visibility_timeout
    require_range("VisibilityTimeout", timeout_s, 0, limits.MAX_VISIBILITY_TIMEOUT_S)
    messages = queue.receive(most=max_number_of_messages, visibility_timeout_s=timeout_s, redrive=sqs.redrive(queue))
    names = {*attribute_names, *message_system_attribute_names}
    return {"Messages": [_message(each, names, message_attribute_names) for each in messages]} if messages else {}


def _delete_message(sqs: Sqs, *, queue_url: str, receipt_handle: str) -> Answer:
    sqs.queue(queue_url).delete(receipt_handle)
    return {}


def _delete_message_batch(sqs: Sqs, *, queue_url: str, entries: Entries) -> Answer:
    return _batch(sqs, "DeleteMessage", queue_url, entries)


def _change_message_visibility(sqs: Sqs, *, queue_url: str, receipt_handle: str, visibility_timeout: int) -> Answer:
    sqs.queue(queue_url).change_visibility(receipt_handle, visibility_timeout)
    return {}


def _change_message_visibility_batch(sqs: Sqs, *, queue_url: str, entries: Entries) -> Answer:
    return _batch(sqs, "ChangeMessageVisibility", queue_url, entries)


_OPERATIONS: dict[str, Callable[..., Answer]] = {
    "CreateQueue": _create_queue,
    "ListQueues": _list_queues,
    "GetQueueUrl": _get_queue_url,
    "DeleteQueue": _delete_queue,
    "GetQueueAttributes": _get_queue_attributes,
    "SetQueueAttributes": _set_queue_attributes,
    "SendMessage": _send_message,
    "SendMessageBatch": _send_message_batch,
    "ReceiveMessage": _receive_message,
    "DeleteMessage": _delete_message,
    "DeleteMessageBatch": _delete_message_batch,
    "ChangeMessageVisibility": _change_message_visibility,
    "ChangeMessageVisibilityBatch": _change_message_visibility_batch,
}


def _batch(sqs: Sqs, operation: str, queue_url: str, entries: Entries) -> Answer:
    """Run an operation for each entry; a refused entry does not affect the others (API_SendMessageBatch.html)."""
    sqs.queue(queue_url)
    limits.require_batch([entry["Id"] for entry in entries])
    done: list[Answer] = []
    failed: list[Answer] = []
    for entry in entries:
        parameters = {name: value for name, value in entry.items() if name != "Id"}
        try:
            answer = _call(_OPERATIONS[operation], sqs, operation, {"QueueUrl": queue_url} | parameters)
            done.append({"Id": entry["Id"]} | answer)
        except RefusedError as error:
            failed.append({"Id": entry["Id"], "SenderFault": True, "Code": error.code, "Message": error.message})
    return {"Successful": done, "Failed": failed} if failed else {"Successful": done}


def _url(sqs: Sqs, queue: Queue) -> str:
    return f"{sqs.url}/{ACCOUNT}/{queue.name}"


def _message(message: Message, system_names: set[str], names: Sequence[str]) -> Answer:
    answer: Answer = {
        "MessageId": message.message_id,
        "ReceiptHandle": message.handle,
        "Body": message.body,
        "MD5OfBody": _md5(message.body),
    }
    system = {
        "ApproximateReceiveCount": str(message.receive_count),
        "ApproximateFirstReceiveTimestamp": str(round((message.first_received_s or 0.0) * 1000)),
        "SentTimestamp": str(round(message.sent_s * 1000)),
    }
    if message.dead_letter_source is not None:
        system["DeadLetterQueueSourceArn"] = message.dead_letter_source
    asked = {name: value for name, value in system.items() if name in system_names or "All" in system_names}
    attributes = {name: value for name, value in message.attributes.items() if not {"All", name}.isdisjoint(names)}
    return answer | ({"Attributes": asked} if asked else {}) | ({"MessageAttributes": attributes} if attributes else {})


def _md5(body: str) -> str:
    return hashlib.md5(body.encode()).hexdigest()  # noqa: S324 - SQS answers with MD5
