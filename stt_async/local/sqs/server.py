"""SQS over HTTP on loopback, in the AWS JSON 1.0 protocol, which SQS clients speak since 2023.

Requests: `POST /` with `X-Amz-Target: AmazonSQS.<operation>` (sqs-making-api-requests-json.html); errors: status 400
with `__type`, `message` and `x-amzn-query-error` (sqs-json-api-responses.html). Only the time
of a signature is checked: at most five minutes from this machine's clock (reference_sigv-troubleshooting.html in the
IAM User Guide).

A poll ends when its client disconnects, and receives no message after that. A message that is sent to a client as it
disconnects stays hidden for its visibility timeout, as in AWS (avoiding-inconsistent-message-processing.html).
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import orjson
from aiohttp import web

from stt_async.local.loopback import HOST
from stt_async.local.sqs.limits import MAX_MESSAGE_BYTES, RefusedError
from stt_async.local.sqs.model import Sqs
from stt_async.local.sqs.operations import Answer, perform

_SIGNED_AT = "%Y%m%dT%H%M%SZ"
_SIGNED_WITHIN = timedelta(minutes=5)
_CONTENT_TYPE = "application/x-amz-json-1.0"
_REQUEST_BYTES = 4 * MAX_MESSAGE_BYTES
"""A batch of the maximum size, with room for JSON's escapes."""


@asynccontextmanager
async def sqs_server(sqs: Sqs, *, port: int = 0) -> AsyncIterator[str]:
    """Serve in this event loop until the block ends, and yield the URL.

    Args:
        sqs: The queues.
        port: 0: any free port.

    Raises:
        OSError: the port is taken.
    """
    app = web.Application(client_max_size=_REQUEST_BYTES)
    app.router.add_post("/{path:.*}", partial(_answer, sqs))
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port).start()
        sqs.url = f"http://{HOST}:{runner.addresses[0][1]}"
        yield sqs.url
    finally:
        await runner.cleanup()


async def _answer(sqs: Sqs, request: web.Request) -> web.Response:
    body = await request.read()
    try:
        _require_signed_now(request.headers.get("X-Amz-Date", ""))
        operation, parameters = _operation(request.headers.get("X-Amz-Target", "")), _parameters(body)
        poll = operation == "ReceiveMessage"
        answer = await _poll(sqs, parameters) if poll else perform(sqs, operation, parameters)
    except RefusedError as error:
        return web.Response(
            status=400,
            headers={"x-amzn-query-error": f"{error.code};Sender"},
            body=orjson.dumps({"__type": f"com.amazonaws.sqs#{error.shape}", "message": error.message}),
            content_type=_CONTENT_TYPE,
        )
    return web.Response(body=orjson.dumps(answer), content_type=_CONTENT_TYPE)


async def _poll(sqs: Sqs, parameters: Mapping[str, Any]) -> Answer:
    """Receive until a message is visible or the wait time is over (sqs-short-and-long-polling.html)."""
    answer = perform(sqs, "ReceiveMessage", parameters)
    queue = sqs.queue(parameters["QueueUrl"])
    default_s = int(queue.attributes["ReceiveMessageWaitTimeSeconds"])
    until_s = queue.now_s() + parameters.get("WaitTimeSeconds", default_s)
    while not answer and (now_s := queue.now_s()) < until_s:
        due_s = queue.next_due_s()
        queue.arrival.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(min(until_s, due_s or until_s) - now_s):
                await queue.arrival.wait()
        answer = perform(sqs, "ReceiveMessage", parameters)
    return answer


def _operation(target: str) -> str:
    protocol, _, operation = target.partition(".")
    if protocol != "AmazonSQS" or not operation:
        raise RefusedError("MissingAction", f"X-Amz-Target must be AmazonSQS.<operation>, not {target!r}.")
    return operation


def _parameters(body: bytes) -> dict[str, Any]:
    try:
        parameters = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RefusedError("ValidationError", f"The body is not JSON: {error}") from None
    if not isinstance(parameters, dict):
        raise RefusedError("ValidationError", "The body is not a JSON object.")
    return parameters


def _require_signed_now(signed_at: str) -> None:
    try:
        age = datetime.now(UTC) - datetime.strptime(signed_at, _SIGNED_AT).replace(tzinfo=UTC)
    except ValueError:
        raise RefusedError("IncompleteSignature", f"X-Amz-Date must be a time, not {signed_at!r}.") from None
    if abs(age) > _SIGNED_WITHIN:
        state = "expired" if age > timedelta() else "not yet current"
        message = f"Signature {state}: {signed_at} is more than 5 min from {datetime.now(UTC):{_SIGNED_AT}}."
        raise RefusedError("InvalidSignatureException", message)
