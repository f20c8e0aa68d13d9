"""Running fakes for tests."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest_asyncio

from tests.support.sqs.clock import Clock
from tests.support.sqs.model import Sqs
from tests.support.sqs.server import FakeSqs

OpenSqs = Callable[..., Awaitable[FakeSqs]]


@pytest_asyncio.fixture
async def open_sqs() -> AsyncIterator[OpenSqs]:
    """A function that starts a fake in the test's own loop: `await open_sqs(stale="honoured")`.

    The arguments are those of `Sqs`.
    """
    opened: list[FakeSqs] = []

    async def open_fake(**arguments: Any) -> FakeSqs:
        fake = FakeSqs(Sqs(Clock(), **arguments))
        await fake.open()
        opened.append(fake)
        return fake

    yield open_fake
    for fake in opened:
        await fake.close()
