"""The stand-ins on loopback: what the tests and the demo rely on them for, and that nothing of them stays."""

import asyncio
import signal
import sys
from collections.abc import Callable, Collection, Coroutine, Iterable
from contextlib import AsyncExitStack
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
from stt_async.local.queues import MAX_RECEIVES
from stt_async.local.servers import LocalServers, LocalServices, local_services
from tests.support.recordings import ROOT
from tests.support.site import Counts, OpenSite, Site
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

_PART_BYTES = 5 * 1024**2

# Brings the services up, says so with the ids of their processes, and stays until something ends it.
_HOLDER = """
import asyncio, json, os, sys
from pathlib import Path
import psutil, uvloop
from stt_async.local.servers import local_services

async def hold():
    async with local_services(Path(sys.argv[1])):
        print(json.dumps([each.pid for each in psutil.Process().children(recursive=True)]), flush=True)
        await asyncio.Event().wait()

{"asyncio": asyncio.run, "uvloop": uvloop.run}[sys.argv[2]](hold())
"""


async def _refusal(call: Coroutine[Any, Any, Any]) -> tuple[int, str]:
    with pytest.raises(ClientError) as refused:
        await call
    response = refused.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


def _reader(site: Site) -> Any:
    running = site.services.servers.objects
    return s3_client(running.url, running.reader)


async def test_the_reader_reads_and_lists_the_source(site: Site) -> None:
    await site.put_recordings({"amdo/ལྷ་ས 1+2%.mp3": b"sound"})
    bucket = site.services.source_bucket
    reader: S3Client
    async with _reader(site) as reader:
        listed = await reader.list_objects_v2(Bucket=bucket)
        assert [found["Key"] for found in listed["Contents"]] == ["amdo/ལྷ་ས 1+2%.mp3"]
        found = await reader.get_object(Bucket=bucket, Key="amdo/ལྷ་ས 1+2%.mp3")
        assert await found["Body"].read() == b"sound"


async def test_the_reader_changes_nothing_anywhere(site: Site) -> None:
    await site.put_recordings({"a.mp3": b"sound"})
    denied = (403, "AccessDenied")
    reader: S3Client
    async with _reader(site) as reader:
        for bucket in (site.services.source_bucket, site.services.output_bucket):
            assert await _refusal(reader.put_object(Bucket=bucket, Key="b.mp3", Body=b"x")) == denied
            assert await _refusal(reader.delete_object(Bucket=bucket, Key="a.mp3")) == denied
            assert await _refusal(reader.create_multipart_upload(Bucket=bucket, Key="b.mp3")) == denied
            assert await _refusal(reader.delete_bucket(Bucket=bucket)) == denied
        assert await _refusal(reader.create_bucket(Bucket="another")) == denied
        assert await _refusal(reader.list_objects_v2(Bucket=site.services.output_bucket)) == denied
    assert await site.objects(bucket=site.services.source_bucket) == {"a.mp3": 5}


async def test_keys_are_checked(site: Site) -> None:
    running = site.services.servers.objects
    nobody: S3Client
    async with s3_client(running.url, loopback.Keys.random()) as nobody:
        assert (await _refusal(nobody.list_buckets()))[0] == 403


async def test_a_missing_bucket_is_not_made_up(site: Site) -> None:
    put = site.s3.put_object(Bucket="never-made", Key="a", Body=b"x")
    assert await _refusal(put) == (404, "NoSuchBucket")


async def test_a_race_of_conditional_puts_has_one_winner(site: Site) -> None:
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

    # Five are enough: this server has each loser wait for the lock in steps of a second.
    async with asyncio.TaskGroup() as racers:
        for number in range(5):
            racers.create_task(commit(f"racer {number}".encode()))
    winners = [outcome for outcome in outcomes if outcome.startswith("racer")]
    assert len(winners) == 1
    assert set(outcomes) - set(winners) <= {"PreconditionFailed", "ConditionalRequestConflict"}
    assert await site.read("a.mp3/metadata.json") == winners[0].encode()


async def test_an_aborted_multipart_upload_leaves_nothing(site: Site) -> None:
    upload = {"Bucket": site.services.output_bucket, "Key": "a.mp3/segments.tar"}
    started = await site.s3.create_multipart_upload(**upload)  # type: ignore[arg-type]
    begun: dict[str, Any] = upload | {"UploadId": started["UploadId"]}
    await site.s3.upload_part(**begun, PartNumber=1, Body=bytes(_PART_BYTES))
    assert await site.open_uploads() == ["a.mp3/segments.tar"]
    await site.s3.abort_multipart_upload(**begun)
    assert await site.open_uploads() == []
    assert await site.objects() == {}


async def test_a_message_received_too_often_becomes_a_dead_letter(site: Site) -> None:
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


async def test_a_message_not_deleted_comes_back(open_site: OpenSite) -> None:
    site = await open_site(visibility_timeout_s=1)
    await site.send({"job_id": "one"})
    url = site.services.queues.url
    await site.sqs.receive_message(QueueUrl=url)
    assert await site.counts() == Counts(visible=0, in_flight=1)
    again = await site.sqs.receive_message(
        QueueUrl=url, WaitTimeSeconds=10, MessageSystemAttributeNames=["ApproximateReceiveCount"]
    )
    assert again["Messages"][0]["Attributes"]["ApproximateReceiveCount"] == "2"


async def test_the_environment_names_everything_and_no_real_aws(site: Site) -> None:
    environment = site.services.environment()
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
    assert environment["AWS_SECRET_ACCESS_KEY"] not in repr(site.services)
    assert environment["STT_MINIO_SECRET_KEY"] not in repr(site.services)


@pytest.mark.usefixtures("servers")
async def test_the_servers_listen_on_loopback_only() -> None:
    listening = [
        connection.laddr
        for child in psutil.Process().children(recursive=True)
        for connection in child.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) == objects.PORTS + 1
    assert {address[0] for address in listening} == {"127.0.0.1"}


async def test_nothing_stays_after_the_services(tmp_path: Path) -> None:
    before = _descendants()
    up: asyncio.Future[LocalServices] = asyncio.Future()

    async def hold() -> None:
        async with local_services(tmp_path) as services:
            up.set_result(services)
            await asyncio.Event().wait()

    holding = asyncio.create_task(hold())
    running = (await up).servers
    assert await _answers(running.objects.url)
    assert await _answers(running.queues_url)
    sockets = await _all_sockets(_descendants() - before)
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding
    assert not await _answers(running.objects.url)
    assert not await _answers(running.queues_url)
    assert _descendants() == before
    assert not any(socket.exists() for socket in sockets)


async def test_a_port_taken_in_the_meantime_is_replaced_once(
    tmp_path: Path, servers: LocalServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = int(servers.queues_url.rsplit(":", 1)[1])
    handed_out: list[list[int]] = []

    def taken_at_first(count: int) -> list[int]:
        ports = free_ports(count)
        handed_out.append(ports if handed_out else [taken, *ports[1:]])
        return handed_out[-1]

    monkeypatch.setattr(servers_module, "free_ports", taken_at_first)
    async with local_services(tmp_path) as services:
        assert services.servers.queues_url.endswith(f":{handed_out[1][0]}")
    assert len(handed_out) == 2


async def test_a_server_that_does_not_come_up_shows_its_log(
    tmp_path: Path, servers: LocalServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = int(servers.queues_url.rsplit(":", 1)[1])
    monkeypatch.setattr(servers_module, "free_ports", lambda count: [taken, *free_ports(count)[1:]])
    with pytest.raises(DependencyError, match=r"(?s)SQS emulator ended .* log .*moto\.log:\n.*in use"):
        async with local_services(tmp_path):
            pass


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT], ids=lambda signum: signum.name)
async def test_the_servers_end_with_the_process_that_started_them(
    tmp_path: Path, loop: str, signum: signal.Signals
) -> None:
    log = tmp_path / "holder.log"
    holder = ChildProcess(
        [sys.executable, "-c", _HOLDER, tmp_path / "services", loop],
        environment=plain_environment(),
        directory=ROOT,
        log=log,
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(holder)
        (line,) = await wait_until(lambda: log.read_text().splitlines(), what="the servers to be up")
        pids: list[int] = orjson.loads(line)
        assert len(pids) == 2  # SeaweedFS and the queue server
        sockets = await _all_sockets(pids)
        holder.signal(signum)
        await holder.wait()
        await wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), what=f"{pids} to end")
    if signum is signal.SIGINT:  # after SIGKILL nothing is left that could remove them
        await wait_until(lambda: not any(socket.exists() for socket in sockets), what="the sockets of SeaweedFS to go")


async def test_a_child_deaf_to_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    log = tmp_path / "deaf.log"
    deaf = "trap '' TERM; sleep 600 & echo ready; while true; do sleep 600; done"
    async with ChildProcess(["bash", "-c", deaf], environment=plain_environment(), log=log, grace_s=0.2) as child:
        await wait_until(lambda: "ready" in child.log_tail(), what="the trap to be set")
        await wait_until(lambda: len(child.group()) == 3, what="its children to run")
    assert child.returncode == -signal.SIGKILL
    await _ended(child.group)


async def test_a_stop_that_is_cancelled_kills_at_once(tmp_path: Path) -> None:
    log = tmp_path / "deaf.log"
    deaf = "trap '' TERM; echo ready; while true; do sleep 600; done"
    child = ChildProcess(["bash", "-c", deaf], environment=plain_environment(), log=log, grace_s=600)
    async with child:
        await wait_until(lambda: "ready" in child.log_tail(), what="the trap to be set")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await child.stop()
        assert child.returncode == -signal.SIGKILL
    await _ended(child.group)


async def _ended(group: Callable[[], list[int]]) -> None:
    await wait_until(lambda: not group(), what="the group to end", timeout_s=5)


async def _answers(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionRefusedError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


def _descendants() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


async def _all_sockets(pids: Collection[int]) -> set[Path]:
    """The socket files of SeaweedFS among these processes; it makes the last ones when it answers already."""

    def all_there() -> set[Path]:
        sockets = _sockets(pids)
        return sockets if len(sockets) == objects.PORTS // 2 else set()

    return await wait_until(all_there, what="SeaweedFS to make its sockets")


def _sockets(pids: Iterable[int]) -> set[Path]:
    """The socket files in /tmp on which these processes listen."""
    addresses = {str(each.laddr) for pid in pids for each in psutil.Process(pid).net_connections(kind="unix")}
    return {Path(address) for address in addresses if address.startswith("/tmp/")}  # noqa: S108 - SeaweedFS's choice
