"""Jobs: parsed from the body of a message, and validated."""

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from stt_async.errors import PermanentError
from stt_async.params import LONGEST_SEGMENT_S, SplitParams

MAX_BODY_BYTES = 64 * 1024
MAX_METADATA_BYTES = 8 * 1024
MAX_KEY_BYTES = 1024
MAX_PREFIX_BYTES = 900
"""S3 keys have at most 1024 bytes; this leaves room for the longest object name below the prefix."""

AUDIO_SUFFIXES = frozenset(
    {".3gp", ".aac", ".aif", ".aifc", ".aiff", ".amr", ".au", ".flac", ".m4a", ".mka", ".mkv", ".mp3", ".mp4"}
    | {".oga", ".ogg", ".opus", ".sph", ".wav", ".webm", ".wma"}
)
"""Suffixes of recordings in a listing. Only decoding shows whether an object is one."""

MAX_REASON_CHARACTERS = 1000
"""Bound on a reason: a body of 64 KiB can have thousands of errors."""

RESERVED_PREFIXES = ("releases/", "failures/")
"""Prefixes in the output bucket that no job may write to: the fleet's own objects."""


def _require_printable(text: str) -> str:
    """Refuse characters that hide text in a log or a terminal: control characters, and controls of the direction."""
    for character in text:
        if unicodedata.category(character) == "Cc" or unicodedata.bidirectional(character) in _BIDI_CONTROLS:
            raise ValueError(f"holds the character U+{ord(character):04X}, which is not allowed in a name")
    return text


_BIDI_CONTROLS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})


def _require_key_length(key: str) -> str:
    if len(key.encode()) > MAX_KEY_BYTES:
        raise ValueError(f"has {len(key.encode())} bytes, more than the {MAX_KEY_BYTES} that S3 allows")
    return key


def _normalize_prefix(prefix: str) -> str:
    bare = prefix.removesuffix("/")
    if len(bare.encode()) > MAX_PREFIX_BYTES:
        raise ValueError(f"has {len(bare.encode())} bytes; {MAX_PREFIX_BYTES} is the most")
    if any(part in {"", ".", ".."} for part in bare.split("/")):
        raise ValueError("has an empty part, '.' or '..' between its slashes")
    if f"{bare}/".startswith(RESERVED_PREFIXES):
        raise ValueError(f"begins with one of {', '.join(RESERVED_PREFIXES)}, which are reserved")
    return f"{bare}/"


def _require_small_json(metadata: dict[str, Any]) -> dict[str, Any]:
    try:
        written = orjson.dumps(metadata)
    except orjson.JSONEncodeError as error:
        raise ValueError(f"cannot be written back as JSON: {error}") from error
    if len(written) > MAX_METADATA_BYTES:
        raise ValueError(f"has {len(written)} bytes; {MAX_METADATA_BYTES} is the most")
    if orjson.loads(written) != metadata:  # json.loads reads the valid JSON number 1e999 as infinity
        raise ValueError("holds a number that is too large for JSON, such as 1e999")
    return metadata


Name = Annotated[str, Field(min_length=1), AfterValidator(_require_printable)]


class SplitJob(BaseModel):
    """A recording to split. Messages are flat, or in the older form with `raw_audio_path`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    job_id: Annotated[Name, Field(max_length=200)]
    source_type: Literal["minio", "s3"] = "minio"
    source_bucket: Name
    source_key: Annotated[Name, AfterValidator(_require_key_length)]
    source_size: int | None = Field(None, ge=0)
    source_etag: Annotated[str, Field(max_length=200)] | None = None
    output_bucket: Name
    output_prefix: Annotated[Name, AfterValidator(_normalize_prefix)]
    max_duration: float | None = Field(None, ge=2, le=LONGEST_SEGMENT_S)
    metadata: Annotated[dict[str, Any], AfterValidator(_require_small_json)] = Field(default_factory=dict)
    replace: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_older_form(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "raw_audio_path" not in data:
            return data
        flat = dict(data)
        path = flat.pop("raw_audio_path")
        if not isinstance(path, str) or "/" not in path:
            raise ValueError(f"raw_audio_path is {path!r}, not BUCKET/KEY")
        if clash := {"source_type", "source_bucket", "source_key"} & flat.keys():
            raise ValueError(f"raw_audio_path and {', '.join(sorted(clash))} are in one message")
        bucket, key = path.split("/", 1)
        return {**flat, "source_bucket": bucket, "source_key": key}

    @property
    def recording(self) -> str:
        """`bucket/key`, for logs."""
        return f"{self.source_bucket}/{self.source_key}"

    def params(self, defaults: SplitParams) -> SplitParams:
        """Return the parameters of this job: the defaults, and its own `max_duration` if it has one.

        Raises:
            PermanentError: `invalid_job`, the parameters contradict each other.
        """
        if self.max_duration is None:
            return defaults
        try:
            return replace(defaults, max_speech_duration_s=self.max_duration)
        except ValueError as error:
            raise PermanentError("invalid_job", f"max_duration: {error}") from error

    def body(self) -> str:
        """Return the message body in the flat form."""
        return self.model_dump_json(exclude_none=True)


def parse_split_job(body: str, *, output_bucket: str, source_buckets: Iterable[str]) -> SplitJob:
    """Parse a message body.

    Args:
        body: JSON in either form. The older form names no output bucket; it means `output_bucket`.
        output_bucket: The only bucket that this worker writes to.
        source_buckets: Buckets that a job may read from.

    Raises:
        PermanentError: `invalid_job`, with the path of each error.
    """
    if (size := len(body.encode(errors="surrogatepass"))) > MAX_BODY_BYTES:
        raise PermanentError("invalid_job", f"the message has {size} bytes; {MAX_BODY_BYTES} is the most")
    try:
        data = json.loads(body, object_pairs_hook=_unique_names, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise PermanentError("invalid_job", f"the message is not JSON: {error}") from error
    if isinstance(data, dict):
        data.setdefault("output_bucket", output_bucket)
    try:
        job = SplitJob.model_validate(data)
    except ValidationError as error:
        reasons = "; ".join(_describe(e) for e in error.errors())
        raise _invalid(reasons) from error
    if job.output_bucket != output_bucket:
        raise _invalid(f"output_bucket: this worker writes only to {output_bucket!r}, not to {job.output_bucket!r}")
    if job.source_bucket not in (allowed := sorted(source_buckets)):
        raise _invalid(f"source_bucket: jobs may read from {', '.join(allowed)}, not from {job.source_bucket!r}")
    return job


def split_job_id(source_bucket: str, source_key: str, params: SplitParams) -> str:
    """Return the id of a split job: the same recording with the same parameters has the same id."""
    name = f"{source_bucket}\0{source_key}\0{params.digest()}"
    return f"split-{hashlib.sha256(name.encode()).hexdigest()[:24]}"


def _invalid(reason: str) -> PermanentError:
    return PermanentError("invalid_job", reason[:MAX_REASON_CHARACTERS])


def _describe(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{path}: {message}" if path else message


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        raise ValueError("an object has the same name twice")
    return data


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
