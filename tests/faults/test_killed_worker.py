"""Scenario F1: a worker that dies at once, as on a Spot instance taken away. Others do its jobs; nothing is left."""

import random
import secrets
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.commands import StartWorker, Worker
from tests.support.evidence.history import Call
from tests.support.evidence.outputs import verified
from tests.support.faults.calls import hold_after, hold_before
from tests.support.faults.proxy import OpenProxy
from tests.support.site import Counts, OpenSite, Site
from tests.support.stages import KEY, STAGES, HoldJob, Stage
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)

_VISIBILITY_TIMEOUT_S = 6
"""Long enough that no heartbeat is late, however many tests share the machine: each receive is counted here."""

_JOBS = 30


@pytest.mark.parametrize("stage", STAGES)
async def test_killed_in_mid_job_another_worker_does_it_and_nothing_is_left(
    open_site: OpenSite, start_worker: StartWorker, hold_job: HoldJob, tmp_path: Path, stage: Stage
) -> None:
    site = await open_site(visibility_timeout_s=_VISIBILITY_TIMEOUT_S)
    scratch = tmp_path / "scratch"
    held = await hold_job(site, stage, scratch=scratch)
    await _kill(held.worker)
    await held.take_away()
    assert await site.manifests() == {}

    heir = await start_worker(site, scratch=scratch, **held.variables)
    (done,) = await heir.wait_for("job_succeeded")
    assert done["receive_count"] == 2
    await wait_until(site.is_drained, what="the message to be deleted")
    await verified(site, KEY)
    assert await site.open_uploads() == []
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)
    heir.signal(signal.SIGTERM)
    assert await heir.wait() == 0
    assert not list(scratch.iterdir())


@dataclass(frozen=True)
class Moment:
    """Between two calls of a worker to S3: the second one is held."""

    operation: str
    where: Callable[[Call], bool]
    earlier_segments: int = 0
    """Let through before."""


def _is_commit(call: Call) -> bool:
    return call.is_of_manifest


def _is_segment(call: Call) -> bool:
    return "/segment_" in call.key


_BETWEEN_CALLS = {
    "after receive": Moment("GetObject", _is_commit),
    "after segment 2 of n": Moment("PutObject", _is_segment, earlier_segments=2),
    "after the last segment": Moment("PutObject", _is_commit),
}


@pytest.mark.parametrize("when", _BETWEEN_CALLS)
async def test_killed_between_two_calls_another_worker_does_the_job(
    open_site: OpenSite, start_worker: StartWorker, five_minutes: Path, when: str
) -> None:
    site = await open_site(visibility_timeout_s=_VISIBILITY_TIMEOUT_S)
    moment = _BETWEEN_CALLS[when]
    await site.put_recordings({KEY: five_minutes})
    victim = await start_worker(site, STT_UPLOADS="1")
    await victim.wait_for("worker_started")

    def is_the_moment(call: Call) -> bool:
        return moment.where(call) and len(_segments_put(site, victim)) >= moment.earlier_segments

    with site.gateway.fault("s3", moment.operation, hold_before, where=is_the_moment, times=1) as held:
        await site.send(site.job(KEY))
        await held.has_struck()
        await _kill(victim)
    assert await site.manifests() == {}
    put_before = len(_segments_put(site, victim))

    heir = await start_worker(site)
    (done,) = await heir.wait_for("job_succeeded")
    await wait_until(site.is_drained, what="the message to be deleted")
    manifest = await verified(site, KEY)
    assert done["receive_count"] == 2
    expected = {"after receive": 0, "after segment 2 of n": 2, "after the last segment": manifest["total_segments"]}
    assert put_before == expected[when]
    assert len(_segments_put(site, heir)) == manifest["total_segments"] > 2
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)


@pytest.mark.parametrize("when", ["before it heard of its commit", "before it deleted the message"])
async def test_killed_after_the_commit_the_next_worker_only_deletes_the_message(
    open_site: OpenSite, start_worker: StartWorker, speech: Path, when: str
) -> None:
    site = await open_site(visibility_timeout_s=_VISIBILITY_TIMEOUT_S)
    await site.put_recordings({"a.wav": speech, KEY: speech})  # the first one is what preflight reads
    victim = await start_worker(site)
    await victim.wait_for("worker_started")
    if when == "before it heard of its commit":
        holding = site.gateway.fault("s3", "PutObject", hold_after, where=_is_commit, times=1)
    else:
        holding = site.gateway.fault("sqs", "DeleteMessage", hold_before, times=1)
    with holding as held:
        await site.send(site.job(KEY))
        await held.has_struck()
        await wait_until(site.manifests, what="the manifest to stand")
        await _kill(victim)
    standing = await verified(site, KEY)

    heir = await start_worker(site)
    (skipped,) = await heir.wait_for("job_skipped")
    assert skipped["receive_count"] == 2
    await wait_until(site.is_drained, what="the message to be deleted")
    of_the_job = [call for call in site.history.calls if call.sender == heir.name and call.key.startswith(f"{KEY}/")]
    assert [(call.operation, call.is_of_manifest) for call in of_the_job] == [("GetObject", True)]
    assert len([call for call in site.history.of("minio", "GetObject") if call.key == KEY]) == 1
    assert await verified(site, KEY) == standing


async def test_one_of_two_workers_killed_at_a_random_moment_loses_nothing(
    open_site: OpenSite, start_worker: StartWorker, open_proxy: OpenProxy, speech: Path
) -> None:
    seed = secrets.randbits(32)
    print(f"seed: {seed}")  # noqa: T201 - shown when the test fails
    jobs_before = random.Random(seed).randrange(_JOBS // 2)  # noqa: S311 - a moment, not a secret
    site = await open_site(visibility_timeout_s=_VISIBILITY_TIMEOUT_S)
    proxy = await open_proxy(site.services.servers.objects.url)
    proxy.delay_s = 0.02  # jobs last longer than a look at the log
    keys = [f"{number:02d}.wav" for number in range(_JOBS)]
    await site.put_recordings(dict.fromkeys(keys, speech))
    variables = {
        "STT_PROCESSES": "1",
        "STT_SLOTS": "3",
        "STT_MINIO_ENDPOINT": proxy.endpoint,
        "AWS_ENDPOINT_URL_S3": proxy.url,
    }
    victim, survivor = [await start_worker(site, **variables) for _ in range(2)]
    for worker in (victim, survivor):
        await worker.wait_for("worker_started")
    for key in keys:
        await site.send(site.job(key))
    # Whatever the other one did: when that many are done, it dies, busy or not.
    await wait_until(
        lambda: len(victim.events("job_succeeded") + survivor.events("job_succeeded")) >= jobs_before,
        what=f"{jobs_before} jobs to be done",
    )
    await _kill(victim)
    await wait_until(site.is_drained, what="all jobs to be done", timeout_s=60)

    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)
    assert set(await site.manifests()) == set(keys)
    for key in keys:
        await verified(site, key)


async def _kill(worker: Worker) -> None:
    worker.kill()
    assert await worker.wait() == -signal.SIGKILL
    await wait_until(worker.is_all_gone, what="the pool processes of the killed worker to end")


def _segments_put(site: Site, worker: Worker) -> list[Call]:
    return [
        call for call in site.history.of("s3", "PutObject", sender=worker.name) if call.served and _is_segment(call)
    ]
