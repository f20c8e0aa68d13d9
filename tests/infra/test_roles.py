"""Each role allows exactly the calls of its worker, on the resources of its worker."""

import ast
import re
from collections.abc import Iterator
from typing import Any

import botocore.session
import pytest
from botocore import xform_name

import stt_async.services
from tests.support.recordings import ROOT
from tests.support.stack.cloudformation import Stack, resolve
from tests.support.stack.policies import allows, grants, listed
from tests.support.stack.template import ESSENTIAL, RELEASE

SERVICES = ("sqs", "s3", "autoscaling")

OTHER_ACTIONS = {
    "s3:HeadObject": "s3:GetObject",
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "s3:CreateMultipartUpload": "s3:PutObject",
    "s3:UploadPart": "s3:PutObject",
    "s3:CompleteMultipartUpload": "s3:PutObject",
    "sqs:ChangeMessageVisibilityBatch": "sqs:ChangeMessageVisibility",
}
"""Operations whose IAM action has another name: https://docs.aws.amazon.com/service-authorization/latest/reference/"""

OPERATORS_ONLY = {"sqs:SendMessageBatch"}
"""Called by `bin/enqueue`, not by workers."""

FOR_404 = {"s3:ListBucket"}
"""Without this permission S3 answers a GET of a missing object with 403, not 404."""

QUEUE = "arn:aws:sqs:us-east-1:123456789012:stt-split-jobs"
DOWNLOADS = "arn:aws:sqs:us-east-1:123456789012:stt-download-jobs"
BUCKET = "arn:aws:s3:::monlamai-stt-raw-audio"
GROUP = "arn:aws:autoscaling:us-east-1:123456789012:autoScalingGroup:0c1d:autoScalingGroupName/stt-async-split"
ARTIFACT = f"arn:aws:s3:::{ESSENTIAL['ArtifactBucket']}/releases/{RELEASE}.tar.gz"
LOG_STREAM = "arn:aws:logs:us-east-1:123456789012:log-group:<Logs>:log-stream:i-0abc"
MINIO_KEY = "arn:aws:ssm:us-east-1:123456789012:parameter/stt-async/prod/minio/secret-key"

POLICY_TYPES = ("AWS::IAM::ManagedPolicy", "AWS::IAM::Policy", "AWS::IAM::RolePolicy")


def _operations() -> dict[str, str]:
    """Return the operations of SERVICES, by the names of the methods in Python."""
    session = botocore.session.get_session()
    return {
        xform_name(operation): f"{service}:{operation}"
        for service in SERVICES
        for operation in session.get_service_model(service).operation_names
    }


def _names(tree: ast.AST) -> Iterator[str]:
    """Yield the names of methods called on AWS clients, and all strings, as `getattr` may take a name from one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if not ast.unparse(node.func.value).endswith("minio"):
                yield node.func.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.fixture(scope="module")
def called() -> set[str]:
    """The actions of all calls in stt_async/services, except those of operators."""
    operations = _operations()
    (folder,) = stt_async.services.__path__
    files = sorted((ROOT / folder).glob("*.py"))
    names = {name for file in files for name in _names(ast.parse(file.read_text()))}
    found = {operations[name] for name in names if name in operations} - OPERATORS_ONLY
    assert len(found) > len(SERVICES), f"found only {found} in {folder}"
    return {OTHER_ACTIONS.get(operation, operation) for operation in found}


def _actions(role: Any, services: tuple[str, ...]) -> set[str]:
    return {action for action, _ in grants(role) if action.split(":")[0] in services}


def test_split_role_allows_exactly_the_calls_of_the_worker(stack: Stack, called: set[str]) -> None:
    allowed = _actions(stack.properties("SplitRole"), SERVICES)
    assert called <= allowed <= called | FOR_404


def test_split_role_allows_every_call_of_the_boot(stack: Stack) -> None:
    user_data = stack.properties("SplitTemplate")["LaunchTemplateData"]["UserData"]
    scripts = [user_data, *(file.read_text() for file in sorted((ROOT / "infra").glob("*.sh")))]
    calls = {call for script in scripts for call in re.findall(r"\baws ([a-z0-9]+) ([a-z-]+)", script)}
    actions = {
        "s3:GetObject" if (service, command) == ("s3", "cp") else f"{service}:{command.title().replace('-', '')}"
        for service, command in calls
    }

    assert len(actions) >= 2, f"found only {calls}"
    assert actions <= {action for action, _ in grants(stack.properties("SplitRole"))}


@pytest.mark.parametrize(
    ("action", "arn"),
    [
        ("sqs:ReceiveMessage", QUEUE),
        ("sqs:DeleteMessage", QUEUE),
        ("sqs:ChangeMessageVisibility", QUEUE),
        ("sqs:GetQueueUrl", QUEUE),
        ("sqs:GetQueueAttributes", QUEUE),
        ("sqs:GetQueueUrl", f"{QUEUE}-dlq"),
        ("sqs:GetQueueAttributes", f"{QUEUE}-dlq"),
        ("sqs:SendMessage", f"{QUEUE}-dlq"),
        ("s3:GetObject", f"{BUCKET}/amdo/1.mp3/metadata.json"),
        ("s3:PutObject", f"{BUCKET}/amdo/1.mp3/segment_00001-3fa9c2d1.flac"),
        ("s3:AbortMultipartUpload", f"{BUCKET}/.stt-async-probe"),
        ("s3:ListBucket", BUCKET),
        ("s3:ListBucketMultipartUploads", BUCKET),
        ("s3:GetObject", ARTIFACT),
        ("autoscaling:CompleteLifecycleAction", GROUP),
        ("autoscaling:RecordLifecycleActionHeartbeat", GROUP),
        ("autoscaling:TerminateInstanceInAutoScalingGroup", GROUP),
        ("ssm:GetParameter", MINIO_KEY),
        ("logs:CreateLogStream", LOG_STREAM),
        ("logs:PutLogEvents", LOG_STREAM),
    ],
)
def test_split_role_allows(stack: Stack, action: str, arn: str) -> None:
    assert allows(stack.properties("SplitRole"), action, arn)


@pytest.mark.parametrize(
    ("action", "arn"),
    [
        ("sqs:SendMessage", QUEUE),
        ("sqs:ReceiveMessage", f"{QUEUE}-dlq"),
        ("sqs:ReceiveMessage", DOWNLOADS),
        ("s3:DeleteObject", f"{BUCKET}/amdo/1.mp3/metadata.json"),
        ("s3:PutObject", "arn:aws:s3:::another/amdo/1.mp3"),
        ("s3:PutObject", ARTIFACT),
        ("s3:GetObject", ARTIFACT.replace(RELEASE, "0" * 64)),
        ("ssm:GetParameter", "arn:aws:ssm:us-east-1:123456789012:parameter/stt-async/test/minio/secret-key"),
        ("autoscaling:TerminateInstanceInAutoScalingGroup", GROUP.replace("stt-async-split", "other")),
        ("autoscaling:SetDesiredCapacity", GROUP),
    ],
)
def test_split_role_denies(stack: Stack, action: str, arn: str) -> None:
    assert not allows(stack.properties("SplitRole"), action, arn)


def test_download_role_sends_split_jobs_and_reads_no_segments(stack: Stack) -> None:
    role = stack.properties("DownloadRole")

    assert allows(role, "sqs:ReceiveMessage", DOWNLOADS)
    assert allows(role, "sqs:SendMessage", f"{DOWNLOADS}-dlq")
    assert allows(role, "sqs:SendMessage", QUEUE)
    assert not allows(role, "sqs:ReceiveMessage", QUEUE)
    assert not [arn for _, arn in grants(role) if arn.startswith(BUCKET)]


def test_split_role_is_limited_to_buckets_of_this_account(stack: Stack) -> None:
    statements = [
        statement
        for policy in stack.properties("SplitRole")["Policies"]
        for statement in policy["PolicyDocument"]["Statement"]
        if any(arn.startswith(BUCKET) for arn in listed(statement["Resource"]))
    ]

    assert len(statements) == 2
    for statement in statements:
        assert statement["Condition"] == {"StringEquals": {"s3:ResourceAccount": "123456789012"}}


def test_roles_name_each_action_and_resource(stack: Stack) -> None:
    for name, role in stack.of("AWS::IAM::Role").items():
        assert "RoleName" not in role, "stacks of two regions would conflict"
        assert not role.get("ManagedPolicyArns"), "AWS's policies allow more than the worker calls, and change"
        for action, arn in grants(role):
            assert "*" not in action, f"{name}: {action}"
            assert arn != "*", f"{name}: {action}"


def test_only_ec2_assumes_a_role_and_no_role_reaches_another_service(stack: Stack) -> None:
    for name, role in stack.of("AWS::IAM::Role").items():
        assert role["AssumeRolePolicyDocument"]["Statement"] == [
            {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
        ], name
        assert _actions(role, ("ssm", "logs")) <= {"ssm:GetParameter", "logs:CreateLogStream", "logs:PutLogEvents"}
        assert {action.split(":")[0] for action, _ in grants(role)} <= {*SERVICES, "ssm", "logs"}, name
    assert not {kind for kind in POLICY_TYPES if stack.of(kind)}, "this test reads only the policies inside roles"


def test_each_kind_of_worker_has_its_own_role(stack: Stack) -> None:
    (profile,) = stack.of("AWS::IAM::InstanceProfile").values()

    assert set(stack.of("AWS::IAM::Role")) == {"SplitRole", "DownloadRole"}
    assert profile["Roles"] == ["<SplitRole>"], "no instance has the role of the download worker, which does not exist"
    launch = stack.properties("SplitTemplate")["LaunchTemplateData"]
    assert launch["IamInstanceProfile"] == {"Arn": "<SplitProfile.Arn>"}


def test_split_role_names_the_group_of_the_stack(template: dict[str, Any]) -> None:
    group = resolve(template, ESSENTIAL).properties("SplitGroup")["AutoScalingGroupName"]

    assert GROUP.endswith(f"/{group}")
