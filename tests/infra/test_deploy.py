"""bin/deploy on two emulators: creates, updates, shows and deletes a stack, and a worker uses it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from stt_async.fleet.template import PATH, read_template
from tests.support.commands import Finished, run_command
from tests.support.fakes.autoscaling_front import Front, open_front
from tests.support.fakes.clouds import Cloud
from tests.support.recordings import ROOT

# Each test starts up to a dozen commands.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RELEASES = "releases"
OFFLINE = "http://127.0.0.1:9"
READING = ROOT / "stt_async" / "local" / "samples" / "reading.mp3"


@dataclass(frozen=True)
class Desk:
    """An operator's workplace: an emulated account with a bucket for releases, a template that fits it, a release."""

    cloud: Cloud
    front: Front
    template: Path
    artifact: Path

    def environment(self) -> dict[str, str]:
        return self.cloud.environment() | {"AWS_ENDPOINT_URL_AUTO_SCALING": self.front.url}

    async def run(self, name: str, stack: str, *options: str, typed: str = "", **variables: str) -> Finished:
        """Run `bin/deploy NAME --stack STACK OPTIONS`."""
        return await run_command(
            "deploy", name, "--stack", stack, *options, typed=typed, environment=self.environment() | variables
        )

    def offline(self) -> "Desk":
        """Return a desk that cannot reach its account."""
        return replace(self, cloud=replace(self.cloud, url=OFFLINE), front=Front(OFFLINE))

    async def create(self, stack: str) -> None:
        """Deploy a new stack."""
        created = await self.deploy(stack, "--yes")
        assert created.returncode == 0, created.stderr

    async def deploy(self, stack: str, *options: str, **parameters: str) -> Finished:
        """Run `bin/deploy deploy`, with names that are unique on the emulator."""
        own = {
            "ArtifactBucket": RELEASES,
            "Environment": stack,
            "CreateOutputBucket": "true",
            "OutputBucket": f"{stack}-segments",
            "SplitQueueName": f"{stack}-split",
            "DownloadQueueName": f"{stack}-download",
            # Moto describes these two with other values than given.
            "SubnetIds": "",
            "ImageId": read_template(PATH).parameters["ImageId"]["Default"],
        }
        words = [word for name, value in (own | parameters).items() for word in ("--set", f"{name}={value}")]
        template = ("--template", str(self.template))
        return await self.run("deploy", stack, *template, "--artifact", str(self.artifact), *words, *options)

    async def status(self, stack: str) -> dict[str, Any]:
        """Return the output of `bin/deploy status --json`."""
        finished = await self.run("status", stack, "--json")
        assert finished.returncode == 0, finished.stderr
        status: dict[str, Any] = json.loads(finished.stdout)
        return status


@pytest.fixture(scope="module", params=["moto", "ministack_cloud"])
def cloud(request: pytest.FixtureRequest) -> Cloud:
    cloud: Cloud = request.getfixturevalue(request.param)
    return cloud


@asynccontextmanager
async def _open_desk(cloud: Cloud, tmp_path: Path) -> AsyncIterator[Desk]:
    template, artifact = tmp_path / "template.json", tmp_path / "release.tar.gz"
    template.write_text(cloud.template_body)
    artifact.write_bytes(b"any bytes")
    async with cloud.client("s3") as s3, open_front(cloud.url) as front:
        await s3.create_bucket(Bucket=RELEASES)
        yield Desk(cloud, front if cloud.name == "ministack" else Front(cloud.url), template, artifact)


@pytest_asyncio.fixture
async def desk(cloud: Cloud, tmp_path: Path) -> AsyncIterator[Desk]:
    async with _open_desk(cloud, tmp_path) as desk:
        yield desk


@pytest_asyncio.fixture
async def moto_desk(moto: Cloud, tmp_path: Path) -> AsyncIterator[Desk]:
    async with _open_desk(moto, tmp_path) as desk:
        yield desk


async def test_stack_is_created_updated_and_deleted(desk: Desk) -> None:
    dry = await desk.deploy("whole", "--dry-run")
    assert (dry.returncode, dry.stdout) == (0, "nothing was changed\n")
    assert "SplitGroup" in dry.stderr
    assert (await desk.run("status", "whole")).returncode == 2, "a dry run left a stack"

    created = await desk.deploy("whole", "--yes")
    assert created.returncode == 0, created.stderr
    assert "CREATE_COMPLETE" in created.stderr
    status = await desk.status("whole")
    assert status["status"] == "CREATE_COMPLETE"
    assert (status["desired"], status["max"], status["instances"]) == (0, 8, {})
    assert [queue["name"] for queue in status["queues"]] == ["whole-split", "whole-download"]
    assert "AZRebalance" in status["suspended"] or ("SuspendProcesses", {"AZRebalance"}) in desk.front.answered

    async with desk.cloud.client("s3") as s3:
        found = await s3.get_object(Bucket=RELEASES, Key=f"releases/{status['release']}.tar.gz")
        assert await found["Body"].read() == desk.artifact.read_bytes()

    again = await desk.deploy("whole", "--yes")
    assert again.returncode == 0, again.stderr
    assert "no changes" in again.stdout

    wider = await desk.deploy("whole", "--yes", SourceLinkMbps="1000")
    assert wider.returncode == 0, wider.stderr
    after = await desk.status("whole")
    assert (after["status"], after["max"], after["release"]) == ("UPDATE_COMPLETE", 24, status["release"])

    deleted = await desk.run("delete", "whole", "--yes")
    assert deleted.returncode == 0, deleted.stderr
    assert (await desk.run("status", "whole")).returncode == 2


async def test_enqueue_and_worker_use_the_stack(desk: Desk) -> None:
    await desk.create("works")
    key = "amdo/reading.mp3"
    async with desk.cloud.client("s3") as s3:
        await s3.create_bucket(Bucket="works-recordings")
        await s3.put_object(Bucket="works-recordings", Key=key, Body=READING.read_bytes())
    # The emulator's S3 also serves as MinIO.
    keys = desk.cloud.environment()
    environment = desk.environment() | {
        "STT_MINIO_ENDPOINT": desk.cloud.url.removeprefix("http://"),
        "STT_MINIO_SECURE": "false",
        "STT_MINIO_ACCESS_KEY": keys["AWS_ACCESS_KEY_ID"],
        "STT_MINIO_SECRET_KEY": keys["AWS_SECRET_ACCESS_KEY"],
        "STT_SOURCE_BUCKET": "works-recordings",
        "STT_OUTPUT_BUCKET": "works-segments",
        "STT_SPLIT_QUEUE": "works-split",
        "STT_WAIT_TIME_S": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }

    sent = await run_command("enqueue", "--collection", "amdo", "--json", environment=environment)
    assert sent.lines()[0]["sent"] == 1, sent.stderr
    assert (await desk.status("works"))["queues"][0]["waiting"] == 1
    worked = await run_command("worker", "--once", environment=environment, timeout_s=120)
    assert worked.returncode == 0, worked.stderr

    async with desk.cloud.client("s3") as s3:
        found = await s3.get_object(Bucket="works-segments", Key=f"{key}/metadata.json")
        manifest = json.loads(await found["Body"].read())
    assert manifest["status"] == "ok"
    (split, _) = (await desk.status("works"))["queues"]
    assert (split["waiting"], split["in_flight"], split["dead_letters"]) == (0, 0, 0)


async def test_group_is_scaled_suspended_and_resumed(moto_desk: Desk) -> None:
    await moto_desk.create("scaled")

    assert (await moto_desk.run("scale", "scaled", "--count", "3")).returncode == 0
    assert (await moto_desk.status("scaled"))["instances"] == {"InService": 3}
    fewer = await moto_desk.run("scale", "scaled", "--count", "1")
    assert "2 end" in fewer.stdout, fewer.stderr
    status = await moto_desk.status("scaled")
    assert (status["desired"], status["instances"]) == (1, {"InService": 1})
    too_many = await moto_desk.run("scale", "scaled", "--count", "9")
    assert too_many.returncode == 2
    assert "may have 8 instances, not 9" in too_many.stderr

    assert (await moto_desk.run("suspend", "scaled")).returncode == 0
    assert (await moto_desk.status("scaled"))["suspended"] == ["AZRebalance", "AlarmNotification", "Launch"]
    assert (await moto_desk.run("resume", "scaled")).returncode == 0
    assert (await moto_desk.status("scaled"))["suspended"] == ["AZRebalance"]

    deleted = await moto_desk.run("delete", "scaled", "--yes")
    assert "1 instances end" in deleted.stderr
    assert deleted.returncode == 0, deleted.stderr


async def test_stack_is_deleted_only_when_its_name_is_typed(moto_desk: Desk) -> None:
    await moto_desk.create("typed")

    refused = await moto_desk.run("delete", "typed", typed="yes\n")
    assert refused.returncode == 2
    assert "nothing was changed" in refused.stderr
    assert (await moto_desk.status("typed"))["stack"] == "typed"

    deleted = await moto_desk.run("delete", "typed", typed="typed\n")
    assert deleted.returncode == 0, deleted.stderr
    assert (await moto_desk.run("status", "typed")).returncode == 2


async def test_failed_create_names_the_reason_and_is_replaced_by_the_next(
    ministack_cloud: Cloud, tmp_path: Path
) -> None:
    async with _open_desk(ministack_cloud, tmp_path) as desk:
        broken = json.loads(ministack_cloud.template_body)
        broken["Resources"]["Broken"] = {"Type": "AWS::S3::Bucket", "Properties": {"BucketName": RELEASES}}
        desk.template.write_text(json.dumps(broken))
        failed = await desk.deploy("broken", "--yes")
        assert failed.returncode == 1, failed.stderr
        # CloudFormation detects a name conflict before it creates resources, so the stack itself fails.
        last = failed.stderr.splitlines()[-1]
        assert last.startswith(
            "stt-async: stack broken is ROLLBACK_COMPLETE: broken (AWS::CloudFormation::Stack): Valid"
        )

        desk.template.write_text(ministack_cloud.template_body)
        created = await desk.deploy("broken", "--yes")
        assert created.returncode == 0, created.stderr
        assert "broken is ROLLBACK_COMPLETE" in created.stderr


async def test_unanswered_question_creates_nothing(moto_desk: Desk) -> None:
    unanswered = await moto_desk.deploy("unanswered")

    assert unanswered.returncode == 1
    assert "unanswered in us-east-1?" in unanswered.stderr
    assert (await moto_desk.run("status", "unanswered")).returncode == 2


async def test_stack_without_resources_is_deleted_before_a_create(desk: Desk) -> None:
    async with desk.cloud.client("cloudformation") as cloudformation:
        await cloudformation.create_change_set(
            StackName="leftover",
            ChangeSetName="not-executed",
            ChangeSetType="CREATE",
            TemplateBody=json.dumps({"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}}),
        )

    created = await desk.deploy("leftover", "--yes")

    assert created.returncode == 0, created.stderr
    assert "leftover is REVIEW_IN_PROGRESS" in created.stderr
    assert (await desk.status("leftover"))["status"] == "CREATE_COMPLETE"


async def test_wrong_parameters_are_rejected_before_any_call(moto_desk: Desk) -> None:
    rejected = await moto_desk.offline().deploy("rejected", "--yes", SourceLinkMpbs="100", SegmentFormat="mp3")

    assert rejected.returncode == 2
    assert "did you mean SourceLinkMbps?" in rejected.stderr
    assert "SegmentFormat must be one of flac, wav (it is 'mp3')" in rejected.stderr
    assert "Traceback" not in rejected.stderr


async def test_aws_out_of_reach_exits_3_with_one_sentence(moto_desk: Desk) -> None:
    for name in ("status", "suspend", "delete"):
        failed = await moto_desk.offline().run(name, "any", STT_RETRY_TIMEOUT_S="0")
        assert (failed.returncode, failed.stderr.count("\n")) == (3, 1), failed.stderr
        assert "out of reach" in failed.stderr


async def test_missing_bucket_or_bucket_of_another_region_is_rejected(moto_desk: Desk) -> None:
    async with moto_desk.cloud.client("s3") as s3:
        await s3.create_bucket(
            Bucket="releases-far-away", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        )

    far = await moto_desk.deploy("bare", "--yes", ArtifactBucket="releases-far-away")
    assert far.returncode == 2
    assert "releases-far-away is in eu-central-1" in far.stderr

    no_releases = await moto_desk.deploy("bare", "--yes", ArtifactBucket="no-such-releases")
    assert no_releases.returncode == 2
    assert "aws s3 mb s3://no-such-releases --region us-east-1" in no_releases.stderr

    no_output = await moto_desk.deploy("bare", "--yes", CreateOutputBucket="false")
    assert no_output.returncode == 2
    assert "--set CreateOutputBucket=true" in no_output.stderr


async def test_missing_stack_exits_2_with_its_name(moto_desk: Desk) -> None:
    for name in ("status", "suspend", "resume", "delete"):
        failed = await moto_desk.run(name, "missing")
        assert failed.returncode == 2
        assert "stack missing does not exist in us-east-1" in failed.stderr
