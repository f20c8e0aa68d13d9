"""A child process that never outlives its parent: not after an error, a cancellation, Ctrl-C or SIGKILL."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from stt_async.local import die_with_parent

# No other variables: the user's proxy, AWS_* or STT_* would silently point a local process at a remote service.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")

_TAIL_LINES = 20
_TAIL_BYTES = 16_384


def plain_environment() -> dict[str, str]:
    """Return the few variables that every process needs."""
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ}


class ChildProcess:
    """A command that runs as a child process within an `async with` block.

    It has its own session, so that Ctrl-C reaches only the parent, which then stops its children in order. On Linux the
    kernel kills it when the *thread* that runs the event loop ends. With `asyncio.run` or `uvloop.run` in the main
    thread, that is when this process ends.

    Args:
        command: Program and arguments.
        environment: Its complete environment (see `plain_environment`).
        log: File to which its standard output and error are appended.
        directory: Its working directory. Default: the current one.
        grace_s: Time from SIGTERM to SIGKILL.
        leaves: Files that it leaves behind; they are removed after its end.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        log: Path,
        directory: Path | None = None,
        grace_s: float = 10.0,
        leaves: Sequence[Path] = (),
    ) -> None:
        self.command = [str(word) for word in command]
        self.log = log
        self._environment = dict(environment)
        self._directory = directory
        self._grace_s = grace_s
        self._leaves = leaves
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._guarded_command(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=self._directory,
                start_new_session=True,
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its process group."""
        return self._started.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative after a signal; None while the process runs."""
        return self._started.returncode

    async def wait(self) -> int:
        """Wait for the end of the process; return the exit status."""
        return await self._started.wait()

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal; a process that has ended ignores it."""
        with contextlib.suppress(ProcessLookupError):
            self._started.send_signal(signum)

    async def stop(self) -> int:
        """Send SIGTERM, wait for `grace_s`, and kill the rest of its process group; return the exit status."""
        try:
            if self.returncode is None:
                self.signal(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._grace_s):
                        await self.wait()
        finally:  # also, without further delay, when this wait is cancelled
            self._kill_group()
            code = await self.wait()
            for file in self._leaves:
                file.unlink(missing_ok=True)
        return code

    def group(self) -> list[int]:
        """Return the ids of the running processes of its group: itself and its children."""
        members = []
        for process in psutil.process_iter(["status"]):
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(process.pid) == self.pid and process.info["status"] != psutil.STATUS_ZOMBIE:
                    members.append(process.pid)
        return members

    def listens_on(self) -> set[int]:
        """Return the TCP ports on which the processes of its group listen."""
        ports: set[int] = set()
        for pid in self.group():
            with contextlib.suppress(psutil.NoSuchProcess):
                connections = psutil.Process(pid).net_connections(kind="tcp")
                ports.update(each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN)
        return ports

    def log_tail(self) -> str:
        """Return the last lines of its output."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:])

    def _kill_group(self) -> None:
        if self.returncode is not None and psutil.pid_exists(self.pid):
            return  # the process has ended, and another process has its id now
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    @property
    def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError(f"{self.command[0]} has not been started: enter its ChildProcess with `async with`")
        return self._process

    def _guarded_command(self) -> list[str]:
        if sys.platform != "linux":
            return self.command
        return [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid()), *self.command]
