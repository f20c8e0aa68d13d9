"""Shared by the servers on loopback: free ports, keys, clients, and the wait until a server is ready."""

import asyncio
import contextlib
import functools
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aioboto3
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError

from stt_async.errors import DependencyError
from stt_async.local.process import ChildProcess

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_sqs import SQSClient

HOST = "127.0.0.1"
REGION = "us-east-1"

_READY_TIMEOUT_S = 60.0
_POLL_INTERVAL_S = 0.05


@dataclass(frozen=True)
class Keys:
    """The access key and the secret key of one identity."""

    access_key: str
    secret_key: str = field(repr=False)

    @classmethod
    def random(cls) -> "Keys":
        """Return random keys."""
        return cls(access_key=secrets.token_hex(10).upper(), secret_key=secrets.token_hex(20))


class ServerExitedError(DependencyError):
    """A server ended before it was ready, often because another process took one of its ports."""


def free_ports(count: int) -> list[int]:
    """Return `count` different ports on which no process listens."""
    with contextlib.ExitStack() as held:  # all bound at the same time, so that they differ
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [int(each.getsockname()[1]) for each in sockets]


@functools.cache
def _session() -> aioboto3.Session:
    """Return the session of all clients: each session loads botocore's service models anew, which takes 0.1 s."""
    return aioboto3.Session()


def s3_client(url: str, keys: Keys) -> AbstractAsyncContextManager["S3Client"]:
    """Return an S3 client for a server on loopback, to be entered with `async with`."""
    return _session().client("s3", **client_options(url, keys))


def sqs_client(url: str, keys: Keys) -> AbstractAsyncContextManager["SQSClient"]:
    """Return an SQS client for a server on loopback, to be entered with `async with`."""
    return _session().client("sqs", **client_options(url, keys))


async def until_ready(
    server: ChildProcess, name: str, *, ports: Sequence[int], request: Callable[[], Awaitable[object]]
) -> None:
    """Wait until the server listens on all of its ports and answers a request.

    Raises:
        ServerExitedError: the server ended.
        DependencyError: the server did not answer within a minute.
    """
    refusal: Exception | None = None
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            while server.returncode is None:
                try:
                    # Another process that took the port could answer the request, so check who listens.
                    if server.listens_on().issuperset(ports):
                        await request()
                        return
                except (BotoCoreError, ClientError) as error:
                    refusal = error
                await asyncio.sleep(_POLL_INTERVAL_S)
    except TimeoutError:
        raise DependencyError(
            "local_server_not_ready",
            f"the local {name} did not answer on port {ports[0]} within {_READY_TIMEOUT_S:.0f} s ({refusal}); "
            f"the end of its log {server.log}:\n{server.log_tail()}",
        ) from refusal
    raise ServerExitedError(
        "local_server_exited",
        f"the local {name} ended with status {server.returncode} before it was ready; the end of its log "
        f"{server.log}:\n{server.log_tail()}",
    )


def client_options(url: str, keys: Keys) -> dict[str, Any]:
    """Return the arguments of a client for a server on loopback."""
    return {
        "endpoint_url": url,
        "region_name": REGION,
        "aws_access_key_id": keys.access_key,
        "aws_secret_access_key": keys.secret_key,
        # Without proxies={}, a proxy from the environment would get the requests to 127.0.0.1. A single attempt,
        # because until_ready has waited for the server: a later error is a bug.
        "config": AioConfig(proxies={}, retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=60),
    }
