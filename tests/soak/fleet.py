"""A few workers, each replaced when it ends, as in an Auto Scaling group."""

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
    """Resources of a worker's process, without its children."""

    open_files: int
    memory_bytes: int


class Fleet:
    """Workers at a site. No fault harms the first one: its open files and memory are measured in the whole run."""

    def __init__(self, site: Site, start_worker: StartWorker, variables: dict[str, str]) -> None:
        self._site = site
        self._start_worker = start_worker
        self._variables = variables
        self._stack = AsyncExitStack()
        self._instances: list[Instance] = []
        self._busy: set[Instance] = set()
        self.downtime_s = 0.0
        """Worker-seconds in which a worker was frozen, ending, missing or starting, or slots were delayed."""
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
        self._instances = [await self._start() for _ in range(size)]
        for instance in self._instances:
            await instance.worker.wait_for("worker_started")

    async def stop(self) -> None:
        """Stop them by SIGTERM."""
        for instance in self._instances:
            instance.worker.signal(signal.SIGTERM)
        for instance in self._instances:
            assert await instance.worker.wait() == 0

    @contextmanager
    def reserve(self, rng: random.Random) -> Iterator[Instance | None]:
        """Reserve an instance for one fault; None if all are reserved."""
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
    async def downtime(self) -> AsyncIterator[None]:
        """Count the time of the block as downtime of one worker."""
        began_s = time.monotonic()
        yield
        self.downtime_s += time.monotonic() - began_s

    def add_delay(self, seconds: float) -> None:
        """Count the delay of one job as downtime of one slot."""
        self.downtime_s += seconds / SLOTS

    async def replace(self, gone: Instance, status: int, *, same_disk: bool) -> None:
        """Wait until a worker ends with this status, and start another on the same disk or on a new one."""
        assert await gone.worker.wait() == status
        self.lost += 1
        replacement = await self._start(scratch=gone.worker.scratch if same_disk else None)
        await replacement.worker.wait_for("worker_started")
        # From here on, faults may choose it.
        self._instances[self._instances.index(gone)] = replacement

    def usage(self) -> Usage:
        """The usage of the first worker."""
        process = psutil.Process(self._instances[0].worker.pid)
        return Usage(open_files=process.num_fds(), memory_bytes=process.memory_full_info().uss)

    async def _start(self, scratch: Path | None = None) -> Instance:
        imds = FakeImds()
        await imds.open()
        self._stack.push_async_callback(imds.close)
        worker = await self._start_worker(self._site, scratch=scratch, **self._variables, **imds.environment())
        return Instance(worker, imds)
