"""The faults of one HTTP call in the gateway: each a function from a `Strike` to a `Reply`."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import orjson
from multidict import CIMultiDict

from tests.support.evidence.history import Call
from tests.support.faults.gateway import ConnectionLostError, Fault, Reply, Strike, once


def error(status: int, code: str) -> Fault:
    """The server gets no request; the client gets an error in the form of the service. HEAD gets only the status."""

    async def fault(strike: Strike) -> Reply:
        return _refusal(strike.call, status, code)

    return fault


def error_in_200(code: str) -> Fault:
    """The server gets no request; the error has status 200, as S3 sends it after the start of an answer."""

    async def fault(strike: Strike) -> Reply:
        return _refusal(strike.call, 200, code)

    return fault


async def reset(strike: Strike) -> Reply:
    """The server gets no request; the connection is reset."""
    raise ConnectionLostError(str(strike.call))


async def lost_answer(strike: Strike) -> Reply:
    """The server executes the call; the client gets a reset instead of the answer."""
    await (await strike.forward()).read()
    raise ConnectionLostError(str(strike.call))


async def hold_before(strike: Strike) -> Reply:
    """The server gets the request only when the rule is lifted."""
    await strike.rule.lifted.wait()
    return await strike.forward()


async def hold_after(strike: Strike) -> Reply:
    """The server executes the call; the client gets the answer only when the rule is lifted."""
    reply = await strike.forward()
    body = await reply.read()
    await strike.rule.lifted.wait()
    return _with_body(reply, body)


def hold_body(share: float) -> Fault:
    """That share of the answer's body arrives; the rest arrives only when the rule is lifted."""

    async def fault(strike: Strike) -> Reply:
        reply = await strike.forward()
        body = await reply.read()

        async def held() -> AsyncIterator[bytes]:
            sent = int(len(body) * share)
            yield body[:sent]
            await strike.rule.lifted.wait()
            yield body[sent:]

        return replace(_with_body(reply, body), body=held())

    return fault


def delay(seconds: float) -> Fault:
    """The server gets the request that much later."""

    async def fault(strike: Strike) -> Reply:
        await asyncio.sleep(seconds)
        return await strike.forward()

    return fault


def cut_body(share: float) -> Fault:
    """That share of the announced body arrives, then a reset."""

    async def fault(strike: Strike) -> Reply:
        reply = await strike.forward()
        body = await reply.read()

        async def cut() -> AsyncIterator[bytes]:
            yield body[: int(len(body) * share)]
            raise ConnectionLostError(str(strike.call))

        return replace(_with_body(reply, body), body=cut())

    return fault


def short_body(share: float) -> Fault:
    """That share of the body arrives, well-formed and without a length, as from a proxy that lost its server."""

    async def fault(strike: Strike) -> Reply:
        reply = await strike.forward()
        body = await reply.read()
        short = _with_body(reply, body[: int(len(body) * share)])
        del short.headers["Content-Length"]
        return short

    return fault


async def flip_bit(strike: Strike) -> Reply:
    """The body has the right length, and one wrong bit in its first byte."""
    reply = await strike.forward()
    body = await reply.read()
    return _with_body(reply, bytes([body[0] ^ 1]) + body[1:])


def other_etag(etag: str) -> Fault:
    """The answer has another ETag (given without quotes)."""

    async def fault(strike: Strike) -> Reply:
        reply = await strike.forward()
        reply.headers["ETag"] = f'"{etag}"'
        return reply

    return fault


def failed_entry(code: str) -> Fault:
    """The first entry of an SQS batch fails; the server executes the others."""

    async def fault(strike: Strike) -> Reply:
        arguments = strike.call.arguments
        refused, *others = arguments["Entries"]
        failure = {"Id": refused["Id"], "Code": code, "Message": "injected", "SenderFault": False}
        if not others:
            return _json(200, {"Successful": [], "Failed": [failure]})
        reply = await strike.forward(orjson.dumps(arguments | {"Entries": others}))
        answer = orjson.loads(await reply.read())
        return _with_body(reply, orjson.dumps(answer | {"Failed": [*answer.get("Failed", []), failure]}))

    return fault


def _refusal(call: Call, status: int, code: str) -> Reply:
    if call.method == "HEAD":
        return Reply(status, CIMultiDict({"Content-Length": "0"}), once(b""))
    if call.service == "sqs":
        reply = _json(status, {"__type": f"com.amazonaws.sqs#{code.rsplit('.', 1)[-1]}", "message": "injected"})
        reply.headers["x-amzn-query-error"] = f"{code};Sender"
        return reply
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>injected</Message></Error>'
    return _with_body(Reply(status, CIMultiDict({"Content-Type": "application/xml"}), once(b"")), body.encode())


def _json(status: int, answer: Any) -> Reply:
    headers = CIMultiDict({"Content-Type": "application/x-amz-json-1.0"})
    return _with_body(Reply(status, headers, once(b"")), orjson.dumps(answer))


def _with_body(reply: Reply, body: bytes) -> Reply:
    headers = reply.headers.copy()
    headers["Content-Length"] = str(len(body))
    return replace(reply, headers=headers, body=once(body))
