"""ministack, another emulator of AWS. It has its own environment, because it needs another botocore than aioboto3."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from stt_async.local.loopback import HOST, Keys, ServerExitedError, free_ports, sqs_client, until_ready
from stt_async.local.process import ChildProcess, plain_environment
from tests.support.recordings import ROOT

_ENVIRONMENT = ROOT / ".venv-ministack"
_PROGRAM = _ENVIRONMENT / "bin" / "ministack"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def ministack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The URL of an emulator that runs for the whole session: SQS, S3, CloudFormation and the stack's services."""
    if not (_ENVIRONMENT / ".stamp-ministack").exists():
        log = _ENVIRONMENT / "install.log"
        reason = log.read_text().splitlines()[-1] if log.exists() else "bin/test creates it"
        pytest.skip(f"no environment for ministack: {reason}")
    log = tmp_path_factory.mktemp("ministack") / "ministack.log"
    async with AsyncExitStack() as stack:
        try:
            url = await stack.enter_async_context(_server(log))
        except ServerExitedError:  # another process may have taken the free port: try once more with another port
            url = await stack.enter_async_context(_server(log))
        yield url


@asynccontextmanager
async def _server(log: Path) -> AsyncIterator[str]:
    (port,) = free_ports(1)
    url = f"http://{HOST}:{port}"
    environment = {
        "BIND_HOST": HOST,
        "MINISTACK_HOST": HOST,
        "GATEWAY_PORT": str(port),
        # Unused listeners.
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
    }
    async with ChildProcess([_PROGRAM], environment=plain_environment() | environment, log=log) as process:
        async with sqs_client(url, Keys.random()) as sqs:
            await until_ready(process, "ministack", ports=[port], request=sqs.list_queues)
        yield url
