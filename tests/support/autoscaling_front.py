"""Before an emulator of Auto Scaling that knows groups and sizes alone: takes the calls that it lacks; notes them."""

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
    """`url` for Auto Scaling; `taken` are the calls that went no further: action, and the processes it names."""

    url: str = ""
    taken: list[tuple[str, frozenset[str]]] = field(default_factory=list)


@asynccontextmanager
async def open_front(emulator_url: str) -> AsyncIterator[Front]:
    """Listen before an emulator."""
    front = Front()

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        arguments = dict(parse_qsl(body.decode(), keep_blank_values=True))
        action = arguments["Action"]
        if action in LACKING:
            named = frozenset(value for key, value in arguments.items() if key.startswith("ScalingProcesses.member."))
            front.taken.append((action, named))
            return web.Response(text=f"<{action}Response/>", content_type="text/xml")
        headers = {name: value for name, value in request.headers.items() if name != "Host"}
        async with session.post(emulator_url, data=body, headers=headers) as said:
            return web.Response(status=said.status, body=await said.read(), content_type="text/xml")

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
