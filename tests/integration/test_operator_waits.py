"""Which failures a command of an operator waits out, and which it reports at once."""

import os
from pathlib import Path

import pytest

from stt_async import settings
from stt_async.errors import LastingOutageError
from stt_async.fleet.account import open_account
from tests.support.commands import run_command
from tests.support.fakes.imds import FakeImds
from tests.support.faults.calls import error
from tests.support.site import Site


@pytest.mark.parametrize(
    ("changes", "code", "requests"),
    [
        pytest.param({"STT_SPLIT_QUEUE": "missing"}, "NonExistentQueue", ["GetQueueUrl"], id="missing queue"),
        pytest.param({"AWS_SECRET_ACCESS_KEY": ""}, "AWS_SECRET_ACCESS_KEY", [], id="half of the AWS keys"),
        pytest.param({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "AWS_PROFILE", [], id="no AWS keys"),
    ],
)
async def test_failure_that_waiting_cannot_end_is_reported_after_the_first_request(
    site: Site, tmp_path: Path, changes: dict[str, str], code: str, requests: list[str]
) -> None:
    home = {"HOME": str(tmp_path)}  # without the AWS profiles of the person who runs the tests
    finished = await run_command("enqueue", environment=site.environment() | home | changes)
    assert finished.returncode == 3
    assert code in finished.stderr
    assert "waiting" not in finished.stderr
    assert [call.operation for call in site.history.calls] == requests


async def test_service_that_is_unavailable_is_waited_for_and_named(site: Site) -> None:
    await site.put_recordings({"a.mp3": b"x"})
    with site.gateway.fault("sqs", "GetQueueUrl", error(503, "ServiceUnavailable"), times=2):
        finished = await run_command("enqueue", environment=site.environment())
    assert finished.returncode == 0, finished.stderr
    first, *_ = finished.stderr.splitlines()
    assert first.startswith("waiting for up to 60 s: SQS ")
    assert "ServiceUnavailable" in first


async def test_credentials_are_looked_up_once_for_all_clients(
    imds: FakeImds, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {"HOME": str(tmp_path), **imds.environment()}.items():
        monkeypatch.setenv(name, value)
    async with open_account(settings.load()) as account:
        with pytest.raises(LastingOutageError, match="AWS_PROFILE"):
            await account.call(account.sqs.list_queues)
    assert len(imds._tokens) == 1  # a look at the instance role begins with one token
