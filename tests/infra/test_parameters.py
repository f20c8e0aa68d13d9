from typing import Any

import pytest

from stt_async.settings import Settings
from tests.support.cloudformation import PSEUDO, refusals, resolve
from tests.support.template import ESSENTIAL


def test_the_essential_ones_are_enough(template: dict[str, Any]) -> None:
    assert refusals(template, ESSENTIAL) == []
    assert {name for name, each in template["Parameters"].items() if "Default" not in each} == set(ESSENTIAL)


def test_each_is_shown_once_in_a_group_with_a_label(template: dict[str, Any]) -> None:
    interface = template["Metadata"]["AWS::CloudFormation::Interface"]
    grouped = [name for group in interface["ParameterGroups"] for name in group["Parameters"]]

    assert sorted(grouped) == sorted(template["Parameters"])
    assert sorted(interface["ParameterLabels"]) == sorted(template["Parameters"])


def test_each_is_described_and_bounded(template: dict[str, Any]) -> None:
    for name, each in template["Parameters"].items():
        assert each["Description"].endswith("."), f"{name} has no sentence about it"
        assert "AllowedValues" in each or "AllowedPattern" in each or "MinValue" in each, f"{name} takes anything"
        if "AllowedValues" not in each:
            assert each["ConstraintDescription"].startswith("must be "), f"{name} does not say what it wants"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Environment", "Prod"),
        ("Environment", "a-name-of-seventeen"),
        ("ArtifactBucket", "s3://releases"),
        ("ArtifactSha256", "latest"),
        ("ArtifactSha256", "A" * 64),
        ("MinioEndpoint", "https://s3.monlam.ai"),
        ("MinioEndpoint", "s3.monlam.ai/audio"),
        ("MinioEndpoint", "s3.monlam.ai\nSTT_MINIO_SECURE=false"),
        ("MinioSecretParameter", "/stt-async/prod/minio/"),
        ("MinioSecretParameter", "/minio"),
        ("SourceLinkMbps", "42"),
        ("OutputBucket", "Segments"),
        ("CreateOutputBucket", "yes"),
        ("SegmentFormat", "mp3"),
        ("SplitQueueName", "jobs.fifo"),
        ("SplitQueueName", "q" * 77),
        ("BacklogPerInstance", "1"),
        ("IdleTimeoutSeconds", "0"),
        ("VolumeGiB", "8"),
        ("ImageId", "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-arm64"),
        ("AlarmEmail", "us"),
        ("MonthlyBudgetUsd", "0"),
        ("LogRetentionDays", "8"),
    ],
)
def test_a_wrong_one_is_refused_with_what_it_must_be(template: dict[str, Any], name: str, value: str) -> None:
    (said,) = refusals(template, ESSENTIAL | {name: value})

    assert said.startswith(f"{name} must be ")


def test_a_vpc_comes_with_its_subnets(template: dict[str, Any]) -> None:
    vpc, subnets = {"VpcId": "vpc-0a1b2c3d"}, {"SubnetIds": "subnet-0a1b2c3d,subnet-1a1b2c3d"}

    assert refusals(template, ESSENTIAL | vpc | subnets) == []
    for alone in (vpc, subnets):
        assert refusals(template, ESSENTIAL | alone) == ["Give VpcId and SubnetIds both, or neither (the default VPC)."]


def test_the_defaults_are_the_workers_own(template: dict[str, Any]) -> None:
    ours = {
        "MinioEndpoint": "minio_endpoint",
        "SourceBucket": "source_bucket",
        "OutputBucket": "output_bucket",
        "SegmentFormat": "format",
        "SegmentLayout": "layout",
        "SplitQueueName": "split_queue",
    }

    for parameter, field in ours.items():
        assert template["Parameters"][parameter]["Default"] == Settings.model_fields[field].default


def test_nothing_ties_it_to_a_region_or_an_account(template: dict[str, Any]) -> None:
    written = str(template["Resources"]) + str(template["Outputs"])

    assert PSEUDO["AWS::AccountId"] not in written
    assert "us-east-1" not in written
    assert "arn:aws:" not in written, "a partition of its own: China, GovCloud"


def test_outputs_tell_what_a_worker_elsewhere_needs(template: dict[str, Any]) -> None:
    outputs = resolve(template, ESSENTIAL).outputs

    told = {each["Description"]: each["Value"] for each in outputs.values()}
    assert told["STT_SPLIT_QUEUE"] == "stt-split-jobs"
    assert told["STT_OUTPUT_BUCKET"] == "monlamai-stt-raw-audio"
