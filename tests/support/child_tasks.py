"""Functions that a child runs in tests instead of a split."""

import os
import signal
import time
from itertools import count

import numpy as np

GIB = 1024**3
LEAK_BYTES = 96 * 1024**2
LONG_ANSWER_BYTES = 256 * 1024**2

_leaked: list[object] = []


def eat_memory() -> None:
    """Allocate 3 GiB."""
    np.ones(3 * GIB, np.uint8)


def fail() -> None:
    """Fail as torch does."""
    raise RuntimeError("could not create a primitive")


def answer() -> int:
    return 42


def whoami() -> int:
    return os.getpid()


def leak() -> int:
    """Keep some memory for ever; return the pid."""
    _leaked.append(np.ones(LEAK_BYTES, np.uint8))
    return os.getpid()


def loop_for_ever() -> None:
    for _ in count():
        pass


def die(signum: int) -> None:
    os.kill(os.getpid(), signum)


def die_while_answering(after_s: float) -> bytes:
    """Return so many bytes that the alarm, which ends the process, interrupts the answer."""
    long = bytes(LONG_ANSWER_BYTES)
    signal.setitimer(signal.ITIMER_REAL, after_s)
    return long


def take(seconds: float) -> int:
    """Work for so long; return the pid."""
    time.sleep(seconds)
    return os.getpid()
