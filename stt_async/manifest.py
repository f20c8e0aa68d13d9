"""What goes out: metadata.json, and the names of the objects it lists.

A recording's output exists if and only if its manifest does; the manifest is written last.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stt_async.params import SplitParams

MANIFEST_NAME = "metadata.json"
SCHEMA_VERSION = 1

EndReason = Literal["silence", "max_duration", "end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What was read and decoded."""

    source_bytes: int
    source_sha256: str
    container: str
    codec: str
    sample_rate_hz: int
    channels: int
    declared_duration_s: float | None
    decoded_duration_s: float
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One segment. Samples count at 16 kHz from the recording's start; `end_sample` is exclusive."""

    filename: str
    start_sec: float
    end_sec: float
    duration_sec: float
    start_sample: int
    end_sample: int
    bytes: int
    sha256: str
    end_reason: EndReason
    mean_speech_probability: float
    tar_offset: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """The one tar of the `tar` layout; `Segment.tar_offset` and `bytes` address its members."""

    filename: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitResult:
    """What `audio.split.split` found and wrote into its folder. Small: files, not arrays, cross processes."""

    recording: Recording
    segments: tuple[Segment, ...]
    archive: Archive | None
    speech_s: float
    dropped_speech_s: float
    dropped_runs: int
    clipped_samples: int
    versions: Mapping[str, str]
    stage_s: Mapping[str, float]


def content_name(stem: str, sha256: str, suffix: str) -> str:
    """Name an object by its content: `segment_00001-3fa9c2d1.flac`. Another content never overwrites it."""
    return f"{stem}-{sha256[:8]}.{suffix}"
