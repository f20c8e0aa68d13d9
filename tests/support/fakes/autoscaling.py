"""A fake of EC2 Auto Scaling that records calls, as moto has no lifecycle actions."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest_asyncio
from aiohttp import web

from stt_async.local.loopback import HOST

GROUP, LAUNCH_HOOK, TERMINATION_HOOK = "workers", "joins", "leaves"

_NAMESPACE = "http://autoscaling.amazonaws.com/doc/2011-01-01/"


@dataclass(frozen=True)
class Call:
    """One call, without the version of the API."""

    action: str
    arguments: dict[str, str]


class FakeAutoScaling:
    """Accepts every call; rejects every call while `refuses` is an error code such as `ValidationError`."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.calls: list[Call] = []
        self.refuses: str | None = None

    def environment(self) -> dict[str, str]:
        """Return the variables that make a worker a member of the group."""
        return {
            "AWS_ENDPOINT_URL_AUTO_SCALING": f"http://{HOST}:{self.port}",
            "STT_AUTOSCALING_GROUP": GROUP,
            "STT_LAUNCH_HOOK": LAUNCH_HOOK,
            "STT_TERMINATION_HOOK": TERMINATION_HOOK,
        }

    def of(self, action: str) -> list[dict[str, str]]:
        """Return the arguments of all calls of one action, in order."""
        return [call.arguments for call in self.calls if call.action == action]

    async def answer(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        action = form.pop("Action")
        form.pop("Version")
        self.calls.append(Call(action, form))
        if self.refuses is not None:
            error = f"<Error><Type>Sender</Type><Code>{self.refuses}</Code><Message>a test</Message></Error>"
            body = f'<ErrorResponse xmlns="{_NAMESPACE}">{error}<RequestId>1</RequestId></ErrorResponse>'
            return web.Response(status=400, text=body, content_type="text/xml")
        result = f"<{action}Result/><ResponseMetadata><RequestId>1</RequestId></ResponseMetadata>"
        body = f'<{action}Response xmlns="{_NAMESPACE}">{result}</{action}Response>'
        return web.Response(text=body, content_type="text/xml")


@asynccontextmanager
async def serve() -> AsyncIterator[FakeAutoScaling]:
    fake = FakeAutoScaling()
    app = web.Application()
    app.router.add_post("/", fake.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    fake.port = runner.addresses[0][1]
    yield fake
    await runner.cleanup()


@pytest_asyncio.fixture
async def autoscaling() -> AsyncIterator[FakeAutoScaling]:
    async with serve() as fake:
        yield fake
