"""Everything reachable and allowed, before the first receive; again for the breaker's probe, and for `bin/doctor`."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from stt_async.errors import JobError
from stt_async.services.connections import Connections
from stt_async.settings import Settings


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at."""

    name: str
    error: JobError | None
    detail: str

    @property
    def ok(self) -> bool:
        """Whether it is in order."""
        return self.error is None


async def look(name: str, call: Callable[[], Awaitable[str]]) -> Check:
    """Look at one thing: `call` returns a word for people, or raises a JobError."""
    try:
        return Check(name, None, await call())
    except JobError as error:
        return Check(name, error, error.message)


async def checks(services: Connections, settings: Settings) -> AsyncIterator[Check]:
    """Look at each service in turn."""

    async def jobs() -> str:
        depth = await (await services.queue()).depth()
        return f"{depth.visible} waiting, {depth.in_flight} in flight"

    async def dead_letters() -> str:
        queue = await services.queue()
        depth = await queue.dead_letter_depth()
        return f"{depth.visible} waiting; a message goes there after {queue.max_receive_count} receives"

    async def recordings() -> str:
        return await services.source.probe(settings.source_bucket)

    async def segments() -> str:
        await services.sink.probe()
        return "a missing object reads as missing; put a part and aborted its multipart upload"

    yield await look(f"queue {settings.split_queue}", jobs)
    yield await look("its dead-letter queue", dead_letters)
    yield await look(f"source {settings.minio_endpoint}/{settings.source_bucket}", recordings)
    yield await look(f"output {settings.output_bucket}", segments)


async def require(services: Connections, settings: Settings) -> None:
    """Raise the first error of `checks`."""
    async for check in checks(services, settings):
        if check.error is not None:
            raise check.error
