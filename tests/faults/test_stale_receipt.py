"""Scenarios F10 and F12: receipt handles that are no longer the newest, or are older than 12 hours.

On the fake SQS, because no emulator does what AWS documents here. AWS documents two effects of an old handle
(`Stale` in `tests/support/fakes/sqs.py`); both are tested.
"""

import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from stt_async.local.sqs.limits import MAX_VISIBILITY_TIMEOUT_S
from tests.support.commands import StartWorker, Worker
from tests.support.evidence.outputs import verified
from tests.support.fakes.sqs import ClockedSqs, OpenSqs, Stale
from tests.support.faults.proxy import OpenProxy, Proxy
from tests.support.site import Counts, OpenSite, Site
from tests.support.stages import KEY, Held, HoldJob
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

ONE_SLOT = {"STT_SLOTS": "1", "STT_PROCESSES": "1"}
"""A worker that has a job receives no other."""

VISIBILITY_TIMEOUT_S = 9
HEARTBEATS_A_LEASE = 3


@dataclass(frozen=True)
class Contest:
    """A worker in mid-download, and an idle one that will be held there as well."""

    fake: ClockedSqs
    site: Site
    held: Held
    successor: Worker
    successor_source: Proxy

    async def take_over(self) -> None:
        """Let the lease end by the queue's clock, so that the successor receives the message."""
        self.fake.advance(VISIBILITY_TIMEOUT_S)
        await wait_until(self.successor_source.holding.is_set, what="the successor to be in mid-download")

    async def outlast_a_lease(self) -> None:
        """Wait until the successor has held the message for longer than a visibility timeout."""
        operation = "ChangeMessageVisibilityBatch"
        await wait_until(
            lambda: len(self.site.history.of("sqs", operation, sender=self.successor.name)) > HEARTBEATS_A_LEASE,
            what=f"{operation} of {self.successor.name}",
            timeout_s=60,
        )


OpenContest = Callable[[Stale], Awaitable[Contest]]


@pytest_asyncio.fixture
async def open_contest(
    open_sqs: OpenSqs, open_site: OpenSite, hold_job: HoldJob, start_worker: StartWorker, open_proxy: OpenProxy
) -> OpenContest:
    async def opened(stale: Stale) -> Contest:
        fake = await open_sqs(stale=stale)
        site = await open_site(visibility_timeout_s=VISIBILITY_TIMEOUT_S, queues_url=fake.url)
        held = await hold_job(site, **ONE_SLOT)
        source = await open_proxy(site.services.servers.objects.url)
        successor = await start_worker(site, **ONE_SLOT, STT_MINIO_ENDPOINT=source.endpoint)
        await successor.wait_for("worker_started")
        source.hold("down", after=500_000)
        return Contest(fake, site, held, successor, source)

    return opened


@pytest.mark.parametrize("stale", ["ignored", "honoured"])
async def test_worker_waking_after_its_lease_leaves_the_job_to_its_successor(
    open_contest: OpenContest, speech: Path, stale: Stale
) -> None:
    contest = await open_contest(stale)
    site, frozen, successor = contest.site, contest.held.worker, contest.successor
    frozen.signal(signal.SIGSTOP)
    await contest.take_over()
    await contest.outlast_a_lease()  # so that the frozen worker's lease is over by its own clock, too

    frozen.signal(signal.SIGCONT)
    contest.held.resume()
    (lost,) = await frozen.wait_for("job_lease_lost")
    assert lost["receive_count"] == 1
    assert await site.counts() == Counts(visible=0, in_flight=1), "the successor still holds it"
    assert await site.manifests() == {}

    contest.successor_source.release()
    (done,) = await successor.wait_for("job_succeeded")
    assert done["receive_count"] == 2
    await wait_until(site.is_drained, what="the message to be deleted")
    assert {call.sender for call in site.history.of("sqs", "DeleteMessage")} == {successor.name}
    await verified(site, KEY)

    successor.signal(signal.SIGTERM)
    assert await successor.wait() == 0
    await site.put_recordings({"next.wav": speech})
    await site.send(site.job("next.wav"))
    await frozen.wait_for("job_succeeded")
    await wait_until(site.is_drained, what="the next message to be deleted")
    await verified(site, "next.wav")


async def test_worker_unaware_of_its_lost_lease_does_no_harm(open_contest: OpenContest) -> None:
    # Only where old handles are ignored: where they are honoured, a worker with another clock cannot know.
    contest = await open_contest("ignored")
    site, unaware, successor = contest.site, contest.held.worker, contest.successor
    await contest.take_over()
    contest.held.resume()
    await wait_until(lambda: ends(unaware), what="the first worker to finish, or to notice", timeout_s=60)
    contest.successor_source.release()
    await wait_until(lambda: ends(successor), what="the successor to finish, or to skip the job", timeout_s=60)
    assert set(ends(unaware) + ends(successor)) <= {"job_succeeded", "job_skipped", "job_lease_lost"}
    await wait_until(site.is_drained, what="the message to be deleted")
    await verified(site, KEY)
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)


async def test_message_visible_again_is_abandoned_and_done_at_the_next_receive(
    open_sqs: OpenSqs, open_site: OpenSite, hold_job: HoldJob
) -> None:
    fake = await open_sqs()
    site = await open_site(visibility_timeout_s=VISIBILITY_TIMEOUT_S, queues_url=fake.url)
    held = await hold_job(site, **ONE_SLOT)
    fake.advance(VISIBILITY_TIMEOUT_S)
    (lost,) = await held.worker.wait_for("job_lease_lost")
    assert "MessageNotInflight" in lost["error"]
    assert await site.manifests() == {}
    assert site.history.of("sqs", "DeleteMessage") == []
    await expect_done_at_next_receive(site, held.worker, held.resume)


async def test_message_held_for_12_hours_is_abandoned_and_done_at_next_receive(
    open_sqs: OpenSqs, open_site: OpenSite, hold_job: HoldJob
) -> None:
    fake = await open_sqs()
    site = await open_site(visibility_timeout_s=30, queues_url=fake.url)
    held = await hold_job(site, **ONE_SLOT)
    queue = fake.sqs.queue(site.services.queues.name)
    # As if it had been extended for 12 hours: 25 s are left, and the next heartbeat, in 10 s, sets 30.
    [message] = queue._messages.values()
    assert message.handle is not None
    assert message.first_received_s is not None
    left_s = int(MAX_VISIBILITY_TIMEOUT_S - (queue.now_s() - message.first_received_s)) - 1
    queue.change_visibility(message.handle, left_s)
    fake.advance(left_s - 25)
    (lost,) = await held.worker.wait_for("job_lease_lost")
    assert "InvalidParameterValue" in lost["error"]
    assert await site.manifests() == {}
    assert site.history.of("sqs", "DeleteMessage") == []
    fake.advance(25)
    await expect_done_at_next_receive(site, held.worker, held.resume)


async def expect_done_at_next_receive(site: Site, worker: Worker, resume: Callable[[], None]) -> None:
    """Expect that the worker receives the message once more, and does the job."""
    resume()
    (done,) = await worker.wait_for("job_succeeded")
    assert done["receive_count"] == 2
    await wait_until(site.is_drained, what="the message to be deleted")
    assert len(site.history.of("sqs", "DeleteMessage")) == 1
    await verified(site, KEY)


def ends(worker: Worker) -> list[str]:
    """The events with which a worker logged the ends of its jobs."""
    return [line["event"] for line in worker.lines() if line["event"].startswith("job_")]
