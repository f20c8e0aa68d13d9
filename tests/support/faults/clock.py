"""A wall clock that jumps, as after an NTP step, for one process and its children.

Not libfaketime: it wraps waits and the monotonic clock, too, and its files in /dev/shm outlive a killed process.
"""

import struct
from pathlib import Path

import pytest

from tests.support.faults.preload import compiled


class Clock:
    """The wall clock of the processes started with its environment."""

    def __init__(self, library: Path, offset: Path) -> None:
        self._library, self._offset = library, offset
        self.jump(0)

    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "CLOCK_OFFSET": str(self._offset)}

    def jump(self, to_s: int) -> None:
        """Set the clock this many seconds ahead of the right time, or behind it."""
        mode = "r+b" if self._offset.exists() else "wb"
        with self._offset.open(mode, buffering=0) as file:
            file.write(struct.pack("=q", to_s))


@pytest.fixture(scope="session")
def clock_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(Path(__file__).with_suffix(".c"), tmp_path_factory.mktemp("clock"))


@pytest.fixture
def clock(clock_library: Path, tmp_path: Path) -> Clock:
    """A clock that is right until it jumps."""
    return Clock(clock_library, tmp_path / "clock-offset")
