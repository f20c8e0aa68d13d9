"""The manifest, metadata.json, and the names of the objects that it lists.

A recording's output exists if and only if its manifest does. The manifest is written last.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.resources import files
from typing import Any, Literal, Self

import orjson
from pydantic import TypeAdapter, ValidationError

from stt_async.errors import PermanentError
from stt_async.job import SplitJob
from stt_async.params import SAMPLE_RATE_HZ, Format, Layout, SplitParams

MANIFEST_NAME = "metadata.json"
SCHEMA_VERSION = 1

EndReason = Literal["silence", "max_duration", "end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The recording as read and decoded."""

    source_bytes: int
    source_sha256: str
    container: str
    codec: str
    sample_rate_hz: int
    channels: int
    declared_duration_s: float | None
    decoded_duration_s: float
    truncated: bool

    @property
    def pcm_bytes(self) -> int:
        """Size of the decoded recording as 16 kHz 16 bit mono PCM."""
        return int(self.decoded_duration_s * SAMPLE_RATE_HZ * 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One segment. Samples are counted at 16 kHz from the start of the recording; `end_sample` is exclusive."""

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
    """The result of `audio.split.split`, small enough to cross processes; the segments are files in its folder."""

    recording: Recording
    segments: tuple[Segment, ...]
    archive: Archive | None
    speech_s: float
    dropped_speech_s: float
    dropped_runs: int
    clipped_samples: int
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """metadata.json. Each status has the same schema; consumers rely on the first nine names."""

    job_id: str
    source_bucket: str
    source_key: str
    output_bucket: str
    output_prefix: str
    processed_at: datetime
    total_segments: int
    max_segment_duration: float
    metadata: dict[str, Any]
    schema: int
    status: Literal["ok", "no_speech"]
    source_etag: str | None
    recording: Recording
    speech_s: float
    dropped_speech_s: float
    dropped_runs: int
    clipped_samples: int
    sample_rate_hz: int
    layout: Layout
    format: Format
    params: dict[str, Any]
    params_sha256: str
    versions: dict[str, str]
    archive: Archive | None
    segments: tuple[Segment, ...]

    @classmethod
    def from_result(
        cls, job: SplitJob, result: SplitResult, params: SplitParams, *, source_etag: str | None, processed_at: datetime
    ) -> Self:
        """Make the manifest of a job from the result of its split.

        Args:
            job: The job, whose names and metadata the manifest repeats.
            result: What was decoded and written.
            params: The parameters of the split.
            source_etag: ETag of the bytes that were read, without quotes.
            processed_at: Now, with a time zone.
        """
        return cls(
            job_id=job.job_id,
            source_bucket=job.source_bucket,
            source_key=job.source_key,
            output_bucket=job.output_bucket,
            output_prefix=job.output_prefix,
            processed_at=processed_at,
            total_segments=len(result.segments),
            max_segment_duration=params.max_speech_duration_s,
            metadata=job.metadata,
            schema=SCHEMA_VERSION,
            status="ok" if result.segments else "no_speech",
            source_etag=source_etag,
            recording=result.recording,
            speech_s=result.speech_s,
            dropped_speech_s=result.dropped_speech_s,
            dropped_runs=result.dropped_runs,
            clipped_samples=result.clipped_samples,
            sample_rate_hz=SAMPLE_RATE_HZ,
            layout=params.layout,
            format=params.format,
            params=asdict(params),
            params_sha256=params.digest(),
            versions=dict(result.versions),
            archive=result.archive,
            segments=result.segments,
        )

    @staticmethod
    def from_json(data: bytes) -> "Manifest":
        """Parse a metadata.json.

        Raises:
            PermanentError: `foreign_manifest`: it is not one of ours, and only `"replace": true` overwrites it.
        """
        try:
            return _ADAPTER.validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            path = ".".join(str(part) for part in first["loc"])
            raise PermanentError(
                "foreign_manifest",
                f"there is a {MANIFEST_NAME} that this version cannot read ({path}: {first['msg']}); "
                'send the job with "replace": true to overwrite it',
            ) from error

    def to_json(self) -> bytes:
        """Return metadata.json: UTF-8, indented so that people can read it."""
        return orjson.dumps(self, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    def object_names(self) -> list[str]:
        """Return the names of the objects that it lists, relative to its prefix and without its own."""
        if self.archive is not None:
            return [self.archive.filename]
        return [segment.filename for segment in self.segments]

    @property
    def segment_bytes(self) -> int:
        """Size of all segments together."""
        return sum(segment.bytes for segment in self.segments)

    def matches(self, job: SplitJob, params: SplitParams, *, source_etag: str | None) -> bool:
        """Return whether it is the result that a job asks for: the same source bytes and the same parameters.

        Without an ETag on either side, the source is the same if bucket, key and (where the job has it) size are.
        """
        return (
            (self.source_bucket, self.source_key) == (job.source_bucket, job.source_key)
            and self.params_sha256 == params.digest()
            and (source_etag is None or self.source_etag is None or self.source_etag == source_etag)
            and (job.source_size is None or self.recording.source_bytes == job.source_size)
        )


_ADAPTER = TypeAdapter(Manifest)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of metadata.json, as made from the types above."""
    return _ADAPTER.json_schema(mode="serialization")


def shipped_json_schema() -> dict[str, Any]:
    """Return the JSON Schema that lies in the package, for consumers; a test holds it equal to `json_schema`."""
    schema: dict[str, Any] = orjson.loads((files("stt_async") / "manifest.schema.json").read_bytes())
    return schema


def content_name(stem: str, sha256: str, suffix: str) -> str:
    """Name an object by its content: `segment_00001-3fa9c2d1.flac`. Another content never overwrites it."""
    return f"{stem}-{sha256[:8]}.{suffix}"
