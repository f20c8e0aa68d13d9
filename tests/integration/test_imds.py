"""The client of the instance metadata service over HTTP, and the fake against the documented behaviour of IMDSv2."""

from collections.abc import AsyncIterator

import aiohttp
import pytest
import structlog
from aiohttp import web

from stt_async.errors import TransientError
from stt_async.local.loopback import HOST, free_ports
from stt_async.services.imds import INSTANCE_ID, SPOT_ACTION, TOKEN_PATH, Imds, open_imds
from stt_async.settings import load
from tests.support.fakes.imds import INSTANCE_ID as ID
from tests.support.fakes.imds import FakeImds

TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"  # noqa: S105 - a header's name


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as client:
        yield client


@pytest.fixture
def url(imds: FakeImds) -> str:
    return imds.environment()["AWS_EC2_METADATA_SERVICE_ENDPOINT"]


async def test_fake_requires_a_token_as_imdsv2_does(session: aiohttp.ClientSession, url: str) -> None:
    for wrong in ({}, {TTL: "0"}, {TTL: "21601"}, {TTL: "long"}):
        async with session.put(url + TOKEN_PATH, headers=wrong) as answer:
            assert answer.status == 400
    async with session.get(url + INSTANCE_ID) as answer:
        assert answer.status == 401
    async with session.put(url + TOKEN_PATH, headers={TTL: "60"}) as answer:
        token = await answer.text()
    async with session.get(url + INSTANCE_ID, headers={TOKEN: token}) as answer:
        assert (answer.status, await answer.text()) == (200, ID)
    async with session.get(url + SPOT_ACTION, headers={TOKEN: token}) as answer:
        assert answer.status == 404


async def test_notices_are_absent_until_ec2_gives_them(
    session: aiohttp.ClientSession, imds: FakeImds, url: str
) -> None:
    client = Imds(session, url + "/")
    assert await client.instance_id() == ID
    assert await client.spot_notice() is None
    assert not await client.rebalance_recommended()
    assert await client.target_lifecycle_state() is None
    imds.arm_spot(in_s=120, action="hibernate")
    imds.arm_rebalance()
    imds.arm_target_state("Terminated")
    notice = await client.spot_notice()
    assert notice is not None
    assert notice.action == "hibernate"
    assert await client.rebalance_recommended()
    assert await client.target_lifecycle_state() == "Terminated"
    assert imds.refused_tokens == 0


async def test_refused_token_is_renewed_once(session: aiohttp.ClientSession, imds: FakeImds, url: str) -> None:
    client = Imds(session, url)
    await client.spot_notice()
    imds.expire_tokens()
    assert await client.spot_notice() is None
    assert imds.refused_tokens == 1


async def test_error_names_the_failed_request(session: aiohttp.ClientSession, imds: FakeImds, url: str) -> None:
    client = Imds(session, url)
    await client.spot_notice()
    await imds.set_mode("error")
    with pytest.raises(TransientError, match=r"500 to GET .*instance-action"):
        await client.spot_notice()
    await imds.set_mode("slow")
    with pytest.raises(TransientError, match="imds_unreachable"):
        await client.spot_notice()
    await imds.set_mode("down")
    with pytest.raises(TransientError, match="imds_unreachable"):
        await client.spot_notice()


@pytest.mark.parametrize(("status", "on_ec2"), [(200, True), (503, True), (403, False), (404, False), (405, False)])
async def test_ec2_is_detected_by_the_answer_to_a_token_request(*, status: int, on_ec2: bool) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status)

    app = web.Application()
    app.router.add_put(TOKEN_PATH, answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    settings = load(AWS_EC2_METADATA_SERVICE_ENDPOINT=f"http://{HOST}:{runner.addresses[0][1]}")
    async with open_imds(settings) as found:
        assert (found is not None) is on_ec2
    await runner.cleanup()


@pytest.mark.parametrize(
    ("disabled", "group", "on_ec2", "event"),
    [
        (True, "", False, "ec2_not_detected"),
        (True, "workers", False, "ec2_not_detected"),
        (False, "", False, "ec2_not_detected"),
        (False, "workers", True, "imds_unanswered"),
    ],
)
async def test_without_an_answer_the_settings_decide(*, disabled: bool, group: str, on_ec2: bool, event: str) -> None:
    [unused_port] = free_ports(1)
    settings = load(
        AWS_EC2_METADATA_DISABLED=disabled,
        AWS_EC2_METADATA_SERVICE_ENDPOINT=f"http://{HOST}:{unused_port}",
        autoscaling_group=group,
    )
    with structlog.testing.capture_logs() as logs:
        async with open_imds(settings) as found:
            assert (found is not None) is on_ec2
    assert [line["event"] for line in logs] == [event]
