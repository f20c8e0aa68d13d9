from typing import Any

from stt_async.services.failure_records import PREFIX
from tests.support.stack.cloudformation import Stack, resolve
from tests.support.stack.policies import TLS_ONLY
from tests.support.stack.template import ESSENTIAL


def test_new_bucket_is_private_and_encrypted(stack: Stack) -> None:
    bucket = stack.properties("Segments")

    assert bucket["PublicAccessBlockConfiguration"] == dict.fromkeys(
        ["BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"],
        True,
    )
    assert bucket["OwnershipControls"] == {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    (encryption,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert encryption["ServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
    assert "AccessControl" not in bucket
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}


def test_new_bucket_accepts_tls_only(stack: Stack) -> None:
    policy = stack.properties("SegmentsPolicy")

    everything = ["<Segments.Arn>", "<Segments.Arn>/*"]
    assert policy["Bucket"] == "<Segments>"
    assert policy["PolicyDocument"]["Statement"] == [{"Action": "s3:*", "Resource": everything, **TLS_ONLY}]


def test_new_bucket_expires_open_uploads_old_versions_and_failure_records(stack: Stack) -> None:
    rules = stack.properties("Segments")["LifecycleConfiguration"]["Rules"]

    assert all(rule["Status"] == "Enabled" for rule in rules)
    assert [rule for rule in rules if "AbortIncompleteMultipartUpload" in rule and "Prefix" not in rule]
    # Segments never expire.
    assert [rule.get("Prefix") for rule in rules if "ExpirationInDays" in rule] == [PREFIX]
    assert [rule for rule in rules if "NoncurrentVersionExpiration" in rule]


def test_bucket_is_retained_when_the_stack_is_deleted(stack: Stack) -> None:
    bucket = stack.resources["Segments"]

    assert (bucket["DeletionPolicy"], bucket["UpdateReplacePolicy"]) == ("RetainExceptOnCreate", "Retain")


def test_existing_bucket_keeps_its_settings(template: dict[str, Any]) -> None:
    stack = resolve(template, ESSENTIAL | {"CreateOutputBucket": "false", "OutputBucket": "existing"})

    assert not stack.of("AWS::S3::Bucket")
    assert not stack.of("AWS::S3::BucketPolicy"), "it would replace the bucket's policy"
    assert "STT_OUTPUT_BUCKET=existing\n" in stack.properties("SplitTemplate")["LaunchTemplateData"]["UserData"]
