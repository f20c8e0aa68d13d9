"""A child process that is surely stopped: on exit, on error, on cancel, on Ctrl-C, and when its parent is killed."""

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

# Everything else of the environment stays outside: a proxy, an AWS_* or STT_* of the person at the keyboard would
# silently point a local process at something that is not local.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")

_TAIL_LINES = 20
_TAIL_BYTES = 16_384


def plain_environment() -> dict[str, str]:
    """Return the few variables that any process needs, and none that leads it elsewhere."""
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ}


class ChildProcess:
    """A command as a child process, from `async with` to its end.

    It runs in a session of its own, so that Ctrl-C in the terminal reaches the parent alone, which then stops its
    children in order. Standard output and error go to `log`, appended. On Linux the kernel kills it when the *thread*
    that runs the event loop ends: with `asyncio.run` (or uvloop's) in the main thread, when this process ends.

    Args:
        command: Program and arguments.
        environment: All of its environment (see `plain_environment`).
        log: File that takes its output.
        directory: Its working directory; the current one if not given.
        grace_s: How long it may take from SIGTERM to its end before SIGKILL.
        leaves: Files it is known to leave behind, removed after its end.
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
        """Its process id, which is also that of its group."""
        return self._started.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._started.returncode

    async def wait(self) -> int:
        """Wait for its end; return the exit status."""
        return await self._started.wait()

    def signal(self, signum: signal.Signals) -> None:
        """Send it a signal; nothing happens if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._started.send_signal(signum)

    async def stop(self) -> int:
        """Ask it to end, wait, and kill what is left of its group; return its exit status."""
        try:
            if self.returncode is None:
                self.signal(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._grace_s):
                        await self.wait()
        finally:  # also when cancelled while waiting: then at once
            self._kill_group()
            code = await self.wait()
            for file in self._leaves:
                file.unlink(missing_ok=True)
        return code

    def group(self) -> list[int]:
        """Return the ids of all living processes of its group: its children, and itself while it runs."""
        members = []
        for process in psutil.process_iter(["status"]):
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(process.pid) == self.pid and process.info["status"] != psutil.STATUS_ZOMBIE:
                    members.append(process.pid)
        return members

    def listens_on(self) -> set[int]:
        """Return the ports on which it, or a child of its, takes TCP connections."""
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
            return  # ours ended long ago, and its number has been given to somebody else
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    @property
    def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError(f"{self.command[0]} has not been started: use it in `async with`")
        return self._process

    def _guarded_command(self) -> list[str]:
        if sys.platform != "linux":
            return self.command
        return [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid()), *self.command]
