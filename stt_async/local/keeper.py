"""Run a command that dies with the process that started it, whatever that one dies of.

A script of its own, standard library only: `ChildProcess` puts it in front of the command. The kernel's
PR_SET_PDEATHSIG has to be asked for between fork and exec; doing that here, and not in a `preexec_fn`, keeps Python
code out of the forked copy of a process that has threads.

Two ways of running:

* plain: ask for SIGKILL on the parent's death and become the command (same pid, nothing in between);
* with `--remove FILE…`: stay as the command's parent, stop it in order when told to (or when the parent has died), and
  remove the files it is known to leave behind. If the keeper itself is killed, the kernel kills the command.
"""

import argparse
import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
_STOP_GRACE_S = 5
_KILLED = 128  # the shell's convention: 128 + number of the signal


def _die_with(parent_pid: int, signum: signal.Signals) -> None:
    """Have the kernel send `signum` to this process when its parent dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG, {signum.name}): {os.strerror(number)}")
    if os.getppid() != parent_pid:  # it died before we asked; nobody will tell us any more
        os._exit(_KILLED + signum)


def _become(command: list[str], parent_pid: int) -> NoReturn:
    _die_with(parent_pid, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell has what it starts with `&` ignore it, and that is inherited
    os.execvp(command[0], command)  # noqa: S606 - the command is the caller's own


def _keep(command: list[str], parent_pid: int) -> int:
    """Run the command below this process; return its exit status."""
    watched = _STOP_SIGNALS | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    _die_with(parent_pid, signal.SIGTERM)
    keeper_pid = os.getpid()
    command_pid = os.fork()
    if command_pid == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _become(command, keeper_pid)
    if signal.sigwait(watched) in _STOP_SIGNALS:
        os.kill(command_pid, signal.SIGTERM)
        if signal.sigtimedwait({signal.SIGCHLD}, _STOP_GRACE_S) is None:
            os.kill(command_pid, signal.SIGKILL)
    _, status = os.waitpid(command_pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else _KILLED - code


def main() -> int:
    """Parse the arguments and run the command."""
    parser = argparse.ArgumentParser(description="run a command that dies with its parent")
    parser.add_argument("--parent", type=int, required=True, metavar="PID")
    parser.add_argument("--remove", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    command = [word for at, word in enumerate(arguments.command) if (at, word) != (0, "--")]
    if not arguments.remove:
        _become(command, arguments.parent)
    try:
        return _keep(command, arguments.parent)
    finally:
        for file in arguments.remove:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
