"""Scenario F27: the wall clock jumps while a worker runs. Deadlines and heartbeats use another clock."""

import signal
import time
from pathlib import Path

import pytest

from tests.support.commands import StartWorker
from tests.support.evidence.outputs import verified
from tests.support.fakes.sqs import OpenSqs
from tests.support.faults.clock import Clock
from tests.support.faults.proxy import OpenProxy
from tests.support.outage import expect_pause, expect_recovery
from tests.support.site import Counts, OpenSite, Site
from tests.support.stages import KEY, HoldJob
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HOUR_S = 3600
_UNREFUSED_JUMP_S = 240
"""SQS refuses a signature that is off by more than 5 min."""
_SHORT_RETRIES = {"STT_RETRY_TIMEOUT_S": "1", "STT_RETRY_MAX_WAIT_S": "0.2"}
_VISIBILITY_TIMEOUT_S = 6
_HEARTBEAT_EVERY_S = _VISIBILITY_TIMEOUT_S / 3


@pytest.mark.parametrize("jump_s", [_UNREFUSED_JUMP_S, -_UNREFUSED_JUMP_S])
async def test_clock_jump_in_mid_job_moves_no_heartbeat_and_no_deadline(
    open_site: OpenSite, hold_job: HoldJob, open_proxy: OpenProxy, clock: Clock, jump_s: int
) -> None:
    site = await open_site(visibility_timeout_s=_VISIBILITY_TIMEOUT_S)
    queues = await open_proxy(site.services.servers.queues_url)
    held = await hold_job(
        site,
        AWS_ENDPOINT_URL_SQS=queues.url,
        STT_JOB_TIMEOUT_S="200",
        STT_DRAIN_TIMEOUT_S="200",
        **clock.environment(),
    )
    held.worker.signal(signal.SIGTERM)
    await held.worker.wait_for("worker_draining")
    # The last poll is over: all further requests to the queue are heartbeats.
    queues.requests.clear()
    since_s = time.monotonic()
    clock.jump(jump_s)
    enough = 2 * _VISIBILITY_TIMEOUT_S / _HEARTBEAT_EVERY_S
    await wait_until(lambda: len(queues.requests) >= enough, what="heartbeats over two visibility timeouts")
    assert len(queues.requests) <= (time.monotonic() - since_s) / _HEARTBEAT_EVERY_S + 1
    assert await site.counts() == Counts(visible=0, in_flight=1)
    assert held.worker.process.returncode is None

    clock.jump(0)
    held.resume()
    assert await held.worker.wait() == 0
    [done] = held.worker.events("job_succeeded")
    assert done["receive_count"] == 1
    assert await site.is_drained()
    await verified(site, KEY)


@pytest.mark.parametrize("wrong_by_s", [HOUR_S, -HOUR_S])
async def test_worker_with_a_wrong_clock_receives_nothing_until_it_is_right(
    site: Site, start_worker: StartWorker, speech: Path, clock: Clock, wrong_by_s: int
) -> None:
    worker = await start_worker(site, **_SHORT_RETRIES, **clock.environment())
    keys = [f"{number}.wav" for number in range(6)]
    await site.put_recordings(dict.fromkeys(keys, speech))
    await site.send(site.job(keys[0]))
    await worker.wait_for("job_succeeded")

    clock.jump(wrong_by_s)
    await site.send(site.job(keys[1]))
    [retried] = await worker.wait_for("job_retried")
    assert (retried["failure"], retried["code"]) == ("environment", "RequestTimeTooSkewed")
    late = keys[2:]
    await expect_pause(site, worker, late)
    clock.jump(0)
    await expect_recovery(site, worker, late=late, others=keys[:2])


@pytest.mark.parametrize("wrong_by_s", [HOUR_S, -HOUR_S])
async def test_job_is_abandoned_while_sqs_refuses_a_wrong_clock_and_done_later(
    open_sqs: OpenSqs, open_site: OpenSite, hold_job: HoldJob, clock: Clock, wrong_by_s: int
) -> None:
    queues = await open_sqs()
    site = await open_site(visibility_timeout_s=_VISIBILITY_TIMEOUT_S, queues_url=queues.url)
    held = await hold_job(site, **_SHORT_RETRIES, **clock.environment())

    clock.jump(wrong_by_s)
    await held.worker.wait_for("job_lease_lost")
    (beat, *_) = held.worker.events("heartbeat_failed")
    assert "InvalidSignatureException" in beat["error"]
    (opened,) = await held.worker.wait_for("breaker_opened")
    assert opened["code"] == "InvalidSignatureException"

    async def is_visible() -> bool:
        return await site.counts() == Counts(visible=1, in_flight=0)

    await wait_until(is_visible, what="the message to be visible again")
    clock.jump(0)
    held.resume()
    await held.worker.wait_for("breaker_closed")
    (done,) = await held.worker.wait_for("job_succeeded")
    assert done["receive_count"] == 2
    await wait_until(site.is_drained, what="the message to be deleted")
    await verified(site, KEY)
