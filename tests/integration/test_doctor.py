"""The doctor: one line for each check; a failed check says what to do."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from stt_async.local.loopback import HOST
from tests.support.commands import run_command
from tests.support.faults.calls import error
from tests.support.site import Site


def _environment(site: Site, tmp_path: Path) -> dict[str, str]:
    return site.environment() | {"STT_SCRATCH_DIR": str(tmp_path / "scratch")}


async def test_working_services_exit_0_and_nothing_is_left_behind(site: Site, speech: Path, tmp_path: Path) -> None:
    await site.put_recordings([speech])
    finished = await run_command("doctor", environment=_environment(site, tmp_path))
    assert finished.returncode == 0, finished.stdout
    lines = finished.stdout.splitlines()
    assert len(lines) == 8
    assert [line for line in lines if not line.startswith("ok ")] == []
    assert await site.objects() == {}
    assert await site.open_uploads() == []
    assert not list((tmp_path / "scratch").iterdir())


async def test_missing_permission_to_list_uploads_is_named(site: Site, speech: Path, tmp_path: Path) -> None:
    await site.put_recordings([speech])
    with site.gateway.fault("s3", "ListMultipartUploads", error(403, "AccessDenied")):
        finished = await run_command("doctor", environment=_environment(site, tmp_path))
    assert finished.returncode == 3
    (failed,) = (line for line in finished.stdout.splitlines() if not line.startswith("ok "))
    assert "multipart uploads" in failed
    assert "s3:ListBucketMultipartUploads" in failed


async def test_untried_permissions_are_named_and_not_used(site: Site, speech: Path, tmp_path: Path) -> None:
    await site.put_recordings([speech])
    finished = await run_command("doctor", environment=_environment(site, tmp_path))
    untried = {"ReceiveMessage", "ChangeMessageVisibility", "DeleteMessage", "SendMessage"}
    assert {action for action in untried if f"sqs:{action}" in finished.stdout} == untried
    assert untried.isdisjoint(call.operation for call in site.history.calls)


@dataclass(frozen=True)
class _Broken:
    """A broken service: the settings that break it, the line that must fail, and a word in that line."""

    variables: Callable[[Site, str], dict[str, str]]
    line: str
    word: str


_WRONG_MINIO_KEY = _Broken(lambda _, __: {"STT_MINIO_SECRET_KEY": "wrong"}, "source", "SignatureDoesNotMatch")
_WRONG_AWS_KEY = _Broken(lambda _, __: {"AWS_SECRET_ACCESS_KEY": "wrong"}, "output", "SignatureDoesNotMatch")
_NO_SOURCE_BUCKET = _Broken(lambda _, __: {"STT_SOURCE_BUCKET": "source-missing"}, "source", "NoSuchBucket")
_NO_OUTPUT_BUCKET = _Broken(lambda _, __: {"STT_OUTPUT_BUCKET": "output-missing"}, "output", "NoSuchBucket")
_DEAD_MINIO = _Broken(lambda _, dead: {"STT_MINIO_ENDPOINT": dead}, "source", "out of reach")
_DEAD_S3 = _Broken(lambda _, dead: {"AWS_ENDPOINT_URL_S3": f"http://{dead}"}, "output", "out of reach")
_NO_QUEUE = _Broken(lambda _, __: {"STT_SPLIT_QUEUE": "missing"}, "queue", "NonExistentQueue")
_NO_REDRIVE = _Broken(
    lambda site, _: {"STT_SPLIT_QUEUE": site.services.queues.dead_letter_name}, "queue", "maxReceiveCount of 5"
)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param([_WRONG_MINIO_KEY, _NO_OUTPUT_BUCKET], id="wrong MinIO key, no output bucket"),
        pytest.param([_NO_SOURCE_BUCKET, _NO_REDRIVE], id="no source bucket, no redrive policy"),
        pytest.param([_WRONG_AWS_KEY, _NO_QUEUE], id="wrong AWS key, no queue"),
        pytest.param([_DEAD_MINIO, _DEAD_S3], id="dead MinIO, dead S3"),
    ],
)
async def test_failed_checks_exit_3_and_say_what_to_do(site: Site, tmp_path: Path, broken: list[_Broken]) -> None:
    environment = _environment(site, tmp_path)
    with socket.socket() as held:  # bound but not listening: connections are refused
        held.bind((HOST, 0))
        for each in broken:
            environment |= each.variables(site, f"{HOST}:{held.getsockname()[1]}")
        finished = await run_command("doctor", environment=environment)
    assert finished.returncode == 3
    lines = finished.stdout.splitlines()
    assert len(lines) == 8
    failed = {line.split()[1].rstrip(":"): line for line in lines if line.startswith("FAILED")}
    for each in broken:
        assert each.word in failed[each.line]
        assert "Check STT_" in failed[each.line]
    # A missing queue also fails its dead-letter queue, and a missing bucket its uploads.
    assert failed.keys() - {"its", "multipart"} == {each.line for each in broken}
    assert ("its" in failed) == ("queue" in failed)
    assert ("multipart" in failed) == ("output" in failed)
    assert "Traceback" not in finished.stdout + finished.stderr
