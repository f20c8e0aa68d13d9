"""The settings: read once, from environment variables or an env file. No other module reads them."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import psutil
from dotenv import load_dotenv
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from stt_async.errors import SettingsError
from stt_async.params import Format, Layout, SplitLimits, SplitParams, VadParams

_TYPES = {"array": "list", "boolean": "true|false", "integer": "int", "number": "float", "password": "secret"}
"""Names of JSON Schema's types and formats in the help; those that are missing keep their name."""

_VAD_FIELD = re.compile(rf"\b({'|'.join(field.name for field in fields(VadParams))})\b")


def usable_vcpus() -> int:
    """Return the number of vCPUs that this process may run on, which may be fewer than the machine has."""
    return len(psutil.Process().cpu_affinity())


class _Group(BaseModel):
    """Settings that belong together; the first line of the docstring is their heading in `worker --help`."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class _Source(_Group):
    """Recordings in MinIO."""

    minio_endpoint: str = Field("s3.monlam.ai", description="MinIO server of the recordings: host, or host:port.")
    minio_access_key: SecretStr = Field(SecretStr(""), description="Access key; read access is enough.")
    minio_secret_key: SecretStr = Field(SecretStr(""), description="Secret key.")
    minio_secure: bool = Field(True, description="Use TLS.")
    minio_region: str = Field("us-east-1", description="Region in the request signatures.")
    source_bucket: str = Field("audio", description="Bucket of the recordings.")
    allowed_source_buckets: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Buckets that a job may name besides the source bucket, separated by commas."
    )

    @field_validator("minio_endpoint")
    @classmethod
    def _is_a_host(cls, endpoint: str) -> str:
        if "@" in endpoint:
            raise ValueError(
                "STT_MINIO_ENDPOINT contains a user and a password: set it to host or host:port, "
                "and put the keys into STT_MINIO_ACCESS_KEY and STT_MINIO_SECRET_KEY"
            )
        if "://" in endpoint:
            raise ValueError(
                f"STT_MINIO_ENDPOINT is {endpoint!r}: set it to host or host:port, "
                "and choose http or https with STT_MINIO_SECURE"
            )
        return endpoint

    @field_validator("allowed_source_buckets", mode="before")
    @classmethod
    def _split_at_commas(cls, names: object) -> object:
        if not isinstance(names, str):
            return names
        return tuple(name.strip() for name in names.split(",") if name.strip())

    @property
    def source_buckets(self) -> frozenset[str]:
        """Buckets that a job may name as its source."""
        return frozenset({self.source_bucket, *self.allowed_source_buckets})


class _Output(_Group):
    """Queue and output bucket in AWS."""

    aws_region: str = Field(
        "us-east-1",
        validation_alias=AliasChoices("AWS_REGION", "AWS_DEFAULT_REGION"),
        description="Region of the queues and of the output bucket.",
    )
    output_bucket: str = Field("monlamai-stt-raw-audio", description="Bucket of the segments.")
    split_queue: str = Field("stt-split-jobs", description="Queue of the split jobs: a name or a URL.")


class _Segments(_Group):
    """Segments."""

    format: Format = Field("flac", description="Format of the segments.")
    layout: Layout = Field("objects", description="One object a segment (objects), or one tar a recording (tar).")
    vad: VadParams = VadParams()
    limits: SplitLimits = SplitLimits()

    @property
    def split_params(self) -> SplitParams:
        """The parameters of a job that names none."""
        return SplitParams(**asdict(self.vad), format=self.format, layout=self.layout)


class _Resources(_Group):
    """Resources of a worker."""

    scratch_dir: Path = Field(
        # Not below /tmp, which is in memory on some systems. The worker creates it with mode 700.
        default_factory=lambda: Path(f"/var/tmp/stt-async-{os.getuid()}"),  # noqa: S108 - see above
        description="Folder for recordings and segments in progress. Default: /var/tmp/stt-async-UID.",
    )
    scratch_max_bytes: int | None = Field(
        None, gt=0, description="Most bytes of recordings in progress there. Default: 80% of the free space."
    )
    processes: int = Field(default_factory=usable_vcpus, ge=1, description="Pool processes. Default: the usable vCPUs.")
    child_max_bytes: int = Field(2 * 1024**3, ge=512 * 1024**2, description="Most private memory of a pool process.")
    downloads: int = Field(12, ge=1, description="Downloads at once: one connection to MinIO is slow.")
    uploads: int = Field(32, ge=1, description="Uploads at once, over all jobs.")
    slots: int | None = Field(None, ge=1, description="Jobs held at once. Default: 2 * STT_PROCESSES + STT_DOWNLOADS.")
    multipart_chunksize_bytes: int = Field(
        8 * 1024**2, ge=5 * 1024**2, description="Size of a part of a tar's multipart upload."
    )

    @field_validator("slots")
    @classmethod
    def _covers_the_processes(cls, slots: int | None, info: ValidationInfo) -> int | None:
        processes = info.data.get("processes", 0)
        if slots is not None and slots < processes:
            raise ValueError(
                f"STT_SLOTS is {slots} and STT_PROCESSES {processes}: some processes would never have a job; "
                "set STT_SLOTS to at least STT_PROCESSES"
            )
        return slots

    @property
    def job_slots(self) -> int:
        """Jobs held at once."""
        return self.slots or 2 * self.processes + self.downloads


class _Times(_Group):
    """Times and retries."""

    wait_time_s: int = Field(20, ge=0, le=20, description="Long poll of the queue.")
    visibility_timeout_s: int = Field(
        300, ge=3, le=43_200, description="Visibility timeout of a message; heartbeats set it again."
    )
    job_timeout_s: float = Field(6 * 3600.0, gt=0, le=42_000, description="Longest time of a job (SQS allows 12 h).")
    drain_timeout_s: float = Field(100.0, ge=0, description="From SIGTERM to the release of unfinished jobs.")
    retry_timeout_s: float = Field(60.0, ge=0, description="How long a failing call to a service is retried.")
    retry_max_wait_s: float = Field(20.0, gt=0, description="Longest wait between two tries.")

    @field_validator("visibility_timeout_s")
    @classmethod
    def _outlasts_a_poll(cls, timeout_s: int, info: ValidationInfo) -> int:
        wait_time_s = info.data.get("wait_time_s", 0)
        if timeout_s <= wait_time_s:
            raise ValueError(
                f"STT_VISIBILITY_TIMEOUT_S is {timeout_s} and STT_WAIT_TIME_S {wait_time_s}: a message could be lost "
                "before its first heartbeat; set STT_VISIBILITY_TIMEOUT_S higher than STT_WAIT_TIME_S"
            )
        return timeout_s


class _Instance(_Group):
    """EC2, Auto Scaling, CloudWatch and systemd."""

    aws_ec2_metadata_disabled: bool = Field(
        False,
        validation_alias="AWS_EC2_METADATA_DISABLED",
        description="Run as outside of EC2: no Spot notices, no Auto Scaling, no credentials of an instance role.",
    )
    aws_ec2_metadata_service_endpoint: str = Field(
        "http://169.254.169.254",
        validation_alias="AWS_EC2_METADATA_SERVICE_ENDPOINT",
        description="The instance metadata service (IMDSv2), which announces interruptions.",
    )
    environment: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.-]{0,64}$",
        description="Name of the deployment, such as production. If set, log lines are also CloudWatch metrics.",
    )
    autoscaling_group: str = Field("", description="Auto Scaling group of this instance, if it is in one.")
    launch_hook: str = Field(
        "", description="The group's launch lifecycle hook: CONTINUE after preflight, ABANDON if preflight fails."
    )
    termination_hook: str = Field("", description="The group's termination lifecycle hook: CONTINUE after the drain.")
    idle_timeout_s: float = Field(
        0.0, ge=0, description="Time without a job after which an instance of a group ends itself; 0: never."
    )
    notify_socket: str = Field(
        "", validation_alias="NOTIFY_SOCKET", description="Set by systemd for a unit of Type=notify."
    )
    watchdog_usec: int = Field(
        0, ge=0, validation_alias="WATCHDOG_USEC", description="Set by systemd for a unit with WatchdogSec=."
    )

    @field_validator("launch_hook", "termination_hook")
    @classmethod
    def _has_a_group(cls, hook: str, info: ValidationInfo) -> str:
        if hook and not info.data.get("autoscaling_group"):
            name = variable((info.field_name or "",))
            raise ValueError(f"{name} is {hook!r} without STT_AUTOSCALING_GROUP: set both or neither")
        return hook


class Settings(_Source, _Output, _Segments, _Resources, _Times, _Instance, BaseSettings):
    """One frozen object for a whole process. Secrets never show in its repr.

    A rule about two settings is a validator of the later one, so that all broken rules are reported together.
    """

    model_config = SettingsConfigDict(
        env_prefix="STT_",
        env_nested_delimiter="_",
        env_nested_max_split=1,
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        str_strip_whitespace=True,  # a key from a file ends with a newline
        validate_default=False,
    )


def load(env_file: Path | None = None, **options: Any) -> Settings:
    """Read the settings. Options that are not None take precedence over the environment, and that over `env_file`.

    Raises:
        SettingsError: values are malformed or contradict each other; one line for each, which names the variables.
    """
    if env_file is not None:
        if not env_file.is_file():
            raise SettingsError(f"the env file {env_file} does not exist")
        load_dotenv(env_file, override=False)
    try:
        # systemd's LoadCredential= puts a file for each secret into this folder, so that no environment holds secrets.
        return Settings(_secrets_dir=os.environ.get("CREDENTIALS_DIRECTORY"), **_given(options))
    except ValidationError as error:
        raise SettingsError("\n".join(_sentence(e) for e in error.errors())) from error


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _given(value) if isinstance(value, Mapping) else value
        for name, value in options.items()
        if value is not None
    }


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable that sets a setting."""

    name: str
    type: str
    default: str
    """Empty if it depends on the machine: then the description names it."""
    description: str


def variables() -> dict[str, list[Variable]]:
    """Return the variables of all settings, by the heading of their group."""
    return {
        str(group.__doc__).removesuffix("."): list(_variables(group.model_json_schema()))
        for group in Settings.__bases__
        if issubclass(group, _Group)
    }


def variable(path: tuple[int | str, ...]) -> str:
    """Return the environment variable of a field, given its path."""
    name = "_".join(str(part) for part in path).upper()
    return name if name.startswith(("AWS_", "NOTIFY_SOCKET", "WATCHDOG_USEC")) else f"STT_{name}"


def _variables(schema: dict[str, Any], *path: str) -> Iterator[Variable]:
    for name, facts in schema["properties"].items():
        if "$ref" in facts:
            yield from _variables(schema["$defs"][facts["$ref"].rsplit("/", 1)[1]], *path, name)
        else:
            default = facts.get("default")
            yield Variable(
                variable((*path, name)),
                "|".join(facts.get("enum", ())) or _type(facts),
                "" if default in (None, []) else str(default).lower() if isinstance(default, bool) else str(default),
                facts["description"].replace("\n", " "),
            )


def _type(facts: dict[str, Any]) -> str:
    kind = str(facts.get("format") or facts.get("type") or facts["anyOf"][0]["type"])
    return _TYPES.get(kind, kind)


def _sentence(error: Any) -> str:
    path = error["loc"]
    if error["type"] != "value_error":
        return f"{variable(path)}: {error['msg']} (it is {error['input']!r})"
    sentence = str(error["msg"]).removeprefix("Value error, ")  # it names the fields of a group, or variables
    return _VAD_FIELD.sub(lambda field: variable((*path, field[0])), sentence) if path == ("vad",) else sentence
