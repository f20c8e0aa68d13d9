"""The commands of stt-async as processes: `run_command` waits for the end, `start_worker` returns a running worker."""

import asyncio
import itertools
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest_asyncio

from stt_async.local.process import ChildProcess, plain_environment
from tests.support.evidence.history import Life
from tests.support.recordings import ROOT
from tests.support.site import OpenSite, Site
from tests.support.waiting import TIMEOUT_S, wait_until

_CHECK_INTERVAL_S = 0.1
_CLOSE_TIMEOUT_S = 5.0
_NOT_REGULAR = ("/dev/", "/memfd:", "/proc/", "/sys/")

_SECRETS = ("STT_MINIO_SECRET_KEY", "AWS_SECRET_ACCESS_KEY")

SENDER = "AWS_SDK_UA_APP_ID"
"""botocore sends its value in each User-Agent, which names the sender of a call in the history."""


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str

    def lines(self) -> list[Any]:
        """The JSON objects of its output, one per line."""
        return _objects(self.stdout)


async def run_command(
    *arguments: str, environment: dict[str, str], typed: str = "", timeout_s: float = TIMEOUT_S
) -> Finished:
    """Run `stt-async ARGUMENTS` to its end with this environment and the few variables that any process needs.

    `typed` is its standard input.
    """
    process = await asyncio.create_subprocess_exec(
        *command(*arguments),
        env=plain_environment() | environment | {SENDER: arguments[0]},
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await process.communicate(typed.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    finished = Finished(process.returncode or 0, stdout.decode(), stderr.decode())
    printed = [
        name for name in _SECRETS if (secret := environment.get(name)) and secret in finished.stdout + finished.stderr
    ]
    assert not printed, f"I7 broken: {arguments[0]} prints {printed}"
    return finished


class Worker:
    """A worker process: its pid, log lines, signals and scratch folder. `life` is its record in the history."""

    def __init__(self, life: Life, process: ChildProcess) -> None:
        self.life = life
        self.process = process

    @property
    def name(self) -> str:
        """The sender of its calls in the history."""
        return self.life.name

    @property
    def scratch(self) -> Path:
        return self.life.scratch

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, signum: signal.Signals) -> None:
        self.life.killed |= signum == signal.SIGKILL
        self.process.signal(signum)

    def kill(self) -> None:
        """Send SIGKILL to the worker but not to its children, as the kernel's OOM killer does."""
        self.signal(signal.SIGKILL)

    async def wait(self, *, timeout_s: float = TIMEOUT_S) -> int:
        """Wait until it ends; return the exit status."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self.process.wait()
        except TimeoutError:
            raise AssertionError(
                f"worker {self.pid} did not end within {timeout_s:g} s; the end of its log:\n{self.process.log_tail()}"
            ) from None

    def lines(self) -> list[Any]:
        """The JSON objects of its log so far; none if a test has replaced the file by a pipe or a device."""
        return _objects(self.process.log.read_text()) if self.process.log.is_file() else []

    def events(self, name: str) -> list[Any]:
        """Its log lines of one event."""
        return [line for line in self.lines() if line.get("event") == name]

    async def wait_for(self, name: str, *, count: int = 1, timeout_s: float = TIMEOUT_S) -> list[Any]:
        """Wait until it has logged an event so often; return those lines."""

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
        """Whether it and all its children have ended."""
        return not self.process.group()

    def open_files(self) -> frozenset[str]:
        """The regular files that it has open."""
        found = set()
        with suppress(FileNotFoundError):  # it has ended
            for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    found.add(str(descriptor.readlink()))
        return frozenset(file for file in found if file.startswith("/") and not file.startswith(_NOT_REGULAR))

    def peak_memory_bytes(self) -> int | None:
        """Its peak memory, without its children; None once it has ended."""
        with suppress(FileNotFoundError):
            status = Path(f"/proc/{self.pid}/status").read_text()
            if found := re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE):
                return int(found[1]) * 1024
        return None


StartWorker = Callable[..., Awaitable[Worker]]


@pytest_asyncio.fixture
async def start_worker(tmp_path: Path, open_site: OpenSite) -> AsyncIterator[StartWorker]:
    """A function that starts a worker: `await start_worker(site, "--once", STT_PROCESSES="2")`.

    Options are those of the command; variables override those of the site. `scratch` is a new folder unless given, as
    after a restart. At the end of the test each worker is stopped; a child that outlives its worker fails the test.
    """
    del open_site  # requested so that sites close after the workers end
    numbers = itertools.count(1)
    workers: list[tuple[Site, Worker]] = []
    async with asyncio.TaskGroup() as watching, AsyncExitStack() as stack:

        async def started(site: Site, *options: str, scratch: Path | None = None, **variables: str) -> Worker:
            name = f"worker-{next(numbers)}"
            folder = scratch or tmp_path / f"{name}-scratch"
            folder.mkdir(exist_ok=True)
            environment = site.environment() | {"STT_SCRATCH_DIR": str(folder), SENDER: name} | variables
            process = ChildProcess(
                command("worker", *options),
                environment=plain_environment() | environment,
                directory=ROOT,
                log=tmp_path / f"{name}.log",
                grace_s=30.0,
            )
            worker = Worker(Life(name=name, log=process.log, scratch=folder), await stack.enter_async_context(process))
            workers.append((site, worker))
            site.history.workers.append(worker.life)
            watching.create_task(_watch(worker))
            return worker

        yield started
        for site, worker in workers:
            await _record_idle(site, worker)
        for _, worker in workers:
            if worker.process.returncode is None:
                worker.signal(signal.SIGTERM)
        for _, worker in workers:
            await worker.wait()
            await wait_until(worker.is_all_gone, what=f"the children of worker {worker.pid} to end")
        _record_scratch([worker.life for _, worker in workers])


async def _watch(worker: Worker) -> None:
    """Record the open files of a worker before its first receive, and its end."""
    ended = asyncio.create_task(worker.process.wait())
    while not ended.done() and not worker.events("worker_started"):
        await asyncio.wait({ended}, timeout=_CHECK_INTERVAL_S)
    worker.life.open_at_start = worker.open_files()
    worker.life.returncode = await ended
    worker.life.ended_s = time.monotonic()


async def _record_idle(site: Site, worker: Worker) -> None:
    """Record the peak memory of a worker and, if it holds no message, its open files."""
    life = worker.life
    life.peak_memory_bytes = worker.peak_memory_bytes()
    if worker.process.returncode is not None or not worker.events("worker_started") or not site.is_idle(life.name):
        return
    with suppress(AssertionError):  # the invariants report files that stay open
        await wait_until(
            lambda: worker.open_files() <= life.open_at_start,
            what="the worker's files to be closed",
            timeout_s=_CLOSE_TIMEOUT_S,
        )
    still_open = worker.open_files()
    if site.is_idle(life.name):
        life.open_when_idle = still_open


def _record_scratch(lives: Sequence[Life]) -> None:
    """Record the files that workers left in scratch, except in folders that a killed worker used."""
    used_by_killed = {life.scratch for life in lives if not life.exited}
    for life in lives:
        if life.scratch not in used_by_killed:
            life.left += [str(file) for file in sorted(life.scratch.iterdir())]


def command(*arguments: str) -> list[str]:
    """Return `stt-async ARGUMENTS` as a program and its arguments."""
    return [sys.executable, "-m", "stt_async", *arguments]


def _objects(text: str) -> list[Any]:
    """Parse the lines that are JSON objects; skip others, such as a traceback or an incomplete line."""
    found = []
    for line in text.splitlines():
        try:
            parsed = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(parsed, dict):
            found.append(parsed)
    return found
