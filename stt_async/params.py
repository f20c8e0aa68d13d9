"""The parameters that decide a recording's segments. Same bytes in, same parameters, same segments out."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Literal

import orjson

SAMPLE_RATE_HZ = 16_000
"""Of every segment, and of every sample number in a manifest: what Silero and the recognisers take."""

LONGEST_SEGMENT_S = 60.0
"""Nobody may ask for longer segments: recognisers take 30 s."""

Format = Literal["flac", "wav"]
Layout = Literal["objects", "tar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VadParams:
    """Where to cut: settings `STT_VAD_*`. Names and units are Silero's own (`get_speech_timestamps`)."""

    threshold: float = 0.3
    """Speech begins at a frame of at least this probability."""
    neg_threshold: float = 0.15
    """Speech ends at a frame below this, when no speech follows within `min_silence_duration_ms`."""
    min_speech_duration_ms: int = 250
    """Speech that is shorter than this, its neighbours' joined to it included, is dropped, and counted."""
    min_silence_duration_ms: int = 600
    """Silence of this length ends a run of speech."""
    speech_pad_ms: int = 200
    """Added on both sides, as far as there is room."""
    max_speech_duration_s: float = 30.0
    """No segment is longer, padding included."""
    min_silence_at_max_speech: int = 98
    """In ms (Silero's name): the shortest pause in which speech that is too long is cut."""
    max_join_pause_ms: int = 2_000
    """Runs of speech are joined across pauses of up to this, the shortest first, towards `target_duration_s`."""
    target_duration_s: float = 15.0
    """Joining makes no segment longer than this."""
    min_segment_duration_s: float = 1.0
    """What stays shorter, padding included, is dropped, and counted."""

    def __post_init__(self) -> None:
        """Raise ValueError for values that contradict each other."""
        if not 0 < self.neg_threshold <= self.threshold < 1:
            raise ValueError(
                f"0 < neg_threshold <= threshold < 1 does not hold: they are {self.neg_threshold}, {self.threshold}"
            )
        if not 0 < 2 * self.min_segment_duration_s <= self.max_speech_duration_s <= LONGEST_SEGMENT_S:
            raise ValueError(
                f"max_speech_duration_s is {self.max_speech_duration_s}; it must be twice min_segment_duration_s "
                f"({self.min_segment_duration_s}) at least, and {LONGEST_SEGMENT_S} at most"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitParams(VadParams):
    """All that decides a segment's bytes: where to cut, and what to write."""

    format: Format = "flac"
    layout: Layout = "objects"
    """One object a segment, or one tar a recording."""

    def digest(self) -> str:
        """Return 16 hex digits that name these parameters, whatever the order of the fields."""
        return hashlib.sha256(orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitLimits:
    """Bounds against hostile or broken recordings. They never change the segments of one that is inside them."""

    max_decoded_s: float = 24 * 3600.0
    """Longest recording."""
    max_channels: int = 64
    """Most channels."""
    max_scratch_bytes: int = 4 * 1024**3
    """Most bytes of decoded audio on disk: 16 kHz 16 bit mono is 115 MB an hour."""
