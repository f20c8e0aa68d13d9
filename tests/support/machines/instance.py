"""An instance of the fleet in a container: the files that its boot reads, and its worker's unit and log."""

from pathlib import Path
from typing import Any

import orjson

from stt_async.local.loopback import HOST
from stt_async.local.servers import LocalServices
from tests.support.machines.nspawn import Machine
from tests.support.stack.cloudformation import load, resolve
from tests.support.waiting import wait_until

RELEASES, LOG_GROUP, MINIO_KEY = "releases", "/stt-async/prod/workers", "/stt-async/prod/minio"
WORKER = "stt-async.service"
JOURNAL = "var/log/stt-async/journal.log"

_SLOW_S = 180.0
"""For steps that take seconds on an idle machine."""

_AWS = """#!/bin/sh
# The real CLI, with the addresses of the services.
. /etc/endpoints
case $1 in
  s3) url=$S3 ;;
  ssm) url=$SSM ;;
  autoscaling) url=$AUTOSCALING ;;
esac
exec /usr/bin/aws --endpoint-url "$url" "$@"
"""
_RECORD_CALL = """#!/bin/sh
# Replaces a program that only Amazon Linux has: records its arguments.
echo "$@" >>/var/log/$(basename "$0")
"""
_SHORT_WAITS = """[Unit]
StartLimitIntervalSec=1h
[Service]
EnvironmentFile=/etc/stt-async/loopback.env
RestartSec=100ms
WatchdogSec=4
"""
_NOT_ON_AN_INSTANCE = {
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_EC2_METADATA_DISABLED",
    "STT_MINIO_ACCESS_KEY",
    "STT_MINIO_SECRET_KEY",
}


def user_data(services: LocalServices, sha256: str) -> str:
    """Return the template's user data for services on loopback."""
    given = {
        "ArtifactBucket": RELEASES,
        "ArtifactSha256": sha256,
        "MinioEndpoint": services.servers.objects.endpoint,
        "SourceBucket": services.source_bucket,
        "OutputBucket": services.output_bucket,
        "SplitQueueName": services.queues.name,
        "MinioSecretParameter": MINIO_KEY,
    }
    text: str = resolve(load(), given).properties("SplitTemplate")["LaunchTemplateData"]["UserData"]
    return text.replace("<Logs>", LOG_GROUP)


def furnish(
    disk: Path, services: LocalServices, *, autoscaling_port: int, parameters_url: str, **settings: str
) -> None:
    """Write the addresses of services to a disk, and settings that take precedence over those of the user data.

    Credentials come as on EC2: AWS's from the instance's role, MinIO's from the Parameter Store.
    """
    servers = services.servers
    autoscaling = f"http://{HOST}:{autoscaling_port}"
    environment = services.environment() | {
        "AWS_ENDPOINT_URL_AUTO_SCALING": autoscaling,
        "STT_VISIBILITY_TIMEOUT_S": "30",
        "STT_WAIT_TIME_S": "1",
        "STT_PROCESSES": "1",
    }
    lines = [f"{name}={value}\n" for name, value in (environment | settings).items() if name not in _NOT_ON_AN_INSTANCE]
    files = {
        "etc/endpoints": f"S3={servers.objects.url} SSM={parameters_url} AUTOSCALING={autoscaling}\n",
        "etc/stt-async/loopback.env": "".join(lines),
        f"etc/systemd/system/{WORKER}.d/loopback.conf": _SHORT_WAITS,
        "usr/local/bin/aws": _AWS,
        "usr/local/bin/dnf": _RECORD_CALL,
        "opt/aws/amazon-cloudwatch-agent/bin/amazon-cloudwatch-agent-ctl": _RECORD_CALL,
        JOURNAL: "",
    }
    for name, content in files.items():
        file = disk / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(0o755 if content.startswith("#!") else 0o644)


class Instance:
    """A machine with the worker's unit."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    async def events(self, name: str) -> list[Any]:
        """Return the worker's log lines of one event from the file that the agent ships."""
        lines = (self.machine.root / JOURNAL).read_bytes().splitlines()
        found = [orjson.loads(line) for line in lines if line.startswith(b"{")]
        return [line for line in found if line["event"] == name]

    async def wait_for(self, event: str, *, count: int = 1) -> list[Any]:
        async def logged() -> list[Any] | None:
            events = await self.events(event)
            return events if len(events) >= count else None

        return await wait_until(logged, what=f"{count} x {event!r} from the worker", timeout_s=_SLOW_S) or []

    async def state(self) -> tuple[str, ...]:
        """Return state, result of the last run, and number of restarts of the worker's unit."""
        return tuple(await self.machine.unit(WORKER, "ActiveState", "Result", "NRestarts"))

    async def wait_until_active(self, *, restarts: int = 0) -> None:
        async def active() -> bool:
            state, _, restarted = await self.state()
            return state == "active" and int(restarted) == restarts

        await wait_until(active, what=f"{WORKER} to be active after {restarts} restarts", timeout_s=_SLOW_S)

    async def signal(self, signum: str) -> None:
        """Send a signal to the worker, not to its pool."""
        done = await self.machine.run("systemctl", "kill", f"--signal={signum}", "--kill-who=main", WORKER)
        assert done.returncode == 0, done.output
