"""Scenarios F28 and F29: notices that the instance goes away, read from a fake IMDSv2 by real workers."""

from pathlib import Path

import pytest

from stt_async.local.loopback import free_ports
from tests.support.commands import StartWorker, Worker
from tests.support.fakes.autoscaling import GROUP, LAUNCH_HOOK, TERMINATION_HOOK, FakeAutoScaling
from tests.support.fakes.imds import INSTANCE_ID, FakeImds, Mode
from tests.support.faults.proxy import OpenProxy, Proxy
from tests.support.site import Counts, OpenSite, Site
from tests.support.stages import STAGES, HoldJob, Stage
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)

ACTION = {"AutoScalingGroupName": GROUP, "InstanceId": INSTANCE_ID}
VISIBLE_WITHIN_S = 30.0
_NEVER_BY_ITSELF_S = 3600
"""A visibility timeout that no test outlasts: what is visible was released."""


class Stuck:
    """Jobs whose downloads have begun and do not end, until they are released."""

    def __init__(self, site: Site, source: Proxy, speech: Path) -> None:
        self._site, self._source, self._speech = site, source, speech

    def environment(self) -> dict[str, str]:
        return {"STT_MINIO_ENDPOINT": self._source.endpoint}

    async def hold(self, worker: Worker, *keys: str) -> None:
        """Have the worker hold a job for each key."""
        await self._site.put_recordings(dict.fromkeys(keys, self._speech))
        self.stick()
        for key in keys:
            await self._site.send(self._site.job(key))
        await _held(self._site, len(keys))
        await self._source.holding.wait()
        assert worker.process.returncode is None

    def stick(self) -> None:
        self._source.hold("down", after=0)

    def release(self) -> None:
        self._source.release()


@pytest.fixture
async def stuck(open_proxy: OpenProxy, site: Site, speech: Path) -> Stuck:
    return Stuck(site, await open_proxy(site.services.servers.objects.url), speech)


async def _held(site: Site, count: int) -> None:
    await wait_until(lambda: _is_held(site, count), what=f"{count} messages to be held")


async def _is_held(site: Site, count: int) -> bool:
    return await site.counts() == Counts(visible=0, in_flight=count)


async def _is_visible(site: Site, count: int) -> bool:
    return (await site.counts()).visible == count


def _reasons(worker: Worker) -> list[str]:
    return [line["reason"] for line in worker.events("stop_requested")]


async def test_a_spot_notice_with_five_seconds_left_gives_everything_back_at_once(
    site: Site, stuck: Stuck, start_worker: StartWorker, imds: FakeImds
) -> None:
    worker = await start_worker(site, **stuck.environment(), **imds.environment())
    await worker.wait_for("worker_started")
    await stuck.hold(worker, "a.wav", "b.wav")
    imds.arm_spot(in_s=5)
    await wait_until(lambda: _is_visible(site, 2), what="both messages to be visible", timeout_s=VISIBLE_WITHIN_S)
    assert await worker.wait() == 0
    assert _reasons(worker) == ["spot_interruption"]
    assert [letter.receive_count for letter in await site.take_messages()] == [2, 2]
    assert await site.objects() == {}


@pytest.mark.parametrize("stage", STAGES)
async def test_a_spot_notice_at_any_step_gives_the_job_back_within_half_a_minute(
    open_site: OpenSite, hold_job: HoldJob, imds: FakeImds, stage: Stage
) -> None:
    site = await open_site(visibility_timeout_s=_NEVER_BY_ITSELF_S)
    held = await hold_job(site, stage, **imds.environment())
    imds.arm_spot(in_s=5)
    if stage == "upload of a tar":
        await held.worker.wait_for("stop_requested")
        held.let_go()  # the abort takes the same way as the parts
    await wait_until(lambda: _is_visible(site, 1), what="the message to be visible", timeout_s=VISIBLE_WITHIN_S)
    assert await held.worker.wait() == 0
    assert _reasons(held.worker) == ["spot_interruption"]
    assert await site.manifests() == {}
    assert not list(held.worker.scratch.iterdir())


async def test_a_spot_notice_with_two_minutes_left_lets_jobs_finish_and_takes_no_more(
    site: Site, stuck: Stuck, start_worker: StartWorker, imds: FakeImds
) -> None:
    worker = await start_worker(site, **stuck.environment(), **imds.environment())
    await worker.wait_for("worker_started")
    await stuck.hold(worker, "a.wav")
    imds.arm_spot(in_s=120)
    await worker.wait_for("worker_draining")
    await site.send(site.job("later.wav"))
    stuck.release()
    assert await worker.wait() == 0
    assert set(await site.manifests()) == {"a.wav"}
    [later] = await site.take_messages()
    assert (later.job["source_key"], later.receive_count) == ("later.wav", 1)
    [stop] = worker.events("stop_requested")
    assert stop["reason"] == "spot_interruption"
    assert 60 < stop["within_s"] <= 100


async def test_what_cannot_finish_before_the_interruption_goes_back_long_before_it(
    site: Site, stuck: Stuck, start_worker: StartWorker, imds: FakeImds, speech: Path
) -> None:
    worker = await start_worker(site, **stuck.environment(), **imds.environment())
    measured = [f"measured-{number}.wav" for number in range(3)]
    await site.put_recordings(dict.fromkeys(measured, speech))
    for key in measured:
        await site.send(site.job(key))
    await worker.wait_for("job_succeeded", count=3)
    await wait_until(site.is_drained, what="the measured jobs to be settled")

    # The download of the one never begins to tell its length, so nobody sees that it is not that long.
    stuck.stick()
    await site.put_recordings(dict.fromkeys(["short.wav", "long.wav"], speech))
    await site.send(site.job("short.wav", source_size=speech.stat().st_size))
    await _held(site, 1)
    await site.send(site.job("long.wav", source_size=10**13))
    await _held(site, 2)
    imds.arm_spot(in_s=120)
    await wait_until(lambda: _is_visible(site, 1), what="the long job to be visible", timeout_s=VISIBLE_WITHIN_S)
    assert (await site.counts()).in_flight == 1
    assert worker.process.returncode is None
    stuck.release()
    assert await worker.wait() == 0
    assert set(await site.manifests()) == {*measured, "short.wav"}
    assert [letter.job["source_key"] for letter in await site.take_messages()] == ["long.wav"]


async def test_a_rebalance_recommendation_alone_stops_the_taking_of_work(
    site: Site, stuck: Stuck, start_worker: StartWorker, imds: FakeImds
) -> None:
    worker = await start_worker(site, **stuck.environment(), **imds.environment())
    await worker.wait_for("worker_started")
    await stuck.hold(worker, "a.wav")
    imds.arm_rebalance()
    await worker.wait_for("worker_draining")
    await site.send(site.job("later.wav"))
    stuck.release()
    assert await worker.wait() == 0
    assert _reasons(worker) == ["rebalance_recommendation"]
    assert set(await site.manifests()) == {"a.wav"}
    assert [letter.receive_count for letter in await site.take_messages()] == [1]


async def test_of_both_notices_at_once_the_earlier_deadline_stands(
    site: Site, stuck: Stuck, start_worker: StartWorker, imds: FakeImds
) -> None:
    worker = await start_worker(site, **stuck.environment(), **imds.environment())
    await worker.wait_for("worker_started")
    await stuck.hold(worker, "a.wav")
    imds.arm_rebalance()
    imds.arm_spot(in_s=5)
    await wait_until(lambda: _is_visible(site, 1), what="the message to be visible", timeout_s=VISIBLE_WITHIN_S)
    assert await worker.wait() == 0
    assert _reasons(worker)[-1] == "spot_interruption"


async def test_an_instance_that_goes_away_takes_no_work_however_often_it_is_started(
    site: Site, start_worker: StartWorker, imds: FakeImds
) -> None:
    imds.arm_rebalance()
    await site.send(site.job("a.wav"))
    for _ in range(2):
        worker = await start_worker(site, **imds.environment())
        assert await worker.wait() == 0
    assert [letter.receive_count for letter in await site.take_messages()] == [1]


@pytest.mark.parametrize("mode", ["error", "slow", "down"])
async def test_a_metadata_service_in_trouble_stops_nothing_and_is_heard_again_after_it(
    site: Site, start_worker: StartWorker, imds: FakeImds, speech: Path, mode: Mode
) -> None:
    worker = await start_worker(site, **imds.environment())
    await worker.wait_for("worker_started")
    await imds.set_mode(mode)
    await worker.wait_for("imds_failed")
    await site.put_recordings({"a.wav": speech})
    await site.send(site.job("a.wav"))
    await worker.wait_for("job_succeeded")
    await imds.set_mode("fine")
    await worker.wait_for("imds_recovered")
    assert not worker.events("stop_requested")
    imds.arm_spot(in_s=5)
    assert await worker.wait() == 0
    assert len(worker.events("imds_failed")) == 1


async def test_a_token_that_expires_is_renewed(site: Site, start_worker: StartWorker, imds: FakeImds) -> None:
    worker = await start_worker(site, **imds.environment())
    await worker.wait_for("worker_started")
    imds.expire_tokens()
    await wait_until(lambda: imds.refused_tokens, what="the worker to use the token that has expired")
    imds.arm_spot(in_s=5)
    assert await worker.wait() == 0
    assert _reasons(worker) == ["spot_interruption"]
    assert not worker.events("imds_failed")


async def test_off_ec2_the_worker_says_so_once_and_does_without(
    site: Site, start_worker: StartWorker, speech: Path
) -> None:
    [nobody] = free_ports(1)
    variables = {
        "AWS_EC2_METADATA_DISABLED": "false",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{nobody}",
    }
    await site.put_recordings({"a.wav": speech})
    await site.send(site.job("a.wav"))
    worker = await start_worker(site, "--once", **variables)
    assert await worker.wait() == 0
    assert set(await site.manifests()) == {"a.wav"}
    assert len(worker.events("ec2_not_detected")) == 1
    assert not worker.events("imds_failed")


async def test_an_instance_that_its_group_ends_drains_and_then_lets_go(
    site: Site, stuck: Stuck, start_worker: StartWorker, imds: FakeImds, autoscaling: FakeAutoScaling
) -> None:
    imds.arm_target_state("InService")
    worker = await start_worker(site, **stuck.environment(), **imds.environment(), **autoscaling.environment())
    await worker.wait_for("worker_started")
    complete = "CompleteLifecycleAction"
    joined = {**ACTION, "LifecycleHookName": LAUNCH_HOOK, "LifecycleActionResult": "CONTINUE"}
    assert autoscaling.of(complete) == [joined]

    await stuck.hold(worker, "a.wav")
    imds.arm_target_state("Terminated")
    beats = await wait_until(
        lambda: autoscaling.of("RecordLifecycleActionHeartbeat"), what="a heartbeat of the lifecycle action"
    )
    assert beats[0] == {**ACTION, "LifecycleHookName": TERMINATION_HOOK}
    assert autoscaling.of(complete) == [joined]
    stuck.release()
    assert await worker.wait() == 0
    assert _reasons(worker) == ["scale_in"]
    assert set(await site.manifests()) == {"a.wav"}
    left = {**ACTION, "LifecycleHookName": TERMINATION_HOOK, "LifecycleActionResult": "CONTINUE"}
    assert autoscaling.of(complete) == [joined, left]
    events = [line["event"] for line in worker.lines()]
    assert events.index("worker_stopped") < len(events) - 1 - events[::-1].index("lifecycle_action_completed")


async def test_a_group_that_refuses_everything_stops_nothing(
    site: Site, start_worker: StartWorker, imds: FakeImds, autoscaling: FakeAutoScaling, speech: Path
) -> None:
    autoscaling.refuses = "AccessDenied"
    worker = await start_worker(site, **imds.environment(), **autoscaling.environment())
    await site.put_recordings({"a.wav": speech})
    await site.send(site.job("a.wav"))
    await worker.wait_for("job_succeeded")
    assert [line["hook"] for line in worker.events("lifecycle_action_not_completed")] == [LAUNCH_HOOK]
