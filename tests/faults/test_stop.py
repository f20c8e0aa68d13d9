"""Scenarios F2 and F3: a worker that is stopped finishes or releases its jobs, leaves nothing and exits with 0."""

import signal
from datetime import datetime

import pytest

from tests.support.commands import StartWorker
from tests.support.evidence.outputs import verified
from tests.support.site import Counts, OpenSite, Site
from tests.support.stages import KEY, STAGE_KEYS, HoldJob, HoldStages, Layout
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)

_LONG_VISIBILITY_TIMEOUT_S = 3600
"""No test lasts as long: a message that is visible was released."""

_DRAIN_S, _RELEASE_S = 3, 20
"""20 s of a Spot notice's 120 s are kept for the release of unfinished jobs."""


async def test_sigterm_lets_a_job_finish_and_takes_no_other(site: Site, hold_job: HoldJob) -> None:
    held = await hold_job(site)
    held.worker.signal(signal.SIGTERM)
    await held.worker.wait_for("worker_draining")
    await site.send(site.job(KEY, job_id="for another worker"))
    held.resume()
    assert await held.worker.wait() == 0
    assert len(held.worker.events("job_succeeded")) == 1
    await verified(site, KEY)
    assert [(letter.job["job_id"], letter.receive_count) for letter in await site.take_messages()] == [
        ("for another worker", 1)
    ]
    assert not list(held.worker.scratch.iterdir())


@pytest.mark.parametrize("layout", ["objects", "tar"])
async def test_second_signal_releases_jobs_in_every_stage_and_leaves_nothing(
    open_site: OpenSite, hold_stages: HoldStages, layout: Layout
) -> None:
    site = await open_site(visibility_timeout_s=_LONG_VISIBILITY_TIMEOUT_S)
    held = await hold_stages(site, layout, STT_DRAIN_TIMEOUT_S="3600")
    held.worker.signal(signal.SIGINT)
    await held.worker.wait_for("worker_draining")
    held.worker.signal(signal.SIGINT)
    assert await held.worker.wait() == 0
    await wait_until(held.worker.is_all_gone, what="the worker's children to end")
    assert await site.counts() == Counts(visible=len(STAGE_KEYS), in_flight=0)
    assert await site.manifests() == {}
    assert await site.open_uploads() == []
    assert not list(held.worker.scratch.iterdir())


async def test_sigterm_releases_a_job_when_the_drain_time_is_over(open_site: OpenSite, hold_job: HoldJob) -> None:
    site = await open_site(visibility_timeout_s=_LONG_VISIBILITY_TIMEOUT_S)
    held = await hold_job(site, STT_DRAIN_TIMEOUT_S=str(_DRAIN_S))
    held.worker.signal(signal.SIGTERM)
    assert await held.worker.wait() == 0
    [asked], [released] = held.worker.events("stop_requested"), held.worker.events("job_released")
    waited = datetime.fromisoformat(released["timestamp"]) - datetime.fromisoformat(asked["timestamp"])
    assert _DRAIN_S <= round(waited.total_seconds(), 1) < _DRAIN_S + _RELEASE_S
    assert await site.counts() == Counts(visible=1, in_flight=0)
    assert not list(held.worker.scratch.iterdir())


async def test_message_received_by_the_last_poll_is_released(open_site: OpenSite, start_worker: StartWorker) -> None:
    site = await open_site(visibility_timeout_s=_LONG_VISIBILITY_TIMEOUT_S)
    worker = await start_worker(site, STT_WAIT_TIME_S="20")
    await worker.wait_for("worker_started")
    worker.signal(signal.SIGTERM)
    await worker.wait_for("stop_requested")
    await site.send(site.job("late.wav"))
    assert await worker.wait() == 0
    (letter,) = await site.take_messages()
    assert letter.receive_count == 2  # the worker's, and the test's
    assert not list(worker.scratch.iterdir())


async def test_sigterm_before_the_first_receive_ends_the_worker(site: Site, start_worker: StartWorker) -> None:
    worker = await start_worker(site)
    await wait_until(lambda: list(worker.scratch.glob("worker-*")), what="the pool to be started")
    worker.signal(signal.SIGTERM)
    assert await worker.wait() == 0
    await wait_until(worker.is_all_gone, what="the worker's children to end")
    assert not list(worker.scratch.iterdir())
