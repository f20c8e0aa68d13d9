"""Run a command that the kernel kills when the process that started it dies, whatever the cause.

A script with the standard library only: `ChildProcess` puts it in front of the command. PR_SET_PDEATHSIG has to be set
between fork and exec; doing that here, and not in a `preexec_fn`, keeps Python code out of the forked copy of a process
that has threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_KILLED = 128  # the shell's convention: 128 + number of the signal


def main(parent_pid: int, command: list[str]) -> None:
    """Become the command; the process id stays the same."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != parent_pid:  # the parent died before the prctl: no signal will come
        os._exit(_KILLED + signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell makes commands with `&` ignore it, and that is inherited
    os.execvp(command[0], command)  # noqa: S606 - the command is the caller's own


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
