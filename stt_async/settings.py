"""Every setting, read once: environment variables `STT_*`, or an env file. The only module that reads them."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import psutil
from dotenv import load_dotenv
from pydantic import AliasChoices, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from stt_async.errors import SettingsError
from stt_async.params import Format, Layout, SplitLimits, SplitParams, VadParams


def usable_vcpus() -> int:
    """Return how many vCPUs this process may run on (affinity, not what the machine has)."""
    return len(psutil.Process().cpu_affinity())


class Settings(BaseSettings):
    """One frozen object for a whole process. Secrets never show in its repr."""

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

    minio_endpoint: str = Field(
        "s3.monlam.ai", description="Host, or host:port, of the MinIO server that holds the recordings."
    )
    minio_access_key: SecretStr = Field(SecretStr(""), description="Its access key (read only is enough).")
    minio_secret_key: SecretStr = Field(SecretStr(""), description="Its secret key.")
    minio_secure: bool = Field(True, description="Speak TLS to it.")
    minio_region: str = Field("us-east-1", description="Its region, as its signatures want it.")
    source_bucket: str = Field("audio", description="Bucket of the recordings.")
    allowed_source_buckets: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Buckets that a job may name, comma separated; the source bucket always may."
    )

    aws_region: str = Field(
        "us-east-1",
        validation_alias=AliasChoices("AWS_REGION", "AWS_DEFAULT_REGION"),
        description="Region of the queues and of the output bucket.",
    )
    output_bucket: str = Field("monlamai-stt-raw-audio", description="Bucket of the segments.")
    split_queue: str = Field("stt-split-jobs", description="Queue of the split jobs: a name or a URL.")

    format: Format = Field("flac", description="Format of the segments: flac or wav.")
    layout: Layout = Field("objects", description="One object a segment (objects), or one tar a recording (tar).")
    vad: VadParams = Field(VadParams(), description="Where to cut: STT_VAD_THRESHOLD and so on.")
    limits: SplitLimits = Field(SplitLimits(), description="Bounds on a recording: STT_LIMITS_MAX_DECODED_S and so on.")

    scratch_dir: Path = Field(
        Path(f"/var/tmp/stt-async-{os.getuid()}"),  # noqa: S108 - on disk where /tmp is memory; made with mode 700
        description="Folder for recordings and segments on their way.",
    )
    scratch_max_bytes: int | None = Field(
        None, gt=0, description="What recordings on their way may take there; 80% of what is free, if not given."
    )
    processes: int = Field(default_factory=usable_vcpus, ge=1, description="Pool processes; the usable vCPUs.")
    child_max_bytes: int = Field(
        2 * 1024**3, ge=512 * 1024**2, description="Private memory that a pool process may take."
    )
    downloads: int = Field(12, ge=1, description="Downloads at once: one connection to MinIO is slow.")
    uploads: int = Field(32, ge=1, description="Uploads at once, over all jobs.")
    slots: int | None = Field(
        None, ge=1, description="Jobs held at once; twice the processes and the downloads together, if not given."
    )
    multipart_chunksize_bytes: int = Field(
        8 * 1024**2, ge=5 * 1024**2, description="Size of a part of a tar's multipart upload."
    )

    wait_time_s: int = Field(20, ge=0, le=20, description="Long poll of the queue.")
    visibility_timeout_s: int = Field(300, ge=3, le=43_200, description="How long a message stays ours unheard.")
    job_timeout_s: float = Field(6 * 3600.0, gt=0, le=42_000, description="A job may take this long (SQS: 12 h).")
    drain_timeout_s: float = Field(100.0, ge=0, description="From SIGTERM to the release of what is unfinished.")
    retry_timeout_s: float = Field(60.0, ge=0, description="How long one call to a service is tried again.")
    retry_max_wait_s: float = Field(20.0, gt=0, description="Longest wait between two tries.")

    aws_ec2_metadata_disabled: bool = Field(
        False,
        validation_alias="AWS_EC2_METADATA_DISABLED",
        description="Behave as off EC2: no Spot notices, no Auto Scaling, no credentials of an instance role.",
    )
    aws_ec2_metadata_service_endpoint: str = Field(
        "http://169.254.169.254",
        validation_alias="AWS_EC2_METADATA_SERVICE_ENDPOINT",
        description="The instance metadata service (IMDSv2), asked for notices of interruption.",
    )
    environment: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.-]{0,64}$",
        description="Name of the deployment, as `production`: its log lines are CloudWatch metrics, too.",
    )
    autoscaling_group: str = Field("", description="Auto Scaling group of this instance; none, if not given.")
    launch_hook: str = Field(
        "", description="Its launch lifecycle hook: CONTINUE once preflight has passed, ABANDON when it fails."
    )
    termination_hook: str = Field("", description="Its termination lifecycle hook: CONTINUE when all is given back.")
    idle_timeout_s: float = Field(
        0.0, ge=0, description="End the instance, in a group, when no job came for so long; 0: never."
    )
    notify_socket: str = Field(
        "", validation_alias="NOTIFY_SOCKET", description="systemd's, set by it for a unit of `Type=notify`."
    )
    watchdog_usec: int = Field(
        0, ge=0, validation_alias="WATCHDOG_USEC", description="systemd's, set by it for a unit with `WatchdogSec=`."
    )

    @model_validator(mode="before")
    @classmethod
    def _split_buckets(cls, values: Any) -> Any:
        buckets = values.get("allowed_source_buckets")
        if isinstance(buckets, str):
            values["allowed_source_buckets"] = tuple(name.strip() for name in buckets.split(",") if name.strip())
        return values

    @model_validator(mode="after")
    def _agree(self) -> "Settings":
        if "@" in self.minio_endpoint:
            raise ValueError(
                "STT_MINIO_ENDPOINT holds a user and a password: give host or host:port alone, "
                "and the keys with STT_MINIO_ACCESS_KEY and STT_MINIO_SECRET_KEY"
            )
        if "://" in self.minio_endpoint:
            raise ValueError(
                f"STT_MINIO_ENDPOINT is {self.minio_endpoint!r}: give host or host:port alone, "
                "and say http or https with STT_MINIO_SECURE"
            )
        if self.job_slots < self.processes:
            raise ValueError(
                f"STT_SLOTS is {self.slots}, fewer than the {self.processes} pool processes (STT_PROCESSES): "
                "some would never have work"
            )
        if (self.launch_hook or self.termination_hook) and not self.autoscaling_group:
            raise ValueError(
                "STT_LAUNCH_HOOK or STT_TERMINATION_HOOK is given without STT_AUTOSCALING_GROUP: name the group too"
            )
        if self.visibility_timeout_s <= self.wait_time_s:
            raise ValueError(
                f"STT_VISIBILITY_TIMEOUT_S is {self.visibility_timeout_s}, no longer than a poll, STT_WAIT_TIME_S, "
                f"{self.wait_time_s}: a message could be lost before its first heartbeat"
            )
        return self

    @property
    def job_slots(self) -> int:
        """Jobs held at once."""
        return self.slots or 2 * self.processes + self.downloads

    @property
    def source_buckets(self) -> frozenset[str]:
        """Buckets that a job may name as its source."""
        return frozenset({self.source_bucket, *self.allowed_source_buckets})

    @property
    def split_params(self) -> SplitParams:
        """What decides the segments, before a job says otherwise."""
        return SplitParams(**asdict(self.vad), format=self.format, layout=self.layout)


def load(env_file: Path | None = None, **overrides: Any) -> Settings:
    """Read the settings: `overrides` that are not None win over the environment, and that over `env_file`.

    Raises:
        SettingsError: a value is missing, malformed or contradicts another; it names each variable.
    """
    if env_file is not None:
        if not env_file.is_file():
            raise SettingsError(f"the env file {env_file} is not there")
        load_dotenv(env_file, override=False)
    try:
        # Where systemd puts what LoadCredential= names: a file for each setting, so that no environment has secrets.
        credentials = os.environ.get("CREDENTIALS_DIRECTORY")
        return Settings(_secrets_dir=credentials, **{n: value for n, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("\n".join(_sentence(e) for e in error.errors())) from error


def variable(path: tuple[int | str, ...]) -> str:
    """Return the environment variable of a field, given its path."""
    name = "_".join(str(part) for part in path).upper()
    return name if name.startswith(("AWS_", "NOTIFY_SOCKET", "WATCHDOG_USEC")) else f"STT_{name}"


def _sentence(error: Any) -> str:
    if error["type"] == "value_error":  # of ours: a sentence that names what it is about
        group = f"{variable(error['loc'])}_*: " if error["loc"] else ""
        return group + str(error["msg"]).removeprefix("Value error, ")
    return f"{variable(error['loc'])}: {error['msg']} (it is {error['input']!r})"
