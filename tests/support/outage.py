"""An outage that has begun, and its end, as a worker's jobs see them."""

from collections.abc import Sequence

from tests.support.commands import Worker
from tests.support.evidence.outputs import verified
from tests.support.site import Counts, Site
from tests.support.waiting import wait_until


async def see_it_pause(site: Site, worker: Worker, late: Sequence[str]) -> None:
    """Send jobs to a worker that has noticed the outage, and see it take none of them, however often it looks."""
    await site.polls_to_end()
    for key in late:
        await site.send(site.job(key))
    await worker.wait_for("probe_failed", count=4)
    assert (await site.counts()).visible >= len(late)


async def see_it_recover(site: Site, worker: Worker, *, late: Sequence[str], jobs: int) -> dict[str, int]:
    """See a worker go on by itself: `jobs` jobs are done in its life, and the late ones had cost no receive.

    Returns:
        How often each job had been received.
    """
    await worker.wait_for("breaker_closed")
    done = await worker.wait_for("job_succeeded", count=jobs)
    await wait_until(site.is_drained, what="all messages to be deleted")
    receives = {line["recording"].split("/")[1]: line["receive_count"] for line in done}
    assert {receives[key] for key in late} == {1}
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)
    for key in receives:
        await verified(site, key)
    return receives
