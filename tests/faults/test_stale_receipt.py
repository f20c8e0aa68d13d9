"""Scenarios F10 and F12: receipt handles that are not the newest any more, or have lasted for too long.

On an SQS of our own, as no emulator does what AWS documents here. What an old handle can do is told both ways
(`tests/support/sqs/queue.py`), so both are tried.
"""

import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.commands import StartWorker, Worker
from tests.support.evidence.outputs import verified
from tests.support.faults.proxy import OpenProxy, Proxy
from tests.support.site import Counts, OpenSite, Site
from tests.support.sqs.fixture import OpenSqs
from tests.support.sqs.limits import VISIBILITY_TIMEOUT_S as LONGEST_S
from tests.support.sqs.queue import Stale
from tests.support.sqs.server import FakeSqs
from tests.support.stages import KEY, Held, HoldJob
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

ONE_SLOT = {"STT_SLOTS": "1", "STT_PROCESSES": "1"}
"""Whoever works on a job does not ask for another."""

VISIBILITY_TIMEOUT_S = 9
HEARTBEATS_A_LEASE = 3


@dataclass(frozen=True)
class Contest:
    """A worker in mid-download, and an idle one who will be held there as well."""

    fake: FakeSqs
    site: Site
    held: Held
    heir: Worker
    heirs_source: Proxy

    async def take_over(self) -> None:
        """Let the lease run out by the queue's clock; from now on the heir has the message."""
        self.fake.advance(VISIBILITY_TIMEOUT_S)
        await wait_until(self.heirs_source.holding.is_set, what="the heir to be in mid-download")

    async def outlast_a_lease(self) -> None:
        """Wait until the heir has extended its lease for longer than one lasts."""
        operation = "ChangeMessageVisibilityBatch"
        await wait_until(
            lambda: len(self.site.history.of("sqs", operation, sender=self.heir.name)) > HEARTBEATS_A_LEASE,
            what=f"{operation} of {self.heir.name}",
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
        heir = await start_worker(site, **ONE_SLOT, STT_MINIO_ENDPOINT=source.endpoint)
        await heir.wait_for("worker_started")
        source.hold("down", after=500_000)
        return Contest(fake, site, held, heir, source)

    return opened


@pytest.mark.parametrize("stale", ["ignored", "honoured"])
async def test_who_wakes_after_its_lease_leaves_the_job_to_its_heir(
    open_contest: OpenContest, speech: Path, stale: Stale
) -> None:
    contest = await open_contest(stale)
    site, frozen, heir = contest.site, contest.held.worker, contest.heir
    frozen.signal(signal.SIGSTOP)
    await contest.take_over()
    await contest.outlast_a_lease()  # so that the frozen one's is over by its own clock, too

    frozen.signal(signal.SIGCONT)
    contest.held.resume()
    (lost,) = await frozen.wait_for("job_lease_lost")
    assert lost["receive_count"] == 1
    assert await site.counts() == Counts(visible=0, in_flight=1), "it is the heir's still"
    assert await site.manifests() == {}

    contest.heirs_source.release()
    (done,) = await heir.wait_for("job_succeeded")
    assert done["receive_count"] == 2
    await wait_until(site.is_drained, what="the message to be deleted")
    assert {call.sender for call in site.history.of("sqs", "DeleteMessage")} == {heir.name}
    await verified(site, KEY)

    heir.signal(signal.SIGTERM)
    assert await heir.wait() == 0
    await site.put_recordings({"next.wav": speech})
    await site.send(site.job("next.wav"))
    await frozen.wait_for("job_succeeded")
    await wait_until(site.is_drained, what="the next message to be deleted")
    await verified(site, "next.wav")


async def test_who_works_on_without_knowing_that_its_lease_is_over_does_no_harm(open_contest: OpenContest) -> None:
    # Only where old handles are ignored: if the queue honours them, and its clock is not the worker's, nobody can know.
    contest = await open_contest("ignored")
    site, unaware, heir = contest.site, contest.held.worker, contest.heir
    await contest.take_over()
    contest.held.resume()
    await wait_until(lambda: ends(unaware), what="the first to be done, or to notice", timeout_s=60)
    contest.heirs_source.release()
    await wait_until(lambda: ends(heir), what="the heir to be done, or to find it done", timeout_s=60)
    assert set(ends(unaware) + ends(heir)) <= {"job_succeeded", "job_skipped", "job_lease_lost"}
    await wait_until(site.is_drained, what="the message to be deleted")
    await verified(site, KEY)
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)


async def test_a_message_that_is_visible_again_is_given_up_and_done_by_who_receives_it_next(
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
    await is_done_with_the_next_receipt(site, held.worker, held.resume)


async def test_a_message_held_for_12_hours_is_given_up_and_done_by_who_receives_it_next(
    open_sqs: OpenSqs, open_site: OpenSite, hold_job: HoldJob
) -> None:
    fake = await open_sqs()
    site = await open_site(visibility_timeout_s=30, queues_url=fake.url)
    held = await hold_job(site, **ONE_SLOT)
    queue = fake.model.queue(site.services.queues.name)
    # As if it had been extended all the time: 25 s are left, the next heartbeat comes in 10 s and asks for 30.
    [(handle, received_s)] = queue.in_flight().items()
    left_s = int(LONGEST_S - (queue.clock.now_s() - received_s)) - 1
    queue.change_visibility(handle, left_s)
    fake.advance(left_s - 25)
    (lost,) = await held.worker.wait_for("job_lease_lost")
    assert "InvalidParameterValue" in lost["error"]
    assert await site.manifests() == {}
    assert site.history.of("sqs", "DeleteMessage") == []
    fake.advance(25)
    await is_done_with_the_next_receipt(site, held.worker, held.resume)


async def is_done_with_the_next_receipt(site: Site, worker: Worker, let_go: Callable[[], None]) -> None:
    """The worker receives the message once more, and does the job."""
    let_go()
    (done,) = await worker.wait_for("job_succeeded")
    assert done["receive_count"] == 2
    await wait_until(site.is_drained, what="the message to be deleted")
    assert len(site.history.of("sqs", "DeleteMessage")) == 1
    await verified(site, KEY)


def ends(worker: Worker) -> list[str]:
    """How the jobs of a worker ended."""
    told = [line["event"] for line in worker.lines()]
    return [event for event in told if event.startswith("job_")]
