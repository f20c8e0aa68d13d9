"""A pool process with a separate pipe: a crash or hang affects only this child."""

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
"""The fork server imports it once, with torch and silero_vad, so a child takes 22 MB of private memory, not 155."""

READY_TIMEOUT_S = 120.0
"""For a fork and loading the model: 0.2 s, or 1.6 s if the fork server imports torch, and much longer from a cold
disk."""

ACK_TIMEOUT_S = 10.0
"""For an idle child to acknowledge a job: under 1 ms, unless the child is stopped or starved. A child that is replaced
too early costs 0.2 s, but no attempt of a job."""

EXIT_TIMEOUT_S = 5.0
"""After SIGKILL. Only a read or write of a broken disk keeps a process in the kernel for longer."""

RECYCLE_AFTER_JOBS = 1000
"""A child is replaced after this many jobs, even if it has not grown; that costs 0.2 s."""

RECYCLE_AFTER_GROWTH_BYTES = 256 * 1024**2
"""A child is replaced if its anonymous memory after a job exceeds that before its first job by this much. Only a leak
reaches it. Measured on the 108 recordings of the shared collection, in one child: 2 MB after the first job, 34 MB after
50, 45 MB after 200 and after 500; 31 MB on 3.4 h of speech, and on 64 channels at 48 kHz."""

_OOM_SCORE_ADJ = 500
"""Makes the kernel kill a child rather than the daemon when memory runs out: proc(5), oom_score_adj."""


class ChildLostError(Exception):
    """A child died, hung or ran out of memory, and is killed.

    Args:
        code: `child_died`, `child_hung`, `out_of_memory`, or `not_started` if the fork failed.
        pid: Process id.
        exit_status: `multiprocessing.Process.exitcode`; None if the process survived SIGKILL, stuck in the kernel.
        in_job: Whether the child had acknowledged a job. If not, the job is not the cause.
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
    anonymous_bytes: int


class Child:
    """A process that has loaded the model and runs one function at a time.

    The constructor blocks for the fork: a few milliseconds, or the import of torch if no fork server runs yet.

    Args:
        max_bytes: Limit of its private memory.
        threads: Wait for its answers: one thread per child.
    """

    def __init__(self, max_bytes: int, threads: Executor) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(child_pipe, max_bytes), name="stt-async-child", daemon=True
        )
        self._process.start()
        child_pipe.close()
        self._threads = threads
        self._ready_bytes = 0
        self.grown_bytes = 0
        """Growth of its anonymous memory from before its first job to after its last."""
        self.jobs = 0
        """Jobs done."""
        self.idle = False
        """Whether it waits for a job."""

    @property
    def due_for_replacement(self) -> bool:
        """Whether to replace it before its next job: it has done enough jobs, or grown too much."""
        return self.jobs >= RECYCLE_AFTER_JOBS or self.grown_bytes > RECYCLE_AFTER_GROWTH_BYTES

    async def ready(self) -> None:
        """Wait until it has loaded the model.

        Raises:
            ChildLostError: It failed to.
        """
        self._ready_bytes = await self._receive(READY_TIMEOUT_S, in_job=False)
        self.idle = True

    async def run(self, timeout_s: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in the child, and raise what the function raises. After a cancel, the child must be ended.

        Raises:
            ChildLostError: It died, did not acknowledge the job, exceeded `timeout_s`, or ran out of memory.
        """
        self.idle = False
        try:
            self._pipe.send((function, args, kwargs))
        except OSError as error:
            raise await self._end_lost("child_died", in_job=False) from error
        await self._receive(ACK_TIMEOUT_S, in_job=False)
        answer: _Answer = await self._receive(timeout_s, in_job=True)
        if isinstance(answer.error, MemoryError):
            raise await self._end_lost("out_of_memory", in_job=True) from answer.error
        self.idle = True
        self.jobs += 1
        self.grown_bytes = answer.anonymous_bytes - self._ready_bytes
        if answer.error is not None:
            raise answer.error
        value: T = answer.value
        return value

    def end(self) -> int | None:
        """Kill it, and return its exit status. Blocks until it has exited."""
        self.idle = False
        self._process.kill()
        # Frees the thread that waits for an answer, even if the process is stuck in the kernel.
        with socket.socket(fileno=os.dup(self._pipe.fileno())) as pipe:
            pipe.shutdown(socket.SHUT_RDWR)
        self._process.join(EXIT_TIMEOUT_S)
        return self._process.exitcode

    async def _receive(self, timeout_s: float, *, in_job: bool) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                # In a thread: a child that is stopped in the middle of its answer must not block the event loop.
                return await asyncio.get_running_loop().run_in_executor(self._threads, self._pipe.recv)
        except TimeoutError as error:
            raise await self._end_lost("child_hung", in_job=in_job) from error
        except (EOFError, OSError) as error:
            raise await self._end_lost("child_died", in_job=in_job) from error

    async def _end_lost(self, code: str, *, in_job: bool) -> ChildLostError:
        exit_status = await asyncio.to_thread(self.end)
        return ChildLostError(code, pid=self._process.pid, exit_status=exit_status, in_job=in_job)


def _serve(pipe: Connection, max_bytes: int) -> None:
    """Run in the child: report ready, then acknowledge and answer each function, until the parent has exited."""
    _prepare(max_bytes)
    pipe.send(_anonymous_bytes())
    with suppress(EOFError):
        while True:
            function, args, kwargs = pipe.recv()
            pipe.send(None)
            pipe.send(_answer(function, *args, **kwargs))


def _prepare(max_bytes: int) -> None:
    """Limit this process and load the model. The parent handles Ctrl-C."""
    from stt_async.audio.split import warm_up  # noqa: PLC0415 - torch is imported in children alone

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE_ADJ), "ascii")
    # Before the memory limit, under which starting a thread could fail and block for ever.
    Thread(target=_die_with_parent, daemon=True).start()
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
        return _Answer(function(*args, **kwargs), None, _anonymous_bytes())
    except Exception as error:  # noqa: BLE001 - the parent raises it
        error.add_note(traceback.format_exc())  # tracebacks cannot be pickled
        return _Answer(None, error, _anonymous_bytes())


def _anonymous_bytes() -> int:
    """Return the anonymous memory of this process: `RssAnon` of proc(5). Takes 0.1 ms."""
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: Linux 4.5 or later is required")
