"""A TCP proxy on loopback between a worker and a server: it can delay, hold, cut and refuse connections."""

import asyncio
import random
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Literal

import pytest_asyncio

from stt_async.local.loopback import HOST

_CHUNK_BYTES = 32 * 1024
_RETRANSMISSION_S = 1.0

_REQUEST = re.compile(rb"(?:GET|HEAD|PUT|POST|DELETE) \S+")

Direction = Literal["up", "down"]
"""`up`: from clients to the server. `down`: from the server to clients."""


@dataclass
class Link:
    """A network link that all connections share, with latency, bandwidth and packet loss."""

    latency_s: float
    """In one direction."""
    bandwidth_bytes_s: float
    loss: float
    """Share of the chunks that arrive a second late, as after a retransmission by TCP."""
    rng: random.Random
    _free_s: float = 0.0

    async def carry(self, size: int) -> None:
        """Wait until so many bytes have arrived."""
        now_s = time.monotonic()
        self._free_s = max(now_s, self._free_s) + size / self.bandwidth_bytes_s
        arrives_s = self._free_s + self.latency_s
        if self.rng.random() < self.loss:
            arrives_s += _RETRANSMISSION_S
        await asyncio.sleep(arrives_s - now_s)


class Proxy:
    """Passes on all bytes in both directions. Its faults count bytes over all connections together."""

    def __init__(self, target: str, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._target = target.removeprefix("http://").split(":")
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._allowed: dict[Direction, int] = {}
        self._until_cut: dict[Direction, int] = {}
        self._free = asyncio.Event()
        self._free.set()
        self.holding = asyncio.Event()
        """Set while bytes are held."""
        self.delay_s = 0.0
        """Before each chunk of 32 KiB, in both directions."""
        self.link: Link | None = None
        """Delays each chunk; None: no delay."""
        self.requests: list[str] = []
        """The HTTP requests so far, as `GET /bucket/key?query`."""

    @property
    def endpoint(self) -> str:
        """`host:port`, for MinIO clients."""
        return f"{HOST}:{self._port}"

    @property
    def url(self) -> str:
        """The endpoint for AWS clients."""
        return f"http://{self.endpoint}"

    def hold(self, direction: Direction, *, after: int = 0) -> None:
        """Pass on only `after` more bytes in this direction, and hold the rest on open connections."""
        self._allowed[direction] = after
        self._free.clear()

    def release(self) -> None:
        """Pass on everything again."""
        self._allowed.clear()
        self.holding.clear()
        self._free.set()

    def cut(self, direction: Direction, *, after: int) -> None:
        """Reset one connection, once: the one on which byte number `after` from now passes in this direction."""
        self._until_cut[direction] = after

    @property
    def cut_is_done(self) -> bool:
        """Whether every cut has happened."""
        return not self._until_cut

    async def accept(self) -> None:
        """Listen, on the same port as before if there was one."""
        self._server = await asyncio.start_server(self._accepted, HOST, self._port, ssl=self._tls)
        self._port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Reset all connections, and refuse new ones."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._target
        self._writers.add(writer)
        with suppress(OSError):
            server_reader, server_writer = await asyncio.open_connection(host, int(port))
            self._writers.add(server_writer)
            pumps = [
                asyncio.create_task(self._pump("up", reader, server_writer)),
                asyncio.create_task(self._pump("down", server_reader, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.wait(pumps)
                self._writers.discard(server_writer)
                server_writer.close()
        self._writers.discard(writer)
        writer.close()

    async def _pump(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                if direction == "up" and (request := _REQUEST.match(data)):
                    self.requests.append(request[0].decode())
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if self.link:
                    await self.link.carry(len(data))
                await self._pass(direction, data, writer)
                if self._is_cut(direction, len(data)):
                    writer.transport.abort()
                    return

    async def _pass(self, direction: Direction, data: bytes, writer: asyncio.StreamWriter) -> None:
        while data:
            size = min(len(data), self._allowed.get(direction, len(data)))
            if size == 0:
                self.holding.set()
                await self._free.wait()
                continue
            if direction in self._allowed:
                self._allowed[direction] -= size
            writer.write(data[:size])
            await writer.drain()
            data = data[size:]

    def _is_cut(self, direction: Direction, passed: int) -> bool:
        if direction not in self._until_cut:
            return False
        self._until_cut[direction] -= passed
        if self._until_cut[direction] > 0:
            return False
        del self._until_cut[direction]
        return True


OpenProxy = Callable[..., Awaitable[Proxy]]


@pytest_asyncio.fixture
async def open_proxy() -> AsyncIterator[OpenProxy]:
    """A function that opens a proxy before a server: `await open_proxy(servers.objects.url)`.

    With `tls`, clients connect to it by TLS; it connects to the server without.
    """
    async with AsyncExitStack() as stack:

        async def opened(target: str, tls: ssl.SSLContext | None = None) -> Proxy:
            proxy = Proxy(target, tls)
            await proxy.accept()
            stack.push_async_callback(proxy.refuse)
            return proxy

        yield opened
