"""An object server on loopback whose answers to GET follow a script: cut, truncated, corrupted, replaced, refused."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

Answer = Callable[["FaultyObjects", web.Request], Awaitable[web.StreamResponse]]


@dataclass
class FaultyObjects:
    """One object under every key. Each request is answered by the next line of the script, the last one for ever."""

    content: bytes
    script: list[Answer]
    requests: list[web.Request] = field(default_factory=list)

    @property
    def etag(self) -> str:
        return hashlib.md5(self.content, usedforsecurity=False).hexdigest()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return await answer(self, request)

    def asked_from(self, request: web.Request) -> int:
        """Where the range of a request begins."""
        return request.http_range.start or 0


@asynccontextmanager
async def serving(objects: FaultyObjects) -> AsyncIterator[str]:
    """Serve; yield host:port."""
    app = web.Application()
    app.router.add_get("/{bucket}/{key:.+}", objects.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"{host}:{port}"
    finally:
        await runner.cleanup()


async def whole(objects: FaultyObjects, request: web.Request) -> web.StreamResponse:
    """Answer as it should be: a range if asked for one, 412 if the ETag is another."""
    if (wanted := request.headers.get("If-Match")) is not None and wanted.strip('"') != objects.etag:
        return error(412, "PreconditionFailed")
    start = objects.asked_from(request)
    headers = {"ETag": f'"{objects.etag}"'}
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(objects.content) - 1}/{len(objects.content)}"
    return web.Response(body=objects.content[start:], status=206 if start else 200, headers=headers)


async def whole_despite_range(objects: FaultyObjects, request: web.Request) -> web.StreamResponse:
    """Send everything, whatever range was asked for."""
    del request
    return web.Response(body=objects.content, headers={"ETag": f'"{objects.etag}"'})


def cut_after(share: float) -> Answer:
    """Announce everything, send a part, and drop the connection."""

    async def answer(objects: FaultyObjects, request: web.Request) -> web.StreamResponse:
        start = objects.asked_from(request)
        body = objects.content[start:]
        response = web.StreamResponse(status=206 if start else 200, headers={"ETag": f'"{objects.etag}"'})
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[: int(len(body) * share)])
        assert request.transport is not None
        request.transport.abort()
        return response

    return answer


async def half_without_length(objects: FaultyObjects, request: web.Request) -> web.StreamResponse:
    """Send half of it, well-formed and without a length, as a proxy that lost its upstream does."""
    response = web.StreamResponse(headers={"ETag": f'"{objects.etag}"'})
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(objects.content[: len(objects.content) // 2])
    await response.write_eof()
    return response


async def one_bit_wrong(objects: FaultyObjects, request: web.Request) -> web.StreamResponse:
    """Send the right length with one bit flipped."""
    del request
    wrong = bytes([objects.content[0] ^ 1]) + objects.content[1:]
    return web.Response(body=wrong, headers={"ETag": f'"{objects.etag}"'})


async def drip(objects: FaultyObjects, request: web.Request) -> web.StreamResponse:
    """Send a byte now and then, until the other side hangs up."""
    response = web.StreamResponse(headers={"ETag": f'"{objects.etag}"'})
    response.content_length = len(objects.content)
    await response.prepare(request)
    for byte in objects.content:
        await response.write(bytes([byte]))
        await asyncio.sleep(0.01)
    return response


def refuse(status: int, code: str) -> Answer:
    """Answer with an error."""

    async def answer(objects: FaultyObjects, request: web.Request) -> web.StreamResponse:
        del objects, request
        return error(status, code)

    return answer


def error(status: int, code: str) -> web.Response:
    return web.Response(
        status=status,
        text=f"<Error><Code>{code}</Code><Message>as the script says</Message></Error>",
        content_type="application/xml",
    )
