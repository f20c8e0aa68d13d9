"""A name that resolves to loopback until it is removed, as in an outage of DNS, for one worker."""

from pathlib import Path

import pytest

from tests.support.faults.preload import compiled

NAME = "source.test"
"""RFC 6761, section 6.2: no name server knows it."""


class Names:
    """What `NAME` resolves to in processes with this environment."""

    def __init__(self, library: Path, gone: Path) -> None:
        self._library, self._gone = library, gone

    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "NAME_SERVED": NAME, "NAME_GONE": str(self._gone)}

    def remove(self) -> None:
        """Let lookups of the name fail."""
        self._gone.touch()

    def failed_lookups(self) -> int:
        """The number of lookups since the name was removed."""
        return self._gone.stat().st_size

    def restore(self) -> None:
        """Let the name resolve again."""
        self._gone.unlink()


@pytest.fixture
def names(tmp_path: Path) -> Names:
    """A name that resolves until it is removed."""
    return Names(compiled(Path(__file__).with_suffix(".c"), tmp_path), tmp_path / "name-is-gone")
