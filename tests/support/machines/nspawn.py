"""A machine to boot: Debian with systemd in a systemd-nspawn container, whose network is loopback alone.

It replaces Amazon Linux 2023, with the same systemd (252), Python 3.11 and AWS CLI 2. It lacks dnf, cloud-init, the
CloudWatch agent, and memory limits (cgroup v1 in a container).
"""

import asyncio
import contextlib
import ctypes
import os
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from stt_async.local.process import ChildProcess, plain_environment
from tests.support.machines.cache import cached
from tests.support.waiting import wait_until

IMDS_ADDRESS = "169.254.169.254"

_PROGRAMS = ("debootstrap", "ip", "nsenter", "systemd-nspawn", "unshare")
_RELEASE = "bookworm"
_PACKAGES = ("awscli", "ca-certificates", "curl", "python3.11-venv")
_MAKING_TIMEOUT_S = 600
_CLONE_NEWNET = 0x40000000


class NoDebianError(Exception):
    """Debian's mirror could not be reached."""


def why_not() -> str:
    """Return why this host cannot boot a machine; empty if it can."""
    if os.geteuid() != 0:
        return "containers require root"
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    allowed = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, check=False)  # noqa: S607
    return "" if allowed.returncode == 0 else f"namespaces are not allowed: {allowed.stderr.decode().strip()}"


def debian() -> Path:
    """Return the root folder of a Debian: from the cache, or installed from Debian's mirror in a minute or two."""
    return cached(f"debian-{_RELEASE}-{'-'.join(_PACKAGES)}", _make_debian)


def _make_debian(root: Path) -> None:
    base = ["debootstrap", "--variant=minbase", "--include=systemd,systemd-sysv,dbus,python3-minimal"]
    more = ["chroot", str(root), "apt-get", "install", "--assume-yes", "--no-install-recommends", *_PACKAGES]
    environment = os.environ | {"TMPDIR": "/tmp", "DEBIAN_FRONTEND": "noninteractive"}  # noqa: S108 - within the root
    for command in ([*base, _RELEASE, str(root)], more):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=_MAKING_TIMEOUT_S
        )
        if done.returncode != 0:
            raise NoDebianError(f"{command[0]} failed: {(done.stdout + done.stderr)[-2000:]}")
    shutil.rmtree(root / "var/cache/apt/archives")


@contextmanager
def loopback_network() -> Iterator[None]:
    """Move this thread and its new processes into a network with loopback and the metadata service's address alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
        for change in (["link", "set", "lo", "up"], ["addr", "add", f"{IMDS_ADDRESS}/32", "dev", "lo"]):
            subprocess.run(["ip", *change], check=True)  # noqa: S607 - wherever the system has it
        yield
    finally:
        failed = libc.setns(before, _CLONE_NEWNET)
        os.close(before)
        assert not failed, "this thread could not return to its network"


@dataclass(frozen=True)
class Done:
    """A finished command."""

    returncode: int
    output: str


class Machine:
    """A running machine."""

    def __init__(self, process: ChildProcess) -> None:
        self._process = process
        self._init: psutil.Process | None = None

    @property
    def root(self) -> Path:
        """The machine's root folder, as seen from the host."""
        return Path(f"/proc/{self._up.pid}/root")

    @property
    def is_off(self) -> bool:
        return self._process.returncode is not None

    async def run(self, *command: str, timeout_s: float = 180.0) -> Done:
        """Run a command as root; output and errors are merged."""
        namespaces = ["--mount", "--uts", "--ipc", "--pid", "--cgroup", "--root", "--wd"]
        inside = await asyncio.create_subprocess_exec(
            *("nsenter", "--target", str(self._up.pid), *namespaces, "--", *command),
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(timeout_s):
                output, _ = await inside.communicate()
        finally:
            if inside.returncode is None:
                inside.kill()
                await inside.wait()
        return Done(inside.returncode or 0, output.decode(errors="replace"))

    async def unit(self, name: str, *properties: str) -> list[str]:
        """Return properties of a unit."""
        shown = await self.run("systemctl", "show", *(f"--property={each}" for each in properties), name)
        values = dict(line.split("=", 1) for line in shown.output.splitlines())
        return [values[each] for each in properties]

    async def wait_until_up(self) -> None:
        def init() -> psutil.Process | None:
            assert not self.is_off, self._process.log_tail()
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in psutil.Process(self._process.pid).children(recursive=True):
                    if process.name() == "systemd" and process.ppid() == self._process.pid:
                        return process
            return None

        self._init = await wait_until(init, what="the machine's first process")

        async def takes_commands() -> bool:
            assert not self.is_off, self._process.log_tail()
            return (await self.run("systemctl", "show", "--property=Version")).returncode == 0

        await wait_until(takes_commands, what="systemd in the machine to answer")

    async def wait_until_off(self, *, timeout_s: float = 180.0) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._process.wait()
        except TimeoutError:
            raise AssertionError(f"the machine is still on:\n{self._process.log_tail()}") from None

    @property
    def _up(self) -> psutil.Process:
        assert self._init is not None, "the machine is not up"
        return self._init


@asynccontextmanager
async def booted(layers: Sequence[Path], top: Path, log: Path) -> AsyncIterator[Machine]:
    """Boot a machine whose disk overlays `layers`, the first one uppermost. Its writes go to `top`, above them."""
    overlay = top.with_name(f"{top.name}.overlay")
    work, root = overlay / "work", overlay / "root"
    for folder in (top, work, root):
        folder.mkdir(parents=True, exist_ok=True)
    lower = ":".join(str(layer) for layer in layers)
    script = f"""
        set -e
        mount -t overlay overlay -o lowerdir={lower},upperdir={top},workdir={work} {root}
        exec systemd-nspawn --quiet --directory={root} --boot --register=no --keep-unit --resolv-conf=off \\
          --machine=stt-{uuid.uuid4().hex[:12]} --console=pipe
    """
    # The mount ends with its mount namespace.
    process = ChildProcess(
        ["unshare", "--mount", "sh", "-c", script], environment=plain_environment(), log=log, grace_s=20.0
    )
    async with process:
        machine = Machine(process)
        await machine.wait_until_up()
        yield machine
