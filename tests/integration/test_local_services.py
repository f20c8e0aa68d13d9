"""The servers on loopback: what the tests and the demo need of them, and that they leave no process behind."""

import asyncio
import signal
import sys
from collections.abc import Collection, Coroutine, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import psutil
import pytest
from botocore.exceptions import ClientError

from stt_async.errors import DependencyError
from stt_async.local import loopback, objects
from stt_async.local import servers as servers_module
from stt_async.local.loopback import free_ports, s3_client
from stt_async.local.process import ChildProcess, plain_environment
from stt_async.local.queues import MAX_RECEIVES, QueuePair
from stt_async.local.servers import LocalServers, LocalServices, local_services
from tests.support.recordings import ROOT
from tests.support.site import Counts, Site
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

_PART_BYTES = 5 * 1024**2

# Starts the services, prints the ids of their processes, and runs until a signal ends it.
_HOLDER = """
import asyncio, json, sys
from pathlib import Path
import psutil
from stt_async.local.servers import local_services

async def hold():
    async with local_services(Path(sys.argv[1])):
        print(json.dumps([each.pid for each in psutil.Process().children(recursive=True)]), flush=True)
        await asyncio.Event().wait()

asyncio.run(hold())
"""


async def _refusal(call: Coroutine[Any, Any, Any]) -> tuple[int, str]:
    with pytest.raises(ClientError) as refused:
        await call
    response = refused.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


async def test_reader_reads_the_source_and_writes_nothing(site: Site) -> None:
    key, source = "amdo/ལྷ་ས 1+2%.mp3", site.services.source_bucket
    await site.put_recordings({key: b"sound"})
    server = site.services.servers.objects
    denied = (403, "AccessDenied")
    reader: S3Client
    async with s3_client(server.url, server.reader) as reader:
        listed = await reader.list_objects_v2(Bucket=source)
        assert [found["Key"] for found in listed["Contents"]] == [key]
        found = await reader.get_object(Bucket=source, Key=key)
        assert await found["Body"].read() == b"sound"
        for bucket in (source, site.services.output_bucket):
            assert await _refusal(reader.put_object(Bucket=bucket, Key="b.mp3", Body=b"x")) == denied
            assert await _refusal(reader.delete_object(Bucket=bucket, Key=key)) == denied
            assert await _refusal(reader.create_multipart_upload(Bucket=bucket, Key="b.mp3")) == denied
            assert await _refusal(reader.delete_bucket(Bucket=bucket)) == denied
        assert await _refusal(reader.create_bucket(Bucket="another")) == denied
        assert await _refusal(reader.list_objects_v2(Bucket=site.services.output_bucket)) == denied
    assert await site.objects(bucket=source) == {key: 5}


async def test_s3_server_refuses_unknown_keys_and_buckets(servers: LocalServers) -> None:
    client: S3Client
    async with s3_client(servers.objects.url, loopback.Keys.random()) as client:
        assert (await _refusal(client.list_buckets()))[0] == 403
    async with s3_client(servers.objects.url, servers.objects.owner) as client:
        put = client.put_object(Bucket="never-made", Key="a", Body=b"x")
        assert await _refusal(put) == (404, "NoSuchBucket")


async def test_race_of_conditional_puts_has_one_winner(site: Site) -> None:
    outcomes: list[str] = []

    async def commit(body: bytes) -> None:
        try:
            await site.s3.put_object(
                Bucket=site.services.output_bucket, Key="a.mp3/metadata.json", Body=body, IfNoneMatch="*"
            )
        except ClientError as lost:
            outcomes.append(lost.response["Error"]["Code"])
        else:
            outcomes.append(body.decode())

    # Five only: at this server each loser waits for the lock in steps of a second.
    async with asyncio.TaskGroup() as racers:
        for number in range(5):
            racers.create_task(commit(f"racer {number}".encode()))
    winners = [outcome for outcome in outcomes if outcome.startswith("racer")]
    assert len(winners) == 1
    assert set(outcomes) - set(winners) <= {"PreconditionFailed", "ConditionalRequestConflict"}
    assert await site.read("a.mp3/metadata.json") == winners[0].encode()


async def test_aborted_multipart_upload_leaves_nothing(site: Site) -> None:
    upload = {"Bucket": site.services.output_bucket, "Key": "a.mp3/segments.tar"}
    created = await site.s3.create_multipart_upload(**upload)  # type: ignore[arg-type]
    part: dict[str, Any] = upload | {"UploadId": created["UploadId"]}
    await site.s3.upload_part(**part, PartNumber=1, Body=bytes(_PART_BYTES))
    assert await site.open_uploads() == ["a.mp3/segments.tar"]
    await site.s3.abort_multipart_upload(**part)
    assert await site.open_uploads() == []
    assert await site.objects() == {}


async def test_message_received_too_often_becomes_a_dead_letter(site: Site) -> None:
    await site.send({"job_id": "one"})
    for _ in range(MAX_RECEIVES):
        received = await site.sqs.receive_message(QueueUrl=site.services.queues.url)
        await site.sqs.change_message_visibility(
            QueueUrl=site.services.queues.url,
            ReceiptHandle=received["Messages"][0]["ReceiptHandle"],
            VisibilityTimeout=0,
        )
    assert await site.counts() == Counts(visible=1, in_flight=0)
    received = await site.sqs.receive_message(QueueUrl=site.services.queues.url)
    assert "Messages" not in received
    assert await site.is_drained()
    assert [letter.job for letter in await site.take_dead_letters()] == [{"job_id": "one"}]


def test_environment_has_all_settings_and_no_real_aws(servers: LocalServers) -> None:
    services = LocalServices(servers, "audio", "segments", QueuePair("jobs", "url", "dead-letters", "url"))
    environment = services.environment()
    assert set(environment) == {
        "STT_MINIO_ENDPOINT",
        "STT_MINIO_ACCESS_KEY",
        "STT_MINIO_SECRET_KEY",
        "STT_MINIO_SECURE",
        "STT_SOURCE_BUCKET",
        "STT_OUTPUT_BUCKET",
        "STT_SPLIT_QUEUE",
        "AWS_REGION",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL_SQS",
        "AWS_EC2_METADATA_DISABLED",
    }
    addresses = [environment[name].removeprefix("http://") for name in environment if "ENDPOINT" in name]
    assert [address.split(":")[0] for address in addresses] == ["127.0.0.1"] * 3
    assert environment["AWS_SECRET_ACCESS_KEY"] not in repr(services)
    assert environment["STT_MINIO_SECRET_KEY"] not in repr(services)


async def test_servers_listen_on_loopback_only(servers: LocalServers) -> None:
    listening = [
        connection.laddr
        for child in psutil.Process().children(recursive=True)
        for connection in child.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {_port(url) for url in (servers.objects.url, servers.queues_url)} <= {port for _, port in listening}
    assert {host for host, _ in listening} == {"127.0.0.1"}


async def test_services_replace_a_taken_port_and_leave_nothing_behind(
    tmp_path: Path, servers: LocalServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices: list[list[int]] = []

    def first_is_taken(count: int) -> list[int]:
        ports = free_ports(count)
        choices.append(ports if choices else [_port(servers.queues_url), *ports[1:]])
        return choices[-1]

    monkeypatch.setattr(servers_module, "free_ports", first_is_taken)
    before = _descendants()
    async with local_services(tmp_path) as services:
        running = services.servers
        assert [_port(running.queues_url)] == [ports[0] for ports in choices[1:]]
        assert await _answers(running.objects.url)
        assert await _answers(running.queues_url)
        sockets = await _all_sockets(_descendants() - before)
    assert not await _answers(running.objects.url)
    assert not await _answers(running.queues_url)
    assert _descendants() == before
    assert not any(socket.exists() for socket in sockets)


async def test_server_that_does_not_start_shows_its_log(
    tmp_path: Path, servers: LocalServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = _port(servers.queues_url)
    monkeypatch.setattr(servers_module, "free_ports", lambda count: [taken, *free_ports(count)[1:]])
    with pytest.raises(DependencyError, match=r"(?s)SQS server ended .* log .*sqs\.log:\n.*in use"):
        async with local_services(tmp_path):
            pass


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT], ids=lambda signum: signum.name)
async def test_servers_end_with_the_process_that_started_them(tmp_path: Path, signum: signal.Signals) -> None:
    log = tmp_path / "holder.log"
    command = [sys.executable, "-c", _HOLDER, str(tmp_path / "services")]
    async with ChildProcess(command, environment=plain_environment(), directory=ROOT, log=log) as holder:
        (line,) = await wait_until(lambda: log.read_text().splitlines(), what="the servers to start", timeout_s=60)
        pids: list[int] = orjson.loads(line)
        assert len(pids) == 2  # the S3 server and the SQS server
        sockets = await _all_sockets(pids)
        holder.signal(signum)
        await holder.wait()
        await wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), what=f"{pids} to end")
    if signum is signal.SIGINT:  # after SIGKILL no process is left to remove them
        await wait_until(lambda: not any(socket.exists() for socket in sockets), what="their sockets to be removed")


async def test_child_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    command = ["bash", "-c", "trap '' TERM; sleep 600 & echo ready; while true; do sleep 600; done"]
    async with ChildProcess(command, environment=plain_environment(), log=log, grace_s=0.2) as child:
        await wait_until(lambda: "ready" in child.log_tail(), what="the trap to be set")
        await wait_until(lambda: len(child.group()) == 3, what="its children to run")
    assert child.returncode == -signal.SIGKILL
    await wait_until(lambda: not child.group(), what="the group to end")


async def test_cancelled_stop_kills_at_once(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    command = ["bash", "-c", "trap '' TERM; echo ready; while true; do sleep 600; done"]
    child = ChildProcess(command, environment=plain_environment(), log=log, grace_s=600)
    async with child:
        await wait_until(lambda: "ready" in child.log_tail(), what="the trap to be set")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await child.stop()
        assert child.returncode == -signal.SIGKILL
    await wait_until(lambda: not child.group(), what="the group to end")


async def _answers(url: str) -> bool:
    try:
        _, writer = await asyncio.open_connection(loopback.HOST, _port(url))
    except ConnectionRefusedError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


def _port(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


def _descendants() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


async def _all_sockets(pids: Collection[int]) -> set[Path]:
    """Return the socket files of SeaweedFS once all exist; it makes the last ones after it first answers."""

    def all_or_none() -> set[Path]:
        sockets = _sockets(pids)
        return sockets if len(sockets) == objects.PORTS // 2 else set()

    return await wait_until(all_or_none, what="SeaweedFS to make its sockets")


def _sockets(pids: Iterable[int]) -> set[Path]:
    """Return the socket files in /tmp on which these processes listen."""
    addresses = {str(each.laddr) for pid in pids for each in psutil.Process(pid).net_connections(kind="unix")}
    return {Path(address) for address in addresses if address.startswith("/tmp/")}  # noqa: S108 - SeaweedFS's choice
