"""The fake over HTTP on loopback, in the AWS JSON 1.0 protocol: what SQS clients speak since 2023.

Requests: `POST /` with `X-Amz-Target: AmazonSQS.<operation>` (sqs-making-api-requests-json.html); errors: status 400
with `__type`, `message` and `x-amzn-query-error` (sqs-json-api-responses.html). Of signatures the time alone is looked
at: five minutes from this machine's own, which a test does not move (reference_sigv-troubleshooting.html in the IAM
User Guide).

A poll whose client has gone away may still be given a message, which then stays hidden for its visibility timeout, as
the Developer Guide warns (avoiding-inconsistent-message-processing.html).
"""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from aiohttp import web

from stt_async.local.loopback import HOST
from tests.support.sqs.limits import MESSAGE_BYTES, RefusedError
from tests.support.sqs.model import Sqs
from tests.support.sqs.operations import Answer, perform, wait_time_s

_TARGET = "AmazonSQS."
_SIGNED_AT = "%Y%m%dT%H%M%SZ"
_SIGNED_WITHIN = timedelta(minutes=5)
_CONTENT_TYPE = "application/x-amz-json-1.0"
_REQUEST_BYTES = 4 * MESSAGE_BYTES
"""A batch of the largest size, with room for the escapes of JSON."""


class FakeSqs:
    """A running fake."""

    def __init__(self, model: Sqs) -> None:
        self.model = model
        self._changed = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def open(self) -> None:
        app = web.Application(client_max_size=_REQUEST_BYTES)
        app.router.add_post("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, 0).start()
        self.url = f"http://{HOST}:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def advance(self, seconds: float) -> None:
        """Let this much time pass at once, for everybody who waits here too."""
        self.model.clock.advance(seconds)
        self._wake()

    async def _answer(self, request: web.Request) -> web.Response:
        operation = request.headers.get("X-Amz-Target", "").removeprefix(_TARGET)
        parameters = orjson.loads(await request.read())
        try:
            _require_signed_now(request.headers["X-Amz-Date"])
            answer = await self._perform(operation, parameters)
        except RefusedError as error:
            return web.Response(
                status=400,
                headers={"x-amzn-query-error": f"{error.code};Sender"},
                body=orjson.dumps({"__type": f"com.amazonaws.sqs#{error.shape}", "message": error.message}),
                content_type=_CONTENT_TYPE,
            )
        return web.Response(body=orjson.dumps(answer), content_type=_CONTENT_TYPE)

    async def _perform(self, operation: str, parameters: dict[str, Any]) -> Answer:
        if operation == "ReceiveMessage":
            return await self._poll(parameters.pop("WaitTimeSeconds", None), parameters)
        answer = perform(self.model, operation, parameters)
        if "QueueUrl" in answer:
            answer["QueueUrl"] = self.url + answer["QueueUrl"]
        self._wake()
        return answer

    async def _poll(self, wait_s: int | None, parameters: Mapping[str, Any]) -> Answer:
        """Receive; if there is nothing, again whenever something may have come (sqs-short-and-long-polling.html)."""
        url = parameters["QueueUrl"]
        until_s = self.model.clock.now_s() + wait_time_s(self.model, url, wait_s)
        while True:
            answer = perform(self.model, "ReceiveMessage", parameters)
            now_s = self.model.clock.now_s()
            if answer or now_s >= until_s:
                return answer
            next_due_s = self.model.queue(url).next_due_s()
            await self._until(min(until_s, next_due_s or until_s) - now_s)

    async def _until(self, timeout_s: float) -> None:
        """Wait until something changes, at most this long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _require_signed_now(signed_at: str) -> None:
    now = datetime.now(UTC)
    age = now - datetime.strptime(signed_at, _SIGNED_AT).replace(tzinfo=UTC)
    if abs(age) > _SIGNED_WITHIN:
        how, than = ("expired", "earlier") if age > timedelta() else ("not yet current", "later")
        message = f"Signature {how}: {signed_at} is now {than} than {now:{_SIGNED_AT}} by more than 5 min."
        raise RefusedError("InvalidSignatureException", message)
