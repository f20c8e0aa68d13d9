"""The parameters of a split. The same bytes and the same parameters give the same segments."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Literal

import orjson

SAMPLE_RATE_HZ = 16_000
"""Sample rate of segments and of sample numbers in manifests; Silero and speech recognisers expect it."""

LONGEST_SEGMENT_S = 60.0
"""Upper bound of `max_speech_duration_s`: speech recognisers take 30 s."""

Format = Literal["flac", "wav"]
Layout = Literal["objects", "tar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VadParams:
    """Where to cut: the settings `STT_VAD_*`. Names and units are those of Silero's `get_speech_timestamps`."""

    threshold: float = 0.3
    """Speech begins at a frame of at least this probability."""
    neg_threshold: float = 0.15
    """Speech ends at a frame below this, if no speech follows within `min_silence_duration_ms`."""
    min_speech_duration_ms: int = 250
    """Shorter speech is dropped and counted, if joining it to its neighbours does not make it long enough."""
    min_silence_duration_ms: int = 600
    """Silence of this length ends a run of speech."""
    speech_pad_ms: int = 200
    """Padding on both sides, if there is room."""
    max_speech_duration_s: float = 30.0
    """No segment is longer, padding included."""
    min_silence_at_max_speech: int = 98
    """The shortest pause, in ms (Silero's name), in which speech that is too long is cut."""
    max_join_pause_ms: int = 2_000
    """Runs of speech are joined across pauses up to this, the shortest pause first, up to `target_duration_s`."""
    target_duration_s: float = 15.0
    """Joining makes no segment longer than this, except to keep speech that would be dropped alone."""
    min_segment_duration_s: float = 1.0
    """Segments that stay shorter, padding included, are dropped and counted."""

    def __post_init__(self) -> None:
        """Raise ValueError for values that contradict each other, with a clause for each contradiction."""
        contradictions: list[str] = []
        if not 0 < self.neg_threshold <= self.threshold < 1:
            contradictions.append(
                f"neg_threshold is {self.neg_threshold} and threshold {self.threshold}: "
                "choose 0 < neg_threshold <= threshold < 1"
            )
        if not 0 < 2 * self.min_segment_duration_s <= self.max_speech_duration_s <= LONGEST_SEGMENT_S:
            contradictions.append(
                f"max_speech_duration_s is {self.max_speech_duration_s} and min_segment_duration_s "
                f"{self.min_segment_duration_s}: choose a maximum of at least twice the minimum, and at most "
                f"{LONGEST_SEGMENT_S}"
            )
        if contradictions:
            raise ValueError("; ".join(contradictions))


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitParams(VadParams):
    """All parameters of a split: where to cut, and what to write."""

    format: Format = "flac"
    layout: Layout = "objects"
    """One object per segment, or one tar per recording."""

    def digest(self) -> str:
        """Return 16 hex digits that identify these values. The order of the fields does not matter."""
        return hashlib.sha256(orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitLimits:
    """Bounds against hostile or broken recordings. They never change the segments of a recording within them."""

    max_decoded_s: float = 24 * 3600.0
    """Maximum length of a recording."""
    max_channels: int = 64
    """Maximum number of channels."""
    max_scratch_bytes: int = 4 * 1024**3
    """Maximum size of the decoded audio on disk: 16 kHz 16 bit mono takes 115 MB per hour."""
