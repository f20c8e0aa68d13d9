"""A fake of the EC2 instance metadata service, version 2. Tests arm notices, and choose how it fails."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Literal

import orjson
import pytest_asyncio
from aiohttp import web
from aiohttp.typedefs import Handler

from stt_async.local.loopback import HOST, Keys

INSTANCE_ID = "i-0123456789abcdef0"
_LONGEST_TTL_S = 21_600
_META = "/latest/meta-data"

Mode = Literal["fine", "slow", "error", "down"]
"""`slow` answers when the mode changes, `error` answers 500, `down` refuses connections."""


class FakeImds:
    """Requires tokens as the real one: 400 for a PUT without a TTL, 401 for a GET without a valid token."""

    def __init__(self, host: str = HOST, port: int = 0) -> None:
        self._tokens: set[str] = set()
        self._items = {f"{_META}/instance-id": INSTANCE_ID}
        self._mode: Mode = "fine"
        self._mode_changed = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._host = host
        self._port = port
        self.refused_tokens = 0

    def environment(self) -> dict[str, str]:
        """The variables with which a worker uses this service."""
        return {
            "AWS_EC2_METADATA_DISABLED": "false",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{self._host}:{self._port}",
        }

    def arm_spot(self, *, in_s: float, action: str = "terminate") -> None:
        at = datetime.now(UTC) + timedelta(seconds=in_s)
        notice = {"action": action, "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")}
        self._items[f"{_META}/spot/instance-action"] = orjson.dumps(notice).decode()

    def arm_rebalance(self) -> None:
        notice = {"noticeTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
        self._items[f"{_META}/events/recommendations/rebalance"] = orjson.dumps(notice).decode()

    def arm_target_state(self, state: str) -> None:
        self._items[f"{_META}/autoscaling/target-lifecycle-state"] = state

    def is_instance(self, instance_id: str) -> None:
        self._items[f"{_META}/instance-id"] = instance_id

    def has_role(self, keys: Keys, *, for_s: float = 21_600) -> None:
        """Give the instance a role with these credentials, valid for so long."""
        until = datetime.now(UTC) + timedelta(seconds=for_s)
        credentials = {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "AccessKeyId": keys.access_key,
            "SecretAccessKey": keys.secret_key,
            "Token": "",
            "LastUpdated": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "Expiration": until.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        self._items[f"{_META}/iam/security-credentials/"] = "worker"
        self._items[f"{_META}/iam/security-credentials/worker"] = orjson.dumps(credentials).decode()

    def expire_tokens(self) -> None:
        self._tokens.clear()

    async def set_mode(self, mode: Mode) -> None:
        self._mode = mode
        self._mode_changed.set()
        self._mode_changed = asyncio.Event()
        if mode == "down":
            await self.close()
        else:
            await self.open()

    async def open(self) -> None:
        if self._runner is None:
            app = web.Application(middlewares=[self._apply_mode])
            app.router.add_put("/latest/api/token", self._serve_token)
            app.router.add_get("/{path:.*}", self._serve_item)
            self._runner = web.AppRunner(app, shutdown_timeout=0.1)
            await self._runner.setup()
            await web.TCPSite(self._runner, self._host, self._port).start()
            self._port = self._runner.addresses[0][1]

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _apply_mode(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._mode == "slow":
            await self._mode_changed.wait()
        if self._mode == "error":
            return web.Response(status=500)
        return await handler(request)

    async def _serve_token(self, request: web.Request) -> web.Response:
        ttl = request.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if not ttl.isdigit() or not 1 <= int(ttl) <= _LONGEST_TTL_S:
            return web.Response(status=400)
        token = uuid.uuid4().hex
        self._tokens.add(token)
        return web.Response(text=token)

    async def _serve_item(self, request: web.Request) -> web.Response:
        if request.headers.get("X-aws-ec2-metadata-token") not in self._tokens:
            self.refused_tokens += 1
            return web.Response(status=401)
        item = self._items.get(request.path)
        return web.Response(status=404) if item is None else web.Response(text=item)


@pytest_asyncio.fixture
async def imds() -> AsyncIterator[FakeImds]:
    """A metadata service that knows only the instance id."""
    fake = FakeImds()
    await fake.open()
    yield fake
    await fake.close()
