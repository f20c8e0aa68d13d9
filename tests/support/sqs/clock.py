"""The time that a fake lives by."""

import time
from collections.abc import Callable


class Clock:
    """Runs with `source` (by default the machine's time) and is as far ahead of it as it was pushed."""

    def __init__(self, source: Callable[[], float] = time.time) -> None:
        self._source = source
        self._ahead_s = 0.0

    def now_s(self) -> float:
        """Seconds since the epoch."""
        return self._source() + self._ahead_s

    def advance(self, seconds: float) -> None:
        """Let this much time pass at once."""
        self._ahead_s += seconds
