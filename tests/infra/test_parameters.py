from typing import Any

import pytest

from stt_async.settings import Settings
from tests.support.stack.cloudformation import PSEUDO, refusals, resolve
from tests.support.stack.template import ESSENTIAL


def test_two_parameters_have_no_default(template: dict[str, Any]) -> None:
    assert refusals(template, ESSENTIAL) == []
    assert {name for name, each in template["Parameters"].items() if "Default" not in each} == set(ESSENTIAL)


def test_each_parameter_has_a_group_and_a_label(template: dict[str, Any]) -> None:
    interface = template["Metadata"]["AWS::CloudFormation::Interface"]
    grouped = [name for group in interface["ParameterGroups"] for name in group["Parameters"]]

    assert sorted(grouped) == sorted(template["Parameters"])
    assert sorted(interface["ParameterLabels"]) == sorted(template["Parameters"])


def test_each_parameter_has_a_description_and_a_constraint(template: dict[str, Any]) -> None:
    for name, each in template["Parameters"].items():
        assert each["Description"].endswith("."), name
        assert "AllowedValues" in each or "AllowedPattern" in each or "MinValue" in each, f"{name} accepts any value"
        if "AllowedValues" not in each:
            assert each["ConstraintDescription"].startswith("must be "), name


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
        ("AlarmEmail", "operators"),
        ("MonthlyBudgetUsd", "0"),
        ("LogRetentionDays", "8"),
    ],
)
def test_wrong_value_is_rejected_with_its_constraint(template: dict[str, Any], name: str, value: str) -> None:
    (reason,) = refusals(template, ESSENTIAL | {name: value})

    assert reason.startswith(f"{name} must be ")


def test_vpc_and_subnets_are_given_together(template: dict[str, Any]) -> None:
    vpc, subnets = {"VpcId": "vpc-0a1b2c3d"}, {"SubnetIds": "subnet-0a1b2c3d,subnet-1a1b2c3d"}

    assert refusals(template, ESSENTIAL | vpc | subnets) == []
    for alone in (vpc, subnets):
        assert refusals(template, ESSENTIAL | alone) == ["Give VpcId and SubnetIds both, or neither (the default VPC)."]


def test_defaults_equal_those_of_the_worker(template: dict[str, Any]) -> None:
    fields = {
        "MinioEndpoint": "minio_endpoint",
        "SourceBucket": "source_bucket",
        "OutputBucket": "output_bucket",
        "SegmentFormat": "format",
        "SegmentLayout": "layout",
        "SplitQueueName": "split_queue",
    }

    for parameter, field in fields.items():
        assert template["Parameters"][parameter]["Default"] == Settings.model_fields[field].default


def test_template_names_no_region_account_or_partition(template: dict[str, Any]) -> None:
    text = str(template["Resources"]) + str(template["Outputs"])

    assert PSEUDO["AWS::AccountId"] not in text
    assert "us-east-1" not in text
    assert "arn:aws:" not in text, "China and GovCloud are other partitions"


def test_outputs_name_the_settings_of_a_worker_elsewhere(template: dict[str, Any]) -> None:
    outputs = {each["Description"]: each["Value"] for each in resolve(template, ESSENTIAL).outputs.values()}
    assert outputs["STT_SPLIT_QUEUE"] == "stt-split-jobs"
    assert outputs["STT_OUTPUT_BUCKET"] == "monlamai-stt-raw-audio"
