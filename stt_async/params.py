"""The parameters that decide a recording's segments. Same bytes in, same parameters, same segments out."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Literal

import orjson

SAMPLE_RATE_HZ = 16_000
"""Of every segment, and of every sample number in a manifest: what Silero and the recognisers take."""

Format = Literal["flac", "wav"]
Layout = Literal["objects", "tar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VadParams:
    """Where to cut: settings `STT_VAD_*`. Names and units are Silero's own (`get_speech_timestamps`)."""

    threshold: float = 0.3
    neg_threshold: float = 0.15
    min_speech_duration_ms: int = 250
    min_silence_duration_ms: int = 600
    speech_pad_ms: int = 200
    max_speech_duration_s: float = 30.0
    min_silence_at_max_speech: int = 98
    """In ms (Silero's name): the shortest pause in which speech that is too long is cut."""
    max_join_pause_ms: int = 2_000
    target_duration_s: float = 15.0
    """Neighbours are joined across pauses of up to `max_join_pause_ms` as long as the result is not longer."""
    min_segment_duration_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitParams(VadParams):
    """All that decides a segment's bytes: where to cut, and what to write."""

    format: Format = "flac"
    layout: Layout = "objects"

    def digest(self) -> str:
        """Return 16 hex digits that name these parameters, whatever the order of the fields."""
        return hashlib.sha256(orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitLimits:
    """Bounds against hostile or broken recordings. They never change the segments of one that is inside them."""

    max_decoded_s: float = 24 * 3600.0
    max_channels: int = 64
    max_scratch_bytes: int = 4 * 1024**3
