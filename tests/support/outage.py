"""An outage and its end, as a worker's jobs see them."""

from collections.abc import Sequence

from tests.support.commands import Worker
from tests.support.evidence.outputs import verified
from tests.support.site import Counts, Site
from tests.support.waiting import wait_until

_PROBES = 2


async def expect_pause(site: Site, worker: Worker, late: Sequence[str]) -> None:
    """Send jobs to a worker that has noticed an outage, and expect that it receives none while its probes fail."""
    await site.wait_for_polls()
    for key in late:
        await site.send(site.job(key))
    await worker.wait_for("probe_failed", count=len(worker.events("probe_failed")) + _PROBES)
    assert (await site.counts()).visible >= len(late)


async def expect_recovery(
    site: Site, worker: Worker, *, late: Sequence[str], others: Sequence[str] = (), hidden: int = 0
) -> dict[str, int]:
    """Expect that a worker continues by itself, does these jobs, and spends no receive on the late ones.

    Args:
        site: Where the jobs are.
        worker: The worker.
        late: Jobs sent during the outage.
        others: Jobs sent before it.
        hidden: Messages of the queue that the test itself holds.

    Returns:
        The receive count of each job, by key.
    """
    await worker.wait_for("breaker_closed", count=len(worker.events("breaker_opened")))
    keys = {*late, *others}

    def receive_counts() -> dict[str, int] | None:
        done = {line["recording"].split("/")[1]: line["receive_count"] for line in worker.events("job_succeeded")}
        return {key: done[key] for key in keys} if keys <= done.keys() else None

    found = await wait_until(receive_counts, what=f"{len(keys)} jobs to be done", timeout_s=60) or {}

    async def are_deleted() -> bool:
        return await site.counts() == Counts(visible=0, in_flight=hidden)

    await wait_until(are_deleted, what="all other messages to be deleted")
    assert {found[key] for key in late} == {1}
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)
    for key in keys:
        await verified(site, key)
    return found
