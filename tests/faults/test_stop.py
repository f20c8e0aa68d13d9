"""Scenarios F2 and F3: told to stop, a worker finishes or gives back what it holds, leaves nothing, exits with 0."""

import signal
from datetime import datetime

import pytest

from tests.support.commands import StartWorker
from tests.support.evidence.outputs import verified
from tests.support.site import Counts, OpenSite, Site
from tests.support.stages import KEY, STAGES, HoldJob, Stage
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)

_NEVER_BY_ITSELF_S = 3600
"""A visibility timeout that no test outlasts: what is visible was released."""

_DRAIN_S, _SETTLING_S = 3, 20
"""What is kept of a Spot notice's 120 s for giving back what could not be done is 20 s."""


async def test_sigterm_in_mid_job_with_time_to_finish_it_is_done(site: Site, hold_job: HoldJob) -> None:
    held = await hold_job(site, "download")
    held.worker.signal(signal.SIGTERM)
    await held.worker.wait_for("worker_draining")
    await site.send(site.job(KEY, job_id="for another worker"))
    held.let_go()
    assert await held.worker.wait() == 0
    assert len(held.worker.events("job_succeeded")) == 1
    await verified(site, KEY)
    assert [(letter.job["job_id"], letter.receive_count) for letter in await site.take_messages()] == [
        ("for another worker", 1)
    ]
    assert not list(held.worker.scratch.iterdir())


@pytest.mark.parametrize("stage", STAGES)
async def test_sigterm_in_mid_job_without_time_it_is_released_and_nothing_is_left(
    open_site: OpenSite, hold_job: HoldJob, stage: Stage
) -> None:
    site = await open_site(visibility_timeout_s=_NEVER_BY_ITSELF_S)
    held = await hold_job(site, stage, STT_DRAIN_TIMEOUT_S="0")
    held.worker.signal(signal.SIGTERM)
    if stage == "upload of a tar":
        await held.worker.wait_for("stop_requested")
        held.let_go()  # the abort takes the same way as the parts
    assert await held.worker.wait() == 0
    await wait_until(held.worker.is_all_gone, what="its helpers to end")
    assert await site.counts() == Counts(visible=1, in_flight=0)
    assert await site.manifests() == {}
    assert await site.open_uploads() == []
    assert not list(held.worker.scratch.iterdir())


async def test_sigterm_in_mid_job_it_waits_for_its_drain_time_and_not_longer(
    open_site: OpenSite, hold_job: HoldJob
) -> None:
    site = await open_site(visibility_timeout_s=_NEVER_BY_ITSELF_S)
    held = await hold_job(site, "download", STT_DRAIN_TIMEOUT_S=str(_DRAIN_S))
    held.worker.signal(signal.SIGTERM)
    assert await held.worker.wait() == 0
    [asked], [released] = held.worker.events("stop_requested"), held.worker.events("job_released")
    waited = datetime.fromisoformat(released["timestamp"]) - datetime.fromisoformat(asked["timestamp"])
    assert _DRAIN_S <= round(waited.total_seconds(), 1) < _DRAIN_S + _SETTLING_S
    assert await site.counts() == Counts(visible=1, in_flight=0)
    assert not list(held.worker.scratch.iterdir())


async def test_a_second_signal_ends_it_at_once(open_site: OpenSite, hold_job: HoldJob) -> None:
    site = await open_site(visibility_timeout_s=_NEVER_BY_ITSELF_S)
    held = await hold_job(site, "download", STT_DRAIN_TIMEOUT_S="3600")
    held.worker.signal(signal.SIGINT)
    await held.worker.wait_for("worker_draining")
    held.worker.signal(signal.SIGINT)
    assert await held.worker.wait() == 0
    assert await site.counts() == Counts(visible=1, in_flight=0)
    assert not list(held.worker.scratch.iterdir())


async def test_a_message_that_arrives_in_the_last_poll_is_released(
    open_site: OpenSite, start_worker: StartWorker
) -> None:
    site = await open_site(visibility_timeout_s=_NEVER_BY_ITSELF_S)
    worker = await start_worker(site, STT_WAIT_TIME_S="20")
    await worker.wait_for("worker_started")
    worker.signal(signal.SIGTERM)
    await worker.wait_for("stop_requested")
    await site.send(site.job("late.wav"))
    assert await worker.wait() == 0
    (letter,) = await site.take_messages()
    assert letter.receive_count == 2  # by the worker, which gave it back; by us
    assert not list(worker.scratch.iterdir())


async def test_a_stop_before_the_first_receive_ends_it(site: Site, start_worker: StartWorker) -> None:
    worker = await start_worker(site)
    await wait_until(lambda: list(worker.scratch.glob("worker-*")), what="the pool to be started")
    worker.signal(signal.SIGTERM)
    assert await worker.wait() == 0
    await wait_until(worker.is_all_gone, what="its helpers to end")
    assert not list(worker.scratch.iterdir())
