"""How much disk a recording takes while it is worked on: from its size, and from those done so far in this worker."""

from collections import deque

from stt_async.params import SAMPLE_RATE_HZ, SplitLimits
from stt_async.worker.rates import LAST, kind

PER_SOURCE_BYTE = 8
"""64 kbit/s mp3 becomes four times its size as 16 kHz 16 bit PCM and about twice as FLAC segments."""

PER_SOURCE_BYTE_OF_SPEECH_CODECS = 33
"""16 kbit/s becomes 16 times its size as PCM, and as much again as segments that are not compressed."""

SPEECH_CODECS = frozenset({".3gp", ".aac", ".amr", ".m4a", ".mka", ".mkv", ".mp4", ".oga", ".ogg", ".opus", ".webm"})
"""Suffixes of what may hold speech at 16 kbit/s: Opus, AMR, HE-AAC."""

UNKNOWN_SOURCE_BYTES = 64 * 1024**2
"""Taken for a recording whose job does not tell its size."""

_PCM_BYTES_S = 2 * SAMPLE_RATE_HZ


class Footprints:
    """What recordings take, by the suffix of their keys.

    Args:
        limits: No recording decodes to more.
    """

    def __init__(self, limits: SplitLimits) -> None:
        most_pcm_bytes = min(limits.max_scratch_bytes, int(limits.max_decoded_s * _PCM_BYTES_S))
        self._most_made_bytes = 2 * most_pcm_bytes  # as PCM and as segments, or as PCM by two decoders
        self._per_source_byte: dict[str, deque[float]] = {}

    def add(self, key: str, *, source_bytes: int, decoded_s: float, segment_bytes: int) -> None:
        """Learn from a recording done."""
        took_bytes = source_bytes + decoded_s * _PCM_BYTES_S + segment_bytes
        self._per_source_byte.setdefault(kind(key), deque(maxlen=LAST)).append(took_bytes / source_bytes)

    def bytes_needed(self, key: str, source_bytes: int | None) -> int:
        """Return what such a recording takes: no less than those of its kind took lately, no more than it can."""
        size_bytes = source_bytes or UNKNOWN_SOURCE_BYTES
        guess = PER_SOURCE_BYTE_OF_SPEECH_CODECS if kind(key) in SPEECH_CODECS else PER_SOURCE_BYTE
        per_source_byte = max(guess, *self._per_source_byte.get(kind(key), ()), 0)
        return min(int(size_bytes * per_source_byte), size_bytes + self._most_made_bytes)
