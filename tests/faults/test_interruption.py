"""Scenarios F28 and F29: notices that the instance will end, read from a fake IMDSv2 by real workers."""

from pathlib import Path

import pytest

from stt_async.local.loopback import free_ports
from tests.support.commands import StartWorker, Worker
from tests.support.evidence.outputs import verified
from tests.support.fakes.autoscaling import GROUP, LAUNCH_HOOK, TERMINATION_HOOK, FakeAutoScaling
from tests.support.fakes.imds import INSTANCE_ID, FakeImds, Mode
from tests.support.faults.calls import hold_before
from tests.support.site import Counts, OpenSite, Site
from tests.support.stages import KEY, STAGE_KEYS, HoldJob, HoldStages, Layout
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)

_ACTION = {"AutoScalingGroupName": GROUP, "InstanceId": INSTANCE_ID}
_VISIBLE_WITHIN_S = 30.0
_LONG_VISIBILITY_TIMEOUT_S = 3600
"""No test lasts as long: a message that is visible was released."""


async def _wait_for_visible(site: Site, count: int) -> None:
    async def are_visible() -> bool:
        return (await site.counts()).visible == count

    await wait_until(are_visible, what=f"{count} messages to be visible", timeout_s=_VISIBLE_WITHIN_S)


async def _wait_for_held(site: Site, count: int) -> None:
    async def are_held() -> bool:
        return await site.counts() == Counts(visible=0, in_flight=count)

    await wait_until(are_held, what=f"{count} messages to be held")


def _reasons(worker: Worker) -> list[str]:
    return [line["reason"] for line in worker.events("stop_requested")]


@pytest.mark.parametrize("layout", ["objects", "tar"])
async def test_spot_notice_of_five_seconds_releases_jobs_in_every_stage(
    open_site: OpenSite, hold_stages: HoldStages, imds: FakeImds, layout: Layout
) -> None:
    site = await open_site(visibility_timeout_s=_LONG_VISIBILITY_TIMEOUT_S)
    held = await hold_stages(site, layout, **imds.environment())
    imds.arm_spot(in_s=5)
    await _wait_for_visible(site, len(STAGE_KEYS))
    assert await held.worker.wait() == 0
    assert _reasons(held.worker) == ["spot_interruption"]
    assert [letter.receive_count for letter in await site.take_messages()] == [2] * len(STAGE_KEYS)
    assert await site.manifests() == {}
    assert not list(held.worker.scratch.iterdir())


async def test_spot_notice_of_two_minutes_lets_jobs_finish_and_takes_no_other(
    site: Site, hold_job: HoldJob, imds: FakeImds
) -> None:
    held = await hold_job(site, **imds.environment())
    imds.arm_spot(in_s=120)
    await held.worker.wait_for("worker_draining")
    await site.send(site.job("later.wav"))
    held.resume()
    assert await held.worker.wait() == 0
    assert set(await site.manifests()) == {KEY}
    [later] = await site.take_messages()
    assert (later.job["source_key"], later.receive_count) == ("later.wav", 1)
    [stop] = held.worker.events("stop_requested")
    assert stop["reason"] == "spot_interruption"
    assert 60 < stop["within_s"] <= 100


async def test_job_too_long_for_the_spot_notice_is_released_long_before_its_end(
    site: Site, start_worker: StartWorker, imds: FakeImds, speech: Path
) -> None:
    worker = await start_worker(site, **imds.environment())
    measured = [f"measured-{number}.wav" for number in range(3)]
    await site.put_recordings(dict.fromkeys([*measured, "short.wav", "long.wav"], speech))
    for key in measured:
        await site.send(site.job(key))
    await worker.wait_for("job_succeeded", count=3)
    await wait_until(site.is_drained, what="the measured jobs' messages to be deleted")

    # No download starts, so no length contradicts the job's.
    with site.gateway.fault("minio", "GetObject", hold_before):
        await site.send(site.job("short.wav", source_size=speech.stat().st_size))
        await _wait_for_held(site, 1)
        await site.send(site.job("long.wav", source_size=10**13))
        await _wait_for_held(site, 2)
        imds.arm_spot(in_s=120)
        await _wait_for_visible(site, 1)
        assert (await site.counts()).in_flight == 1
        assert worker.process.returncode is None
    assert await worker.wait() == 0
    assert set(await site.manifests()) == {*measured, "short.wav"}
    assert [letter.job["source_key"] for letter in await site.take_messages()] == ["long.wav"]


async def test_rebalance_recommendation_drains_and_a_spot_notice_shortens_the_drain(
    site: Site, hold_job: HoldJob, start_worker: StartWorker, imds: FakeImds
) -> None:
    held = await hold_job(site, "finished.wav", "released.wav", **imds.environment())
    imds.arm_rebalance()
    await held.worker.wait_for("worker_draining")
    await site.send(site.job("later.wav"))
    held.resume("finished.wav")
    await held.worker.wait_for("job_succeeded")
    assert _reasons(held.worker) == ["rebalance_recommendation"]
    imds.arm_spot(in_s=5)
    await _wait_for_visible(site, 2)
    assert await held.worker.wait() == 0
    assert _reasons(held.worker) == ["rebalance_recommendation", "spot_interruption"]
    assert set(await site.manifests()) == {"finished.wav"}

    restarted = await start_worker(site, **imds.environment())  # as systemd does, until the instance ends
    assert await restarted.wait() == 0
    counts = {letter.job["source_key"]: letter.receive_count for letter in await site.take_messages()}
    assert counts == {"released.wav": 2, "later.wav": 1}


async def test_failing_metadata_service_stops_nothing_and_is_read_again_afterwards(
    site: Site, start_worker: StartWorker, imds: FakeImds, speech: Path
) -> None:
    worker = await start_worker(site, **imds.environment())
    await worker.wait_for("worker_started")
    await site.put_recordings([speech])
    modes: list[Mode] = ["error", "slow", "down"]
    for number, mode in enumerate(modes, start=1):
        await imds.set_mode(mode)
        await worker.wait_for("imds_failed", count=number)
        await site.send(site.job(speech.name, output_prefix=mode))
        await worker.wait_for("job_succeeded", count=number)
        await imds.set_mode("fine")
        await worker.wait_for("imds_recovered", count=number)
        await verified(site, mode)
    imds.expire_tokens()
    await wait_until(lambda: imds.refused_tokens, what="the worker to use the token that has expired")
    assert not worker.events("stop_requested")
    imds.arm_spot(in_s=5)
    assert await worker.wait() == 0
    assert _reasons(worker) == ["spot_interruption"]
    assert len(worker.events("imds_failed")) == len(modes)


async def test_off_ec2_the_worker_logs_it_once_and_does_its_jobs(
    site: Site, start_worker: StartWorker, speech: Path
) -> None:
    [unused_port] = free_ports(1)
    variables = {
        "AWS_EC2_METADATA_DISABLED": "false",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{unused_port}",
    }
    await site.put_recordings({"a.wav": speech})
    await site.send(site.job("a.wav"))
    worker = await start_worker(site, "--once", **variables)
    assert await worker.wait() == 0
    assert set(await site.manifests()) == {"a.wav"}
    assert len(worker.events("ec2_not_detected")) == 1
    assert not worker.events("imds_failed")


async def test_scale_in_drains_with_heartbeats_of_the_hook_and_then_continues(
    site: Site, hold_job: HoldJob, imds: FakeImds, autoscaling: FakeAutoScaling
) -> None:
    imds.arm_target_state("InService")
    held = await hold_job(site, **imds.environment(), **autoscaling.environment())
    complete = "CompleteLifecycleAction"
    joined = {**_ACTION, "LifecycleHookName": LAUNCH_HOOK, "LifecycleActionResult": "CONTINUE"}
    assert autoscaling.of(complete) == [joined]

    imds.arm_target_state("Terminated")
    beats = await wait_until(
        lambda: autoscaling.of("RecordLifecycleActionHeartbeat"), what="a heartbeat of the lifecycle action"
    )
    assert beats[0] == {**_ACTION, "LifecycleHookName": TERMINATION_HOOK}
    assert autoscaling.of(complete) == [joined]
    held.resume()
    assert await held.worker.wait() == 0
    assert _reasons(held.worker) == ["scale_in"]
    assert set(await site.manifests()) == {KEY}
    left = {**_ACTION, "LifecycleHookName": TERMINATION_HOOK, "LifecycleActionResult": "CONTINUE"}
    assert autoscaling.of(complete) == [joined, left]
    events = [line["event"] for line in held.worker.lines()]
    assert events.index("worker_stopped") < len(events) - 1 - events[::-1].index("lifecycle_action_completed")
