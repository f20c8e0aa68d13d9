"""bin/deploy itself, on two emulators: the stack made, changed, looked at and deleted, and a worker at work in it."""

import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from stt_async.fleet.template import PATH, read_template
from stt_async.local.process import ChildProcess, plain_environment
from tests.support.autoscaling_front import Front, open_front
from tests.support.clouds import Cloud
from tests.support.commands import Finished, command, run_command
from tests.support.recordings import ROOT
from tests.support.waiting import wait_until

# Each starts a dozen commands.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RELEASES = "releases-of-ours"
OFFLINE = "http://127.0.0.1:9"
READING = ROOT / "stt_async" / "local" / "samples" / "reading.mp3"


@dataclass(frozen=True)
class Desk:
    """Where an operator sits: an emulated account with a bucket for releases, a template for it, a release."""

    cloud: Cloud
    front: Front
    template: Path
    artifact: Path

    def environment(self) -> dict[str, str]:
        """What a command needs to speak to the emulator."""
        return self.cloud.environment() | {"AWS_ENDPOINT_URL_AUTO_SCALING": self.front.url}

    async def run(self, name: str, stack: str, *options: str, typed: str = "", **variables: str) -> Finished:
        """Run `bin/deploy NAME --stack STACK OPTIONS`."""
        return await run_command(
            "deploy", name, "--stack", stack, *options, typed=typed, environment=self.environment() | variables
        )

    async def deploy(self, stack: str, *options: str, **parameters: str) -> Finished:
        """Run `bin/deploy deploy`, with names that no other stack has."""
        own = {
            "ArtifactBucket": RELEASES,
            "Environment": stack,
            "CreateOutputBucket": "true",
            "OutputBucket": f"{stack}-segments",
            "SplitQueueName": f"{stack}-split",
            "DownloadQueueName": f"{stack}-download",
            # moto describes these two other than they were given.
            "SubnetIds": "",
            "ImageId": read_template(PATH).parameters["ImageId"]["Default"],
        }
        words = [word for name, value in (own | parameters).items() for word in ("--set", f"{name}={value}")]
        template = ("--template", str(self.template))
        return await self.run("deploy", stack, *template, "--artifact", str(self.artifact), *words, *options)

    async def status(self, stack: str) -> dict[str, Any]:
        """What `bin/deploy status --json` says."""
        said = await self.run("status", stack, "--json")
        assert said.returncode == 0, said.stderr
        facts: dict[str, Any] = json.loads(said.stdout)
        return facts


@pytest.fixture(scope="module", params=["moto", "ministack_cloud"])
def cloud(request: pytest.FixtureRequest) -> Cloud:
    """One emulator after the other."""
    cloud: Cloud = request.getfixturevalue(request.param)
    return cloud


@asynccontextmanager
async def _sitting_at(cloud: Cloud, tmp_path: Path) -> AsyncIterator[Desk]:
    template, artifact = tmp_path / "template.json", tmp_path / "release.tar.gz"
    template.write_text(cloud.template_body)
    artifact.write_bytes(b"a release, as far as its bucket can tell")
    async with cloud.client("s3") as s3, open_front(cloud.url) as front:
        await s3.create_bucket(Bucket=RELEASES)
        yield Desk(cloud, front if cloud.name == "ministack" else Front(cloud.url), template, artifact)


@pytest_asyncio.fixture
async def desk(cloud: Cloud, tmp_path: Path) -> AsyncIterator[Desk]:
    async with _sitting_at(cloud, tmp_path) as desk:
        yield desk


@pytest_asyncio.fixture
async def moto_desk(moto: Cloud, tmp_path: Path) -> AsyncIterator[Desk]:
    async with _sitting_at(moto, tmp_path) as desk:
        yield desk


async def test_it_makes_changes_and_deletes_a_stack(desk: Desk) -> None:
    dry = await desk.deploy("whole", "--dry-run")
    assert (dry.returncode, dry.stdout) == (0, "nothing was changed\n")
    assert "SplitGroup" in dry.stderr
    assert (await desk.run("status", "whole")).returncode == 2, "a dry run left a stack"

    made = await desk.deploy("whole", "--yes")
    assert made.returncode == 0, made.stderr
    assert "CREATE_COMPLETE" in made.stderr
    facts = await desk.status("whole")
    assert facts["status"] == "CREATE_COMPLETE"
    assert (facts["desired"], facts["max"], facts["instances"]) == (0, 8, {})
    assert [queue["name"] for queue in facts["queues"]] == ["whole-split", "whole-download"]
    assert "AZRebalance" in facts["suspended"] or ("SuspendProcesses", frozenset({"AZRebalance"})) in desk.front.taken

    async with desk.cloud.client("s3") as s3:
        found = await s3.get_object(Bucket=RELEASES, Key=f"releases/{facts['release']}.tar.gz")
        assert await found["Body"].read() == desk.artifact.read_bytes()

    again = await desk.deploy("whole", "--yes")
    assert (again.returncode, again.stdout) == (0, "whole is as it should be: no changes\n"), again.stderr

    wider = await desk.deploy("whole", "--yes", SourceLinkMbps="1000")
    assert wider.returncode == 0, wider.stderr
    after = await desk.status("whole")
    assert (after["status"], after["max"], after["release"]) == ("UPDATE_COMPLETE", 24, facts["release"])

    gone = await desk.run("delete", "whole", "--yes")
    assert gone.returncode == 0, gone.stderr
    assert (await desk.run("status", "whole")).returncode == 2


async def test_enqueue_and_a_worker_work_with_what_it_made(desk: Desk) -> None:
    made = await desk.deploy("works", "--yes")
    assert made.returncode == 0, made.stderr
    key = "amdo/reading.mp3"
    async with desk.cloud.client("s3") as s3:
        await s3.create_bucket(Bucket="works-recordings")
        await s3.put_object(Bucket="works-recordings", Key=key, Body=READING.read_bytes())
    # The emulator's S3 is MinIO, too.
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


async def test_a_group_grows_shrinks_and_is_held_back(moto_desk: Desk) -> None:
    made = await moto_desk.deploy("scaled", "--yes")
    assert made.returncode == 0, made.stderr

    assert (await moto_desk.run("scale", "scaled", "--count", "3")).returncode == 0
    assert (await moto_desk.status("scaled"))["instances"] == {"InService": 3}
    fewer = await moto_desk.run("scale", "scaled", "--count", "1")
    assert "2 end" in fewer.stdout, fewer.stderr
    facts = await moto_desk.status("scaled")
    assert (facts["desired"], facts["instances"]) == (1, {"InService": 1})
    many = await moto_desk.run("scale", "scaled", "--count", "9")
    assert many.returncode == 2
    assert "may have 8 instances, not 9" in many.stderr

    assert (await moto_desk.run("suspend", "scaled")).returncode == 0
    assert (await moto_desk.status("scaled"))["suspended"] == ["AZRebalance", "AlarmNotification", "Launch"]
    assert (await moto_desk.run("resume", "scaled")).returncode == 0
    assert (await moto_desk.status("scaled"))["suspended"] == ["AZRebalance"]

    gone = await moto_desk.run("delete", "scaled", "--yes")
    assert "1 instances end" in gone.stderr
    assert gone.returncode == 0, gone.stderr


async def test_logs_are_lines_as_they_are(moto_desk: Desk) -> None:
    made = await moto_desk.deploy("logged", "--yes")
    assert made.returncode == 0, made.stderr
    line = '{"event":"worker_started","level":"info"}'
    async with moto_desk.cloud.client("logs") as logs:
        group = {"logGroupName": "/stt-async/logged/workers", "logStreamName": "i-0"}
        await logs.create_log_stream(**group)
        await logs.put_log_events(**group, logEvents=[{"timestamp": int(time.time() * 1000), "message": line}])

    shown = await moto_desk.run("logs", "logged", "--since", "10m")
    assert (shown.returncode, shown.stdout) == (0, line + "\n"), shown.stderr


async def test_logs_that_follow_show_what_comes_once_until_ctrl_c(moto_desk: Desk, tmp_path: Path) -> None:
    made = await moto_desk.deploy("followed", "--yes")
    assert made.returncode == 0, made.stderr
    lines = [f'{{"event":"poll","number":{number}}}' for number in range(3)]
    async with moto_desk.cloud.client("logs") as logs:
        group = {"logGroupName": "/stt-async/followed/workers", "logStreamName": "i-0"}
        await logs.create_log_stream(**group)

        async def log(line: str) -> None:
            await logs.put_log_events(**group, logEvents=[{"timestamp": int(time.time() * 1000), "message": line}])

        environment = plain_environment() | moto_desk.environment()
        following = command("deploy", "logs", "--stack", "followed", "--follow")
        async with ChildProcess(following, environment=environment, log=tmp_path / "followed.log") as process:
            shown: list[str] = []

            def is_shown() -> bool:
                return process.log.read_text().splitlines() == shown

            for line in lines:
                await log(line)
                shown.append(line)
                await wait_until(is_shown, what=f"{len(shown)} lines to be shown, each once")
            process.signal(signal.SIGINT)
            assert await process.wait() == 130
    assert is_shown()


async def test_a_stack_is_deleted_by_who_types_its_name(moto_desk: Desk) -> None:
    made = await moto_desk.deploy("typed", "--yes")
    assert made.returncode == 0, made.stderr

    refused = await moto_desk.run("delete", "typed", typed="yes\n")
    assert refused.returncode == 2
    assert "that is not typed: nothing was changed" in refused.stderr
    assert (await moto_desk.status("typed"))["stack"] == "typed"

    gone = await moto_desk.run("delete", "typed", typed="typed\n")
    assert gone.returncode == 0, gone.stderr
    assert (await moto_desk.run("status", "typed")).returncode == 2


async def test_a_resource_that_fails_is_named_and_the_same_again_starts_anew(
    ministack_cloud: Cloud, tmp_path: Path
) -> None:
    async with _sitting_at(ministack_cloud, tmp_path) as desk:
        broken = json.loads(ministack_cloud.template_body)
        broken["Resources"]["Broken"] = {"Type": "AWS::S3::Bucket", "Properties": {"BucketName": RELEASES}}
        desk.template.write_text(json.dumps(broken))
        failed = await desk.deploy("broken", "--yes")
        assert failed.returncode == 1, failed.stderr
        # A name that is taken is found before any resource is made, so that the failure is the stack's own.
        last = failed.stderr.splitlines()[-1]
        assert last.startswith(
            "stt-async: stack broken is ROLLBACK_COMPLETE: broken (AWS::CloudFormation::Stack): Valid"
        )

        desk.template.write_text(ministack_cloud.template_body)
        made = await desk.deploy("broken", "--yes")
        assert made.returncode == 0, made.stderr
        assert "broken is ROLLBACK_COMPLETE, left by a create that failed" in made.stderr


async def test_nothing_is_made_where_nobody_says_yes(moto_desk: Desk) -> None:
    unanswered = await moto_desk.deploy("unanswered")

    assert unanswered.returncode == 1
    assert "Go on with unanswered in us-east-1?" in unanswered.stderr
    assert (await moto_desk.run("status", "unanswered")).returncode == 2


async def test_what_a_failed_create_left_goes_first(desk: Desk) -> None:
    async with desk.cloud.client("cloudformation") as cloudformation:
        await cloudformation.create_change_set(
            StackName="leftover",
            ChangeSetName="nobody-executed-it",
            ChangeSetType="CREATE",
            TemplateBody=json.dumps({"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}}),
        )

    made = await desk.deploy("leftover", "--yes")

    assert made.returncode == 0, made.stderr
    assert "leftover is REVIEW_IN_PROGRESS, left by a create that failed" in made.stderr
    assert (await desk.status("leftover"))["status"] == "CREATE_COMPLETE"


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"SourceLinkMpbs": "100"}, "did you mean SourceLinkMbps?"),
        ({"SegmentFormat": "mp3"}, "SegmentFormat must be one of flac, wav (it is 'mp3')"),
        ({"VolumeGiB": "8"}, "VolumeGiB must be 20 to 500 GiB"),
    ],
    ids=str,
)
async def test_a_wrong_parameter_is_refused_before_any_call(
    moto_desk: Desk, parameters: dict[str, str], told: str
) -> None:
    nowhere = replace(moto_desk, cloud=replace(moto_desk.cloud, url=OFFLINE), front=Front(OFFLINE))

    refused = await nowhere.deploy("refused", "--yes", **parameters)

    assert refused.returncode == 2
    assert told in refused.stderr
    assert "Traceback" not in refused.stderr


async def test_aws_out_of_reach_is_a_sentence_and_3(moto_desk: Desk) -> None:
    nowhere = replace(moto_desk, cloud=replace(moto_desk.cloud, url=OFFLINE), front=Front(OFFLINE))

    for name in ("status", "suspend", "delete"):
        failed = await nowhere.run(name, "refused", STT_RETRY_TIMEOUT_S="0")
        assert (failed.returncode, failed.stderr.count("\n")) == (3, 1), failed.stderr
        assert "out of reach" in failed.stderr


async def test_a_bucket_of_another_region_is_refused(moto_desk: Desk) -> None:
    async with moto_desk.cloud.client("s3") as s3:
        await s3.create_bucket(
            Bucket="releases-far-away", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        )

    refused = await moto_desk.deploy("far", "--yes", ArtifactBucket="releases-far-away")

    assert refused.returncode == 2
    assert "releases-far-away is in eu-central-1, the fleet would be in us-east-1" in refused.stderr


async def test_buckets_that_are_not_there_are_named(moto_desk: Desk) -> None:
    lacking = await moto_desk.deploy("bare", "--yes", ArtifactBucket="no-such-releases")
    assert lacking.returncode == 2
    assert "aws s3 mb s3://no-such-releases --region us-east-1" in lacking.stderr

    without = await moto_desk.deploy("bare", "--yes", CreateOutputBucket="false")
    assert without.returncode == 2
    assert "--set CreateOutputBucket=true makes it" in without.stderr


async def test_a_stack_that_is_not_there_is_named(moto_desk: Desk) -> None:
    for name in ("status", "suspend", "resume", "logs", "delete"):
        failed = await moto_desk.run(name, "nobody")
        assert failed.returncode == 2
        assert "there is no stack nobody in us-east-1" in failed.stderr
