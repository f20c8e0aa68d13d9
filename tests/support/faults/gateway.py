"""An HTTP proxy before the servers of a site: records every call, and spoils those that a test chooses.

The addresses in `site.environment()` and `site.services` lead through it, also behind `open_proxy`; the clients of the
test (`site.s3`, `site.sqs`) connect to the servers. It does not change what signatures cover, streams bodies in both
directions, and cancels the call to the server when the client disconnects.

    with site.gateway.fault("s3", "PutObject", error(503, "SlowDown"), times=3) as slow_down:
        await site.send(site.job("a.wav"))
        await worker.wait_for("job_succeeded")
    assert slow_down.struck == 3

    held = site.gateway.fault("sqs", "DeleteMessage", hold_after, times=1)
    await held.has_struck()
    worker.kill()
    held.lift()

    commits = lambda call: call.is_of_manifest
    with site.gateway.fault("s3", "PutObject", lost_answer, times=2, where=commits): ...

`fault(service, operation, fault, times=, where=)` makes a `Rule`. It strikes the calls of that service (`sqs`, `s3`,
`minio`) and operation (AWS's name, or a pattern such as `*` or `ChangeMessageVisibility*`) for which `where(call)` is
true, at most `times` times, until it is lifted: by `lift()`, at the end of `with`, or at the end of the test. `struck`
is the number of struck calls, `calls` lists them. A rule that never struck fails the test. If several rules match, all
are applied, the first one outermost.

`tests/support/faults/calls.py` has the faults; each is a function from a `Strike` to the `Reply` that the client gets,
so that a test can write another one in three lines. aiohttp, which all clients here use, silently repeats a GET, HEAD,
PUT or DELETE once when its connection breaks: strike twice for the sender to see a `reset` or a `lost_answer`.

`site.history.of("s3", "PutObject", sender="worker-1")` returns calls so far (`tests/support/evidence/history.py`).
"""

import asyncio
import fnmatch
import hashlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Literal, Self

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from stt_async.local.loopback import HOST
from tests.support.evidence.history import Call, History, Service, parse
from tests.support.waiting import TIMEOUT_S, wait_until

_CHUNK_BYTES = 256 * 1024
_LARGEST_KEPT_BYTES = 4 * 1024**2
_ERROR_CODE = re.compile(rb"<Error>.*?<Code>([^<]+)</Code>", re.DOTALL)
_SQS_ERROR_TYPE = re.compile(rb'"__type": ?"(?:[^"]*#)?([^"]+)"')

# Headers of one connection, and Expect, because aiohttp itself answers "100 Continue".
_HOP_BY_HOP = frozenset({"connection", "expect", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"})
_ADDED_BY_CLIENT = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


class ConnectionLostError(Exception):
    """Raised by a fault, or by the body of a reply: the client sees its connection reset."""


@dataclass(frozen=True)
class Reply:
    """An answer to the client; chunked if its headers have no Content-Length."""

    status: int
    headers: CIMultiDict[str]
    body: AsyncIterator[bytes]

    async def read(self) -> bytes:
        """Return the whole body."""
        return b"".join([chunk async for chunk in self.body])


async def once(body: bytes) -> AsyncIterator[bytes]:
    """A body of one chunk."""
    yield body


Forward = Callable[..., Awaitable[Reply]]


@dataclass(frozen=True)
class Strike:
    """One call struck by a rule. `await forward()` sends it to the server, `forward(body)` with another body."""

    call: Call
    rule: "Rule"
    forward: Forward


Fault = Callable[[Strike], Awaitable[Reply]]


@dataclass(eq=False)
class Rule:
    """A fault and the calls that it strikes, until it has struck `times` times or is lifted."""

    name: str
    matches: Callable[[Call], bool]
    fault: Fault
    times: int | None
    calls: list[Call] = field(default_factory=list)
    """The calls that it has struck."""
    lifted: asyncio.Event = field(default_factory=asyncio.Event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lift()

    @property
    def struck(self) -> int:
        """The number of calls that it has struck."""
        return len(self.calls)

    def lift(self) -> None:
        """Strike no more calls, and pass on those that are held."""
        self.lifted.set()

    async def has_struck(self, times: int = 1, *, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until it has struck so often."""
        await wait_until(lambda: self.struck >= times, what=f"{self.name} to strike {times} x", timeout_s=timeout_s)

    def strikes(self, call: Call) -> bool:
        """Return whether it strikes this call, and count the call if so."""
        if self.lifted.is_set() or self.struck == self.times or not self.matches(call):
            return False
        self.calls.append(call)
        call.faults.append(self.name)
        return True


class Gateway:
    """The proxy of one site. It listens at `objects_url` and `queues_url`."""

    def __init__(self, history: History, session: aiohttp.ClientSession) -> None:
        self.history = history
        self.objects_url = ""
        self.queues_url = ""
        self.rules: list[Rule] = []
        self._session = session

    def fault(
        self,
        service: Service,
        operation: str,
        fault: Fault,
        *,
        times: int | None = None,
        where: Callable[[Call], bool] = lambda _: True,
    ) -> Rule:
        """Spoil calls from now on; see the docstring of the module."""

        def matches(call: Call) -> bool:
            return call.service == service and fnmatch.fnmatchcase(call.operation, operation) and where(call)

        what = getattr(fault, "__qualname__", repr(fault)).removesuffix(".<locals>.fault")
        self.rules.append(Rule(f"{what} on {service} {operation}", matches, fault, times))
        return self.rules[-1]

    def require_all_struck(self) -> None:
        """Fail if a rule never struck: the test would prove nothing."""
        never = [rule.name for rule in self.rules if not rule.struck]
        assert not never, f"faults that struck nothing: {never}"

    def application(self, service: Literal["sqs", "objects"], server: str) -> web.Application:
        """Return the application that listens for the clients of a server."""
        app = web.Application(client_max_size=_LARGEST_KEPT_BYTES)
        app.router.add_route("*", "/{any:.*}", partial(self._serve, service, server))
        return app

    async def _serve(self, service: Literal["sqs", "objects"], server: str, request: web.Request) -> web.StreamResponse:
        call = parse(service, request.method, request.raw_path, request.headers)
        self.history.calls.append(call)
        upload = _Upload(request, call)
        try:
            async with AsyncExitStack() as stack:
                if service == "sqs" or call.is_of_manifest:
                    call.request = await upload.read()
                forward: Forward = partial(self._forward, stack, server, upload)
                for rule in reversed([rule for rule in self.rules if rule.strikes(call)]):
                    forward = partial(_struck, rule, call, forward)
                reply = await forward()
                if call.served_status is None:
                    await upload.read()
                return await _answer(request, call, reply)
        except (ConnectionLostError, aiohttp.ClientError):
            if call.served_status is None:
                await upload.read()
            assert request.transport is not None
            request.transport.abort()
            return web.Response(status=502)  # the connection is closed, so no client gets it
        finally:
            call.ended_s = time.monotonic()

    async def _forward(self, stack: AsyncExitStack, server: str, upload: "_Upload", body: bytes | None = None) -> Reply:
        request, call = upload.request, upload.call
        headers = _passed_on(request.headers)
        if body is not None:
            headers["Content-Length"] = str(len(body))
        call.was_passed_on = True
        answer = await stack.enter_async_context(
            self._session.request(
                request.method,
                URL(server + request.raw_path, encoded=True),
                headers=headers,
                data=upload.chunks() if body is None and request.body_exists else body,
                skip_auto_headers=_ADDED_BY_CLIENT,
                allow_redirects=False,
            )
        )
        call.served_status, call.served_s = answer.status, time.monotonic()
        headers = _passed_on(answer.headers)
        if not _is_kept(call, headers):
            return Reply(answer.status, headers, answer.content.iter_chunked(_CHUNK_BYTES))
        call.served_answer = await answer.read()
        return Reply(answer.status, headers, once(call.served_answer))


class _Upload:
    """The body of a request, recorded in its call as it passes."""

    def __init__(self, request: web.Request, call: Call) -> None:
        self.request = request
        self.call = call
        self._read: bytes | None = None
        self._hash = hashlib.sha256()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it was read before, or as it arrives."""
        if self._read is not None:
            yield self._read
            return
        async for chunk in self.request.content.iter_chunked(_CHUNK_BYTES):
            self._hash.update(chunk)
            self.call.request_bytes += len(chunk)
            yield chunk
        self.call.request_sha256 = self._hash.hexdigest()

    async def read(self) -> bytes:
        """Wait for the rest of the body, and return all of it."""
        if self._read is None:
            self._read = b"".join([chunk async for chunk in self.chunks()])
        return self._read


@asynccontextmanager
async def open_gateway(*, objects_url: str, queues_url: str, history: History) -> AsyncIterator[Gateway]:
    """Listen before both servers until the end of the block; then lift all rules.

    Raises:
        AssertionError: at the end, if a rule never struck.
    """
    # A new connection for each call: the server may close an idle one just when it is used again.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session,
        AsyncExitStack() as stack,
    ):
        gateway = Gateway(history, session)
        gateway.objects_url = await _listen(stack, gateway.application("objects", objects_url))
        gateway.queues_url = await _listen(stack, gateway.application("sqs", queues_url))
        try:
            yield gateway
        finally:
            for rule in gateway.rules:
                rule.lift()
        gateway.require_all_struck()


async def _listen(stack: AsyncExitStack, app: web.Application) -> str:
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, HOST, 0).start()
    return f"http://{HOST}:{runner.addresses[0][1]}"


async def _struck(rule: Rule, call: Call, forward: Forward, body: bytes | None = None) -> Reply:
    return await rule.fault(Strike(call, rule, forward if body is None else partial(forward, body)))


async def _answer(request: web.Request, call: Call, reply: Reply) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    if "Content-Length" not in reply.headers and request.method != "HEAD":
        response.enable_chunked_encoding()
    kept = bytearray()
    keeps = _is_kept(call, reply.headers)
    call.answered_s = time.monotonic()
    await response.prepare(request)
    async for chunk in reply.body:
        if keeps:
            kept += chunk
        await response.write(chunk)
    call.answer, call.status, call.error_code = bytes(kept), reply.status, _error_code(kept)
    await response.write_eof()
    return response


def _is_kept(call: Call, headers: CIMultiDict[str]) -> bool:
    return call.service == "sqs" or call.is_of_manifest or "xml" in headers.get("Content-Type", "")


def _error_code(answer: bytes | bytearray) -> str:
    found = _ERROR_CODE.search(answer) or _SQS_ERROR_TYPE.search(answer)
    return found[1].decode() if found else ""


def _passed_on(headers: CIMultiDict[str] | CIMultiDictProxy[str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP)
