"""A proxy for an emulator of Auto Scaling that answers the calls which the emulator lacks, and records them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

import aiohttp
from aiohttp import web

from stt_async.local.loopback import HOST

LACKING = frozenset({"SuspendProcesses", "ResumeProcesses"})


@dataclass
class Front:
    """The proxy at `url`. `answered` are the calls that it did not forward: action and process names."""

    url: str = ""
    answered: list[tuple[str, set[str]]] = field(default_factory=list)


@asynccontextmanager
async def open_front(emulator_url: str) -> AsyncIterator[Front]:
    """Start a proxy for an emulator."""
    front = Front()

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        arguments = dict(parse_qsl(body.decode(), keep_blank_values=True))
        action = arguments["Action"]
        if action in LACKING:
            processes = {value for key, value in arguments.items() if key.startswith("ScalingProcesses.member.")}
            front.answered.append((action, processes))
            return web.Response(text=f"<{action}Response/>", content_type="text/xml")
        headers = {name: value for name, value in request.headers.items() if name != "Host"}
        async with session.post(emulator_url, data=body, headers=headers) as response:
            return web.Response(status=response.status, body=await response.read(), content_type="text/xml")

    app = web.Application()
    app.router.add_post("/", answer)
    runner = web.AppRunner(app)
    async with aiohttp.ClientSession() as session:
        await runner.setup()
        try:
            site = web.TCPSite(runner, HOST, 0)
            await site.start()
            front.url = f"http://{HOST}:{runner.addresses[0][1]}"
            yield front
        finally:
            await runner.cleanup()
