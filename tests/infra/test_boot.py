"""The boot of an instance: from the template's user data to a running worker, and every way in which it can fail."""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aioboto3
import orjson
import pytest
import pytest_asyncio

from stt_async.fleet.artifact import Artifact
from stt_async.local.loopback import client_options, s3_client
from stt_async.local.servers import LocalServers, local_servers, open_services
from tests.support.fakes.autoscaling import FakeAutoScaling
from tests.support.fakes.autoscaling import serve as serve_autoscaling
from tests.support.fakes.imds import INSTANCE_ID, FakeImds
from tests.support.fakes.moto import moto_server
from tests.support.faults.proxy import OpenProxy
from tests.support.machines import nspawn
from tests.support.machines.instance import (
    JOURNAL,
    LOG_GROUP,
    MINIO_KEY,
    RELEASES,
    WORKER,
    Instance,
    furnish,
    user_data,
)
from tests.support.machines.nspawn import IMDS_ADDRESS, Done, Machine, booted
from tests.support.site import Counts, Site
from tests.support.waiting import wait_until

WHY_NOT = nspawn.why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(WHY_NOT), reason=f"no machine to boot: {WHY_NOT}"),
    pytest.mark.timeout(900),
]

MISMATCHED, MISSING = "0" * 64, "1" * 64
COMPLETE, TERMINATE = "CompleteLifecycleAction", "TerminateInstanceInAutoScalingGroup"

Furnished = Callable[..., Path]
StartInstance = Callable[..., Awaitable[Instance]]


@pytest.fixture(scope="module")
def debian() -> Path:
    try:
        return nspawn.debian()
    except nspawn.NoDebianError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def _network(debian: Path, artifact: Artifact) -> Iterator[None]:
    """A network with loopback alone, for these tests, their servers and their machines."""
    assert debian.is_dir(), "made before, as it is downloaded"
    assert artifact.file.is_file(), "made before, as its wheels are downloaded"
    with nspawn.loopback_network():
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def servers(_network: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalServers]:
    """Servers in the network of the machines, in place of those of the session."""
    async with local_servers(tmp_path_factory.mktemp("servers"), readable=["source-*"]) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def parameters_url(_network: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The Parameter Store, in the network of the machines."""
    async with moto_server(tmp_path_factory.mktemp("moto") / "moto.log") as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def _releases(servers: LocalServers, parameters_url: str, artifact: Artifact) -> None:
    """A bucket with this release and one whose bytes do not match its name; MinIO's key in the Parameter Store."""
    keys = servers.objects.owner
    async with s3_client(servers.objects.url, keys) as s3:
        await s3.create_bucket(Bucket=RELEASES)
        with artifact.file.open("rb") as release:
            await s3.put_object(Bucket=RELEASES, Key=f"releases/{artifact.sha256}.tar.gz", Body=release)
        await s3.put_object(Bucket=RELEASES, Key=f"releases/{MISMATCHED}.tar.gz", Body=b"other bytes")
    ssm_client = aioboto3.Session().client("ssm", **client_options(parameters_url, keys))
    reader = servers.objects.reader
    async with ssm_client as ssm:
        for name, value in (("access-key", reader.access_key), ("secret-key", reader.secret_key)):
            await ssm.put_parameter(Name=f"{MINIO_KEY}/{name}", Value=value, Type="SecureString")


@asynccontextmanager
async def _metadata_service(servers: LocalServers) -> AsyncIterator[None]:
    fake = FakeImds(IMDS_ADDRESS, 80)
    fake.has_role(servers.objects.owner)
    await fake.open()
    yield
    await fake.close()


@pytest_asyncio.fixture
async def _metadata(servers: LocalServers) -> AsyncIterator[None]:
    async with _metadata_service(servers):
        yield


@pytest.fixture
def furnished(
    site: Site, autoscaling: FakeAutoScaling, parameters_url: str, _metadata: None, tmp_path: Path
) -> Furnished:
    """A function that returns a disk with the addresses of this test's services: `furnished(STT_…="…")`."""

    def disk(**settings: str) -> Path:
        folder = tmp_path / "disk"
        furnish(folder, site.services, autoscaling_port=autoscaling.port, parameters_url=parameters_url, **settings)
        return folder

    return disk


@pytest_asyncio.fixture
async def plain_machine(furnished: Furnished, _releases: None, debian: Path, tmp_path: Path) -> AsyncIterator[Machine]:
    """A machine booted from the plain image."""
    async with booted([debian], furnished(), tmp_path / "log") as machine:
        yield machine


@dataclass(frozen=True)
class FirstBoot:
    """The result of the user data, and the disk afterwards."""

    done: Done
    disk: Path
    group: FakeAutoScaling


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def first_boot(
    servers: LocalServers,
    parameters_url: str,
    _releases: None,
    debian: Path,
    artifact: Artifact,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[FirstBoot]:
    """Run the user data on a plain machine, once. Other machines boot from its disk."""
    folder = tmp_path_factory.mktemp("first-boot")
    services = await open_services(
        servers, source_bucket="source-first", output_bucket="first", split_queue="first", visibility_timeout_s=30
    )
    async with serve_autoscaling() as group, _metadata_service(servers):
        furnish(folder / "disk", services, autoscaling_port=group.port, parameters_url=parameters_url)
        async with booted([debian], folder / "disk", folder / "log") as machine:
            done = await _run_user_data(machine, user_data(services, artifact.sha256))
            if done.returncode == 0:
                await machine.run("systemctl", "poweroff")
            await machine.wait_until_off()
    yield FirstBoot(done, folder / "disk", group)
    shutil.rmtree(folder)  # a gigabyte, which pytest would keep for its last three runs


@pytest_asyncio.fixture
async def start_instance(
    furnished: Furnished, first_boot: FirstBoot, debian: Path, tmp_path: Path
) -> AsyncIterator[StartInstance]:
    """A function that boots a machine with the release installed: `await start_instance(STT_…="…")`."""
    assert first_boot.done.returncode == 0, first_boot.done.output
    async with AsyncExitStack() as stack:

        async def start(**settings: str) -> Instance:
            machine = booted([first_boot.disk, debian], furnished(**settings), tmp_path / "log")
            return Instance(await stack.enter_async_context(machine))

        yield start


def test_user_data_starts_a_worker_that_completes_the_launch(first_boot: FirstBoot) -> None:
    assert first_boot.done.returncode == 0, first_boot.done.output
    assert "boot: worker ready" in first_boot.done.output
    [completed] = first_boot.group.of(COMPLETE)
    assert (completed["InstanceId"], completed["LifecycleHookName"]) == (INSTANCE_ID, "join")
    assert completed["LifecycleActionResult"] == "CONTINUE"


def test_boot_installs_three_packages_of_the_distribution(first_boot: FirstBoot) -> None:
    [arguments] = (first_boot.disk / "var/log/dnf").read_text().splitlines()
    assert arguments == "--assumeyes --quiet install python3.11 amazon-cloudwatch-agent logrotate"


def test_cloudwatch_agent_ships_the_log_of_the_worker(first_boot: FirstBoot) -> None:
    configured = orjson.loads((first_boot.disk / "etc/stt-async/cloudwatch-agent.json").read_bytes())
    [shipped] = configured["logs"]["logs_collected"]["files"]["collect_list"]
    assert shipped["log_group_name"] == LOG_GROUP
    lines = (first_boot.disk / shipped["file_path"].lstrip("/")).read_bytes().splitlines()
    events = [orjson.loads(line)["event"] for line in lines if line.startswith(b"{")]
    assert "worker_started" in events
    [arguments] = (first_boot.disk / "var/log/amazon-cloudwatch-agent-ctl").read_text().splitlines()
    assert arguments == "-a fetch-config -m ec2 -s -c file:/etc/stt-async/cloudwatch-agent.json"


@pytest.mark.parametrize(("sha256", "error"), [(MISMATCHED, "FAILED"), (MISSING, "404")], ids=["mismatched", "missing"])
async def test_mismatched_or_missing_release_is_not_run_and_ends_the_instance(
    site: Site, plain_machine: Machine, tmp_path: Path, sha256: str, error: str
) -> None:
    done = await _run_user_data(plain_machine, user_data(site.services, sha256))
    assert done.returncode != 0
    assert error in done.output
    await plain_machine.wait_until_off()
    assert not (tmp_path / "disk/opt/stt-async").exists()
    assert not (tmp_path / "disk/var/log/dnf").exists()


async def test_failed_boot_abandons_the_launch_and_ends_the_instance(
    site: Site, plain_machine: Machine, artifact: Artifact, autoscaling: FakeAutoScaling
) -> None:
    (plain_machine.root / "usr/local/bin/dnf").write_text("#!/bin/sh\necho no such package >&2; exit 1\n")
    done = await _run_user_data(plain_machine, user_data(site.services, artifact.sha256))
    assert done.returncode != 0
    assert "no such package" in done.output
    await plain_machine.wait_until_off()
    [abandoned] = autoscaling.of(COMPLETE)
    assert (abandoned["InstanceId"], abandoned["LifecycleActionResult"]) == (INSTANCE_ID, "ABANDON")


async def test_boot_script_can_run_again(start_instance: StartInstance) -> None:
    instance = await start_instance()
    await instance.wait_until_active()
    made_from = instance.machine.root / "opt/stt-async/venv/.made-from"
    before = made_from.stat().st_mtime_ns
    run = f"cd /var/tmp/tmp.* && MINIO_SECRET_PARAMETER={MINIO_KEY} LOG_GROUP={LOG_GROUP} ./boot.sh"
    done = await instance.machine.run("sh", "-c", run, timeout_s=300.0)
    assert done.returncode == 0, done.output
    assert made_from.stat().st_mtime_ns == before
    await instance.wait_for("worker_started", count=2)


async def test_job_runs_at_full_speed_without_a_secret_in_any_environment(
    site: Site, start_instance: StartInstance, speech: Path
) -> None:
    instance = await start_instance()
    await site.put_recordings({"a.wav": speech})
    await site.send(site.job("a.wav"))
    await instance.wait_for("job_succeeded")
    assert list(await site.manifests()) == ["a.wav"]
    await wait_until(site.is_drained, what="the message to be deleted")
    log = (instance.machine.root / JOURNAL).read_text()
    assert "Error in cpuinfo" not in log, "torch cannot read the features of the CPU"
    assert "NNPACK" not in log, "torch cannot read the features of the CPU"
    secret = site.services.servers.objects.reader.secret_key
    environments = await instance.machine.run("sh", "-c", "cat /proc/[0-9]*/environ")
    assert "STT_SCRATCH_DIR" in environments.output
    assert secret not in environments.output
    modes = await instance.machine.run("stat", "--format=%a %U", "/run/stt-async", "/run/stt-async/secret-key")
    assert modes.output.split() == ["700", "root", "600", "root"]


async def test_stop_drains_releases_the_job_and_empties_scratch(
    site: Site, start_instance: StartInstance, open_proxy: OpenProxy, speech: Path
) -> None:
    source = await open_proxy(site.services.servers.objects.url)
    instance = await start_instance(STT_MINIO_ENDPOINT=source.endpoint, STT_DRAIN_TIMEOUT_S="2")
    await instance.wait_for("worker_started")
    source.hold("down")
    await site.put_recordings({"a.wav": speech})
    await site.send(site.job("a.wav"))
    await source.holding.wait()
    await instance.machine.run("systemctl", "stop", WORKER)
    assert await instance.state() == ("inactive", "success", "0")
    assert await site.counts() == Counts(visible=1, in_flight=0)
    left = await instance.machine.run("find", "/var/lib/private/stt-async", "-name", "job-*")
    assert (left.returncode, left.output) == (0, "")


async def test_killed_worker_is_restarted_with_a_fresh_key(
    site: Site, start_instance: StartInstance, speech: Path
) -> None:
    instance = await start_instance()
    await instance.wait_until_active()
    await instance.signal("KILL")
    await instance.wait_until_active(restarts=1)
    fetched = await instance.machine.run("journalctl", "--boot", "--unit=stt-async-secrets.service")
    assert fetched.output.count("Finished stt-async-secrets") == 2
    await site.put_recordings({"a.wav": speech})
    await site.send(site.job("a.wav"))
    await instance.wait_for("job_succeeded")


async def test_frozen_worker_is_restarted(site: Site, start_instance: StartInstance, speech: Path) -> None:
    instance = await start_instance()
    await instance.wait_until_active()
    await instance.signal("STOP")
    await instance.wait_until_active(restarts=1)
    journal = await instance.machine.run("journalctl", "--boot", f"--unit={WORKER}")
    assert "Watchdog timeout" in journal.output
    await site.put_recordings({"a.wav": speech})
    await site.send(site.job("a.wav"))
    await instance.wait_for("job_succeeded")


async def test_idle_worker_ends_its_instance_and_is_not_restarted(
    start_instance: StartInstance, autoscaling: FakeAutoScaling
) -> None:
    instance = await start_instance(STT_IDLE_TIMEOUT_S="2")
    await instance.wait_for("idle_terminated")

    async def stopped() -> bool:
        return await instance.state() == ("inactive", "success", "0")

    await wait_until(stopped, what="the worker to stop", timeout_s=60.0)
    assert autoscaling.of(TERMINATE) == [{"InstanceId": INSTANCE_ID, "ShouldDecrementDesiredCapacity": "true"}]
    assert [call["LifecycleHookName"] for call in autoscaling.of(COMPLETE)] == ["join", "leave"]


async def test_wrong_settings_end_the_instance_at_once(
    start_instance: StartInstance, autoscaling: FakeAutoScaling, tmp_path: Path
) -> None:
    instance = await start_instance(STT_FORMAT="mp3")
    await instance.machine.wait_until_off()
    assert [call["LifecycleActionResult"] for call in autoscaling.of(COMPLETE)] == ["ABANDON"]
    assert (tmp_path / "disk" / JOURNAL).read_text().count("STT_FORMAT") == 1


async def test_worker_that_fails_preflight_five_times_ends_the_instance(
    start_instance: StartInstance, autoscaling: FakeAutoScaling, tmp_path: Path
) -> None:
    instance = await start_instance(STT_OUTPUT_BUCKET="never-made")
    await instance.machine.wait_until_off(timeout_s=300.0)
    assert {call["LifecycleActionResult"] for call in autoscaling.of(COMPLETE)} == {"ABANDON"}
    assert (tmp_path / "disk" / JOURNAL).read_text().count("stt-async: ") == 5


async def _run_user_data(machine: Machine, script: str) -> Done:
    """Run user data as cloud-init does: as root, from a file, after the boot."""
    (machine.root / "var/lib/user-data").write_text(script)
    return await machine.run("bash", "/var/lib/user-data", timeout_s=600.0)
