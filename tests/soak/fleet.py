"""A few workers, each replaced as soon as it has gone, as an Auto Scaling group does."""

import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from tests.support.commands import StartWorker, Worker
from tests.support.fakes.imds import FakeImds
from tests.support.site import Site

SLOTS = 2
"""Jobs that a worker holds at once."""


@dataclass(frozen=True, eq=False)
class Instance:
    """A worker, and the metadata service of the instance on which it runs."""

    worker: Worker
    imds: FakeImds


@dataclass(frozen=True)
class Usage:
    """What a worker's own process takes."""

    open_files: int
    memory_bytes: int


class Fleet:
    """Workers at a site. The first is never touched: its open files and its memory are watched for all of the run."""

    def __init__(self, site: Site, start_worker: StartWorker, variables: dict[str, str]) -> None:
        self._site = site
        self._start_worker = start_worker
        self._variables = variables
        self._stack = AsyncExitStack()
        self._instances: list[Instance] = []
        self._busy: set[Instance] = set()
        self.away_s = 0.0
        """Worker-seconds in which a worker was frozen, dying, gone, starting or, with a part of its slots, held up."""
        self.lost = 0
        """Workers that ended."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def size(self) -> int:
        return len(self._instances)

    async def start(self, size: int) -> None:
        """Start so many workers, and wait until each receives."""
        self._instances = [await self._started() for _ in range(size)]
        for instance in self._instances:
            await instance.worker.wait_for("worker_started")

    async def stop(self) -> None:
        """End them in order."""
        for instance in self._instances:
            instance.worker.signal(signal.SIGTERM)
        for instance in self._instances:
            assert await instance.worker.wait() == 0

    @contextmanager
    def someone(self, rng: random.Random) -> Iterator[Instance | None]:
        """An instance that no other fault has in hand meanwhile; None if there is none."""
        free = [each for each in self._instances[1:] if each not in self._busy]
        if not free:
            yield None
            return
        instance = rng.choice(free)
        self._busy.add(instance)
        try:
            yield instance
        finally:
            self._busy.discard(instance)

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Count the time of the block as lost for one worker."""
        began_s = time.monotonic()
        yield
        self.away_s += time.monotonic() - began_s

    def held_up(self, seconds: float) -> None:
        """Count the time for which a fault held one job up as lost for a worker's slot."""
        self.away_s += seconds / SLOTS

    async def replace(self, gone: Instance, status: int, *, in_its_place: bool) -> None:
        """Wait for the end of a worker, with this status, and start another: on its disk, or on a new one."""
        assert await gone.worker.wait() == status
        self.lost += 1
        heir = await self._started(scratch=gone.worker.scratch if in_its_place else None)
        await heir.worker.wait_for("worker_started")
        # Only now can the next fault befall it.
        self._instances[self._instances.index(gone)] = heir

    def usage(self) -> Usage:
        """Of the worker that is never touched."""
        process = psutil.Process(self._instances[0].worker.pid)
        return Usage(open_files=process.num_fds(), memory_bytes=process.memory_full_info().uss)

    async def _started(self, scratch: Path | None = None) -> Instance:
        imds = FakeImds()
        await imds.open()
        self._stack.push_async_callback(imds.close)
        worker = await self._start_worker(self._site, scratch=scratch, **self._variables, **imds.environment())
        return Instance(worker, imds)
