"""moto, an emulator of AWS: tests compare the local SQS with it, and use its other services."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from stt_async.local.loopback import HOST, REGION, Keys, free_ports, sqs_client, until_ready
from stt_async.local.process import ChildProcess, plain_environment


@asynccontextmanager
async def moto_server(log: Path) -> AsyncIterator[str]:
    """Run a moto server and yield its URL."""
    (port,) = free_ports(1)
    url = f"http://{HOST}:{port}"
    async with ChildProcess(
        [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)],
        environment=plain_environment() | {"AWS_DEFAULT_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true"},
        log=log,
    ) as process:
        async with sqs_client(url, Keys.random()) as sqs:
            await until_ready(process, "moto", ports=[port], request=sqs.list_queues)
        yield url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def moto_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The URL of a moto server that runs for the whole session."""
    async with moto_server(tmp_path_factory.mktemp("moto") / "moto.log") as url:
        yield url
