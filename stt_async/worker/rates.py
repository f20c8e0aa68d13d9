"""How long jobs take, from those done so far in this worker: what can still be done before a deadline."""

from collections import deque
from dataclasses import dataclass
from pathlib import PurePosixPath
from statistics import median

from stt_async.job import AUDIO_SUFFIXES

ENOUGH = 3
"""Jobs of a kind; fewer tell nothing."""

LAST = 50
"""Jobs of a kind that are remembered: rates change with the hour and with the neighbours."""


@dataclass(frozen=True, slots=True)
class _Done:
    source_bytes: int
    busy_s: float
    waited_s: float


class Rates:
    """Time per byte of a recording, by the suffix of its key: what is known of one before it was downloaded.

    Bytes stand for seconds of audio here, as the formats of one kind cost alike; jobs do not tell durations.
    """

    def __init__(self) -> None:
        self._done: dict[str, deque[_Done]] = {}

    def add(self, key: str, *, source_bytes: int, busy_s: float, waited_s: float) -> None:
        """Learn from a job done: `busy_s` on its stages, `waited_s` between them for its turn."""
        self._done.setdefault(kind(key), deque(maxlen=LAST)).append(_Done(source_bytes, busy_s, waited_s))

    def seconds_needed(self, key: str, source_bytes: int | None) -> float | None:
        """Return how long such a job takes from its receive to its end; None: unknown."""
        done = self._done.get(kind(key), ())
        total_bytes = sum(job.source_bytes for job in done)
        if source_bytes is None or len(done) < ENOUGH or not total_bytes:
            return None
        # The waits depend on the neighbours, not on the size. Of all bytes together, so that what each job costs
        # beside its bytes weighs little.
        busy_s_per_byte = sum(job.busy_s for job in done) / total_bytes
        return median(job.waited_s for job in done) + source_bytes * busy_s_per_byte


def kind(key: str) -> str:
    """Return the suffix of a key; all that are no recording's are one kind, or there would be no end of them."""
    suffix = PurePosixPath(key).suffix.lower()
    return suffix if suffix in AUDIO_SUFFIXES else ""
