"""One process of the pool, on a pipe of its own: whatever befalls it ends there, and touches no other."""

import asyncio
import multiprocessing
import os
import resource
import signal
import socket
import traceback
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_PRELOADED = ["stt_async.audio.split"]
"""Imported once, in the fork server, with torch and silero_vad below it: a child costs 22 MB of its own, not 155."""

READY_TIMEOUT_S = 120.0
"""From a child's fork to its model loaded: 0.2 s, but after torch's import by the fork server 1.6 s, and on a disk that
was never read much longer."""

TAKE_TIMEOUT_S = 10.0
"""From a job handed to an idle child to its word that it has it: under 1 ms, unless the child is stopped or starved.
Taken for lost too soon, it costs 0.2 s for another one, and no job an attempt."""

EXIT_TIMEOUT_S = 5.0
"""From SIGKILL to the end; longer only where the kernel holds a process in a read or write of a broken disk."""

RECYCLE_AFTER_JOBS = 1000
"""A child is replaced after this many, whatever it may have gathered by then; a new one costs 0.2 s."""

RECYCLE_AFTER_GROWTH_BYTES = 256 * 1024**2
"""A child is replaced once it holds this much more anonymous memory between two jobs than before its first. Measured on
the 108 recordings of the shared collection, in one child: 2 MB after the first, 34 MB after 50, 45 MB after 200, and
no more after 500; on 3.4 h of speech, and on 64 channels at 48 kHz, 31 MB. So only a leak gets here."""

_OOM_SCORE_ADJ = 500
"""When the machine runs out of memory, the kernel is to kill a child and not the daemon: proc(5), oom_score_adj."""


class ChildLostError(Exception):
    """A child died, hung or ran out of memory. It has been ended.

    Args:
        code: `child_died`, `child_hung`, `out_of_memory`, or `not_started`: there was no fork.
        pid: Its process.
        exit_status: As of `multiprocessing.Process.exitcode`; None: the kernel does not let go of it.
        in_job: It had said that it has the job; if not, the job is not to blame.
    """

    def __init__(self, code: str, *, pid: int | None, exit_status: int | None, in_job: bool) -> None:
        super().__init__(f"{code}: process {pid}, exit status {exit_status}")
        self.code = code
        self.pid = pid
        self.exit_status = exit_status
        self.in_job = in_job


@dataclass(frozen=True, slots=True)
class _Answer:
    value: Any
    error: Exception | None
    held_bytes: int


class Child:
    """A process that has loaded the model and runs one function at a time.

    Blocks for the fork: a few milliseconds, or the import of torch where there is no fork server yet.

    Args:
        max_bytes: Private memory that it may take.
        threads: Where to wait for its answers: one thread a child.
    """

    def __init__(self, max_bytes: int, threads: Executor) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, max_bytes), name="stt-async-child", daemon=True)
        self._process.start()
        theirs.close()
        self._threads = threads
        self._ready_bytes = 0
        self.grown_bytes = 0
        """Anonymous memory that it held after its last job beyond what it held before its first."""
        self.jobs = 0
        """Done."""
        self.idle = False
        """It waits for a job."""

    @property
    def due_for_replacement(self) -> bool:
        """It has done enough, or grown too much: to be replaced before its next job."""
        return self.jobs >= RECYCLE_AFTER_JOBS or self.grown_bytes > RECYCLE_AFTER_GROWTH_BYTES

    async def ready(self) -> None:
        """Return when it has loaded the model.

        Raises:
            ChildLostError: it could not.
        """
        self._ready_bytes = await self._receive(READY_TIMEOUT_S, in_job=False)
        self.idle = True

    async def run(self, timeout_s: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in it, and raise what that raises. Cancelled, it is left busy: end it.

        Raises:
            ChildLostError: it died, did not take the job, did not answer within `timeout_s`, or ran out of memory.
        """
        self.idle = False
        try:
            self._pipe.send((function, args, kwargs))
        except OSError as error:
            raise await self._lost("child_died", in_job=False) from error
        await self._receive(TAKE_TIMEOUT_S, in_job=False)
        answer: _Answer = await self._receive(timeout_s, in_job=True)
        if isinstance(answer.error, MemoryError):
            raise await self._lost("out_of_memory", in_job=True) from answer.error
        self.idle = True
        self.jobs += 1
        self.grown_bytes = answer.held_bytes - self._ready_bytes
        if answer.error is not None:
            raise answer.error
        value: T = answer.value
        return value

    def end(self) -> int | None:
        """Kill it, if it still lives, and return its exit status. Blocks until it is gone."""
        self.idle = False
        self._process.kill()
        self._hang_up()
        self._process.join(EXIT_TIMEOUT_S)
        return self._process.exitcode

    def _hang_up(self) -> None:
        """Let the thread that waits for its answer go, even if the kernel does not let go of the process."""
        with socket.socket(fileno=os.dup(self._pipe.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)

    async def _receive(self, timeout_s: float, *, in_job: bool) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                # In a thread: one that is stopped in the middle of its answer must not hold up the event loop.
                return await asyncio.get_running_loop().run_in_executor(self._threads, self._pipe.recv)
        except TimeoutError as error:
            raise await self._lost("child_hung", in_job=in_job) from error
        except (EOFError, OSError) as error:
            raise await self._lost("child_died", in_job=in_job) from error

    async def _lost(self, code: str, *, in_job: bool) -> ChildLostError:
        exit_status = await asyncio.to_thread(self.end)
        return ChildLostError(code, pid=self._process.pid, exit_status=exit_status, in_job=in_job)


def _serve(pipe: Connection, max_bytes: int) -> None:
    """Run in the child: say ready, then for each function taken say so, and answer; until the parent is gone."""
    _prepare(max_bytes)
    pipe.send(_held_bytes())
    with suppress(EOFError):
        while True:
            function, args, kwargs = pipe.recv()
            pipe.send(None)
            pipe.send(_answer(function, *args, **kwargs))


def _prepare(max_bytes: int) -> None:
    """Bound it and load the model. Ctrl-C is the parent's to handle; without a parent there is no work."""
    from stt_async.audio.split import warm_up  # noqa: PLC0415 - torch is imported in children alone

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE_ADJ), "ascii")
    Thread(
        target=_die_with_parent, daemon=True
    ).start()  # first: without memory, its start would be waited for for ever
    resource.setrlimit(resource.RLIMIT_DATA, (max_bytes, max_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warm_up()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)


def _answer(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> _Answer:
    try:
        return _Answer(function(*args, **kwargs), None, _held_bytes())
    except Exception as error:  # noqa: BLE001 - an error is an answer too: the parent raises it
        error.add_note(traceback.format_exc())  # the traceback itself does not cross
        return _Answer(None, error, _held_bytes())


def _held_bytes() -> int:
    """Return the anonymous memory of this process, as the kernel counts it: `RssAnon` of proc(5), in 0.1 ms."""
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: Linux has it since 4.5")
