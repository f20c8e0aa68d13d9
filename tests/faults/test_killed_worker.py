"""Scenario F1: a worker is killed, as when a Spot instance disappears. Another one does its jobs; nothing is left."""

import random
import secrets
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import StartWorker, Worker
from tests.support.evidence.history import Call
from tests.support.evidence.outputs import verified
from tests.support.fakes.sqs import OpenSqs
from tests.support.faults.calls import hold_after, hold_before
from tests.support.faults.proxy import OpenProxy
from tests.support.site import Counts, OpenSite, Site
from tests.support.stages import STAGE_KEYS, HoldStages, Layout, segments_put
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)

_VISIBILITY_TIMEOUT_S = 6
"""Long enough that no heartbeat is late on a loaded machine: each receive is counted here."""

_RECEIVED, _PUT, _COMMITTED, _UNDELETED = "received.wav", "put.wav", "committed.wav", "undeleted.wav"
_JOBS = 30


@pytest.mark.parametrize("layout", ["objects", "tar"])
async def test_worker_killed_at_each_step_of_a_job_leaves_it_to_another(
    *,
    open_site: OpenSite,
    start_worker: StartWorker,
    hold_stages: HoldStages,
    speech: Path,
    tmp_path: Path,
    layout: Layout,
) -> None:
    site = await open_site(visibility_timeout_s=_VISIBILITY_TIMEOUT_S)
    scratch = tmp_path / "scratch"
    held = await hold_stages(site, layout, scratch=scratch)
    victim = held.worker

    def is_manifest_of(key: str) -> Callable[[Call], bool]:
        return lambda call: call.key == f"{key}/metadata.json"

    gateway = site.gateway
    rules = {
        _RECEIVED: gateway.fault("s3", "GetObject", hold_before, where=is_manifest_of(_RECEIVED), times=1),
        _PUT: gateway.fault("s3", "PutObject", hold_before, where=is_manifest_of(_PUT), times=1),
        _COMMITTED: gateway.fault("s3", "PutObject", hold_after, where=is_manifest_of(_COMMITTED), times=1),
        _UNDELETED: gateway.fault("sqs", "DeleteMessage", hold_before, times=1),
    }
    await site.put_recordings(dict.fromkeys(["a.wav", *rules], speech))  # preflight reads the first one
    for key, rule in rules.items():
        await site.send(site.job(key))
        await rule.has_struck()
    committed = {_COMMITTED, _UNDELETED}
    await wait_until(lambda: _has_manifests(site, committed), what="two manifests to be committed")
    held.resume_child()  # a child that is stopped does not notice the end of its worker
    await _kill(victim)
    held.resume()
    put_before = {key: len(segments_put(site, key)) for key in (_RECEIVED, _PUT)}
    before = {key: await verified(site, key) for key in committed}
    assert await _has_manifests(site, committed)

    successor = await start_worker(site, scratch=scratch, **held.variables)
    uncommitted = {*STAGE_KEYS, _RECEIVED, _PUT}
    done = await successor.wait_for("job_succeeded", count=len(uncommitted))
    skipped = await successor.wait_for("job_skipped", count=len(committed))
    await wait_until(site.is_drained, what="all messages to be deleted")
    assert [line["receive_count"] for line in done + skipped] == [2] * (len(uncommitted) + len(committed))
    manifests = {key: await verified(site, key) for key in uncommitted | committed}
    assert {key: manifests[key] for key in committed} == before
    objects = {key: manifest["total_segments"] if layout == "objects" else 1 for key, manifest in manifests.items()}
    assert put_before == {_RECEIVED: 0, _PUT: objects[_PUT]}
    for key in (_RECEIVED, _PUT):
        assert len(segments_put(site, key, sender=successor.name)) == objects[key]
    for key in committed:
        calls = [
            call for call in site.history.calls if call.sender == successor.name and call.key.startswith(f"{key}/")
        ]
        assert [(call.operation, call.is_of_manifest) for call in calls] == [("GetObject", True)]
        assert len([call for call in site.history.of("minio", "GetObject") if call.key == key]) == 1
    assert await site.open_uploads() == []
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)
    successor.signal(signal.SIGTERM)
    assert await successor.wait() == 0
    assert not list(scratch.iterdir())


async def test_worker_killed_before_it_learns_of_its_delete_leaves_nothing(
    open_sqs: OpenSqs, open_proxy: OpenProxy, open_site: OpenSite, start_worker: StartWorker, speech: Path
) -> None:
    queues = await open_sqs()
    proxy = await open_proxy(queues.url)
    site = await open_site(visibility_timeout_s=_VISIBILITY_TIMEOUT_S, queues_url=proxy.url)
    await site.put_recordings({"a.wav": speech})
    victim = await start_worker(site)
    await victim.wait_for("worker_started")
    with site.gateway.fault("sqs", "DeleteMessage", hold_before, times=1) as held:
        await site.send(site.job("a.wav"))
        await held.has_struck()
        proxy.hold("down")
    queue = queues.sqs.queue(site.services.queues.name)
    await wait_until(lambda: not any(queue.counts()), what="the message to be deleted")
    await _kill(victim)
    [delete] = site.history.of("sqs", "DeleteMessage")
    await wait_until(lambda: delete.ended_s is not None, what="the gateway to notice that the worker is gone")
    assert delete.served_status is None
    proxy.release()
    await verified(site, "a.wav")


async def test_worker_killed_at_random_beside_another_loses_nothing(
    open_site: OpenSite, start_worker: StartWorker, open_proxy: OpenProxy, speech: Path
) -> None:
    seed = secrets.randbits(32)
    print(f"seed: {seed}")  # noqa: T201 - shown when the test fails
    jobs_before = random.Random(seed).randrange(_JOBS // 2)  # noqa: S311 - a moment, not a secret
    site = await open_site(visibility_timeout_s=_VISIBILITY_TIMEOUT_S)
    proxy = await open_proxy(site.services.servers.objects.url)
    proxy.delay_s = 0.02  # so that jobs last longer than reading the log takes
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


async def _has_manifests(site: Site, keys: set[str]) -> bool:
    return set(await site.manifests()) == keys
