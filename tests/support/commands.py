"""The commands of stt-async as processes: some run to their end, workers are started, watched, signalled."""

import asyncio
import itertools
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest_asyncio

from stt_async.local.process import ChildProcess, plain_environment
from tests.support.recordings import ROOT
from tests.support.site import OpenSite, Site
from tests.support.waiting import wait_until

SENDER = "AWS_SDK_UA_APP_ID"
"""botocore tells its value in each User-Agent: so the history knows who made a call."""


@dataclass(frozen=True)
class Finished:
    """A command that has run to its end."""

    returncode: int
    stdout: str
    stderr: str

    def lines(self) -> list[Any]:
        """The JSON objects of its output, one a line."""
        return _objects(self.stdout)


async def run_command(*arguments: str, environment: dict[str, str], timeout_s: float = 60.0) -> Finished:
    """Run `stt-async ARGUMENTS` to its end with this environment (and the few variables any process needs)."""
    process = await asyncio.create_subprocess_exec(
        *_command(*arguments),
        env=plain_environment() | environment | {SENDER: arguments[0]},
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Finished(process.returncode or 0, stdout.decode(), stderr.decode())


class Worker:
    """A worker process: its name in the history, its pid, its log lines, its signals, its scratch folder."""

    def __init__(self, name: str, process: ChildProcess, scratch: Path) -> None:
        self.name = name
        self.process = process
        self.scratch = scratch

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, signum: signal.Signals) -> None:
        self.process.signal(signum)

    def kill(self) -> None:
        """SIGKILL to the worker alone, as the kernel's OOM killer would."""
        self.process.signal(signal.SIGKILL)

    async def wait(self, *, timeout_s: float = 60.0) -> int:
        """Wait for its end; the exit status."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self.process.wait()
        except TimeoutError:
            raise AssertionError(
                f"worker {self.pid} did not end within {timeout_s:g} s; the end of its log:\n{self.process.log_tail()}"
            ) from None

    def lines(self) -> list[Any]:
        """Its log so far: the JSON objects."""
        return _objects(self.process.log.read_text())

    def events(self, name: str) -> list[Any]:
        """Its log lines of one event."""
        return [line for line in self.lines() if line.get("event") == name]

    async def wait_for(self, name: str, *, count: int = 1, timeout_s: float = 60.0) -> list[Any]:
        """Wait until it has logged an event that often; those lines."""

        def logged() -> list[Any] | None:
            events = self.events(name)
            if len(events) >= count:
                return events
            ended = self.process.returncode
            tail = self.process.log_tail()
            assert ended is None, f"worker {self.pid} ended with {ended} before it logged {name!r}:\n{tail}"
            return None

        found = await wait_until(logged, what=f"{count} x {name!r} in {self.process.log}", timeout_s=timeout_s)
        return found or []

    def is_all_gone(self) -> bool:
        """Whether it and all of its pool processes have ended."""
        return not self.process.group()


StartWorker = Callable[..., Awaitable[Worker]]


@pytest_asyncio.fixture
async def start_worker(tmp_path: Path, open_site: OpenSite) -> AsyncIterator[StartWorker]:
    """A function that starts a worker: `await start_worker(site, "--once", STT_PROCESSES="2")`.

    Options are those of the command, variables go over those of the site. `scratch` is a folder of its own unless
    given (as after a restart). On the way out each is stopped; pool processes that outlive their worker fail the test.
    """
    del open_site  # only needed to end after the workers do
    numbers = itertools.count(1)
    workers: list[Worker] = []
    async with AsyncExitStack() as stack:

        async def started(site: Site, *options: str, scratch: Path | None = None, **variables: str) -> Worker:
            name = f"worker-{next(numbers)}"
            folder = scratch or tmp_path / f"{name}-scratch"
            folder.mkdir(exist_ok=True)
            environment = site.environment() | {"STT_SCRATCH_DIR": str(folder), SENDER: name} | variables
            process = ChildProcess(
                _command("worker", *options),
                environment=plain_environment() | environment,
                directory=ROOT,
                log=tmp_path / f"{name}.log",
                grace_s=30.0,
            )
            worker = Worker(name, await stack.enter_async_context(process), folder)
            workers.append(worker)
            return worker

        yield started
        for worker in workers:
            if worker.process.returncode is None:
                worker.signal(signal.SIGTERM)
        for worker in workers:
            await worker.wait()
            await wait_until(worker.is_all_gone, what=f"the pool processes of worker {worker.pid} to end")


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "stt_async", *arguments]


def _objects(text: str) -> list[Any]:
    """The lines that are JSON objects; others (a traceback, a line half written) are left out."""
    found = []
    for line in text.splitlines():
        try:
            parsed = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(parsed, dict):
            found.append(parsed)
    return found
