"""What the next job will need, from the jobs done so far in this worker: time, and scratch space."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from statistics import median

from stt_async.job import AUDIO_SUFFIXES
from stt_async.params import SAMPLE_RATE_HZ, SplitLimits

ENOUGH = 3
"""Jobs of a kind; fewer give no estimate of the time."""

LAST = 50
"""Jobs of a kind that count: rates change with the hour and with the other jobs."""

PER_SOURCE_BYTE = 8
"""Scratch bytes: 64 kbit/s mp3 becomes four times its size as 16 kHz 16 bit PCM and about twice as FLAC segments."""

PER_SOURCE_BYTE_OF_SPEECH_CODECS = 33
"""Scratch bytes: 16 kbit/s becomes 16 times its size as PCM, and as much again as uncompressed segments."""

SPEECH_CODECS = frozenset({".3gp", ".aac", ".amr", ".m4a", ".mka", ".mkv", ".mp4", ".oga", ".ogg", ".opus", ".webm"})
"""Suffixes of containers that may hold speech at 16 kbit/s: Opus, AMR, HE-AAC."""

UNKNOWN_SOURCE_BYTES = 64 * 1024**2
"""Assumed for a recording whose job does not give its size."""

SHORTEST_SPLIT_TIMEOUT_S = 600.0
SPLIT_TIMEOUT_MARGIN = 20.0
UNMEASURED_BYTES_S = 160_000.0
"""Assumed before the first split: 64 kbit/s audio at 20 times real time, a hundredth of the usual rate."""

_PCM_BYTES_S = 2 * SAMPLE_RATE_HZ


@dataclass(frozen=True, slots=True)
class JobCost:
    """What one job took: the size of its recording, scratch space, time in its stages and time between them."""

    source_bytes: int
    scratch_bytes: float
    busy_s: float
    waited_s: float


class Estimates:
    """Estimates by the suffix of a key: what is known of a recording before its download.

    Bytes represent seconds of audio, as recordings of one format cost alike; jobs do not give durations.

    Args:
        limits: No recording decodes to more.
    """

    def __init__(self, limits: SplitLimits) -> None:
        most_pcm_bytes = min(limits.max_scratch_bytes, int(limits.max_decoded_s * _PCM_BYTES_S))
        self._most_made_bytes = 2 * most_pcm_bytes  # as PCM and as segments, or as PCM by two decoders
        self._costs: dict[str, deque[JobCost]] = {}

    def add(self, key: str, cost: JobCost) -> None:
        """Learn from a job that is done."""
        self._costs.setdefault(_kind(key), deque(maxlen=LAST)).append(cost)

    def seconds_needed(self, key: str, source_bytes: int | None) -> float | None:
        """Return how long such a job takes from its receive to its end; None: unknown."""
        costs = self._costs.get(_kind(key), ())
        total_bytes = sum(cost.source_bytes for cost in costs)
        if source_bytes is None or len(costs) < ENOUGH or not total_bytes:
            return None
        # The waits depend on the other jobs, not on the size. Time per byte is that of all bytes together, so that the
        # fixed cost of a job weighs little.
        busy_s_per_byte = sum(cost.busy_s for cost in costs) / total_bytes
        return median(cost.waited_s for cost in costs) + source_bytes * busy_s_per_byte

    def scratch_bytes_needed(self, key: str, source_bytes: int | None) -> int:
        """Return the scratch space of such a job: the recent maximum per byte, capped by the limits."""
        size_bytes = source_bytes or UNKNOWN_SOURCE_BYTES
        guess = PER_SOURCE_BYTE_OF_SPEECH_CODECS if _kind(key) in SPEECH_CODECS else PER_SOURCE_BYTE
        per_byte = max(guess, _most_per_byte(self._costs.get(_kind(key), ())))
        return min(int(size_bytes * per_byte), size_bytes + self._most_made_bytes)


class SplitRate:
    """How long a split may take, from the moving average of bytes per second that children achieve.

    Args:
        most_s: Upper bound.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._bytes_s: float | None = None

    def add(self, source_bytes: int, seconds: float) -> None:
        """Learn from a split that is done."""
        measured = source_bytes / max(seconds, 1e-3)
        self._bytes_s = measured if self._bytes_s is None else 0.9 * self._bytes_s + 0.1 * measured

    def timeout_s(self, source_bytes: int) -> float:
        """Return many times what the size predicts, but at least `SHORTEST_SPLIT_TIMEOUT_S`."""
        expected_s = source_bytes / (self._bytes_s or UNMEASURED_BYTES_S)
        return min(self._most_s, max(SHORTEST_SPLIT_TIMEOUT_S, SPLIT_TIMEOUT_MARGIN * expected_s))


def _most_per_byte(costs: Iterable[JobCost]) -> float:
    return max((cost.scratch_bytes / max(1, cost.source_bytes) for cost in costs), default=0.0)


def _kind(key: str) -> str:
    """Return the suffix of a key. All that are no recording's are one kind, so that there are not endlessly many."""
    suffix = PurePosixPath(key).suffix.lower()
    return suffix if suffix in AUDIO_SUFFIXES else ""
