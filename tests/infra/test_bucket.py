from typing import Any

from stt_async.services.failure_records import PREFIX
from tests.support.cloudformation import Stack, resolve
from tests.support.policies import TLS_ONLY
from tests.support.template import ESSENTIAL


def test_a_new_bucket_is_nobody_elses(stack: Stack) -> None:
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


def test_a_new_bucket_speaks_tls_only(stack: Stack) -> None:
    policy = stack.properties("SegmentsPolicy")

    everything = ["<Segments.Arn>", "<Segments.Arn>/*"]
    assert policy["Bucket"] == "<Segments>"
    assert policy["PolicyDocument"]["Statement"] == [{"Action": "s3:*", "Resource": everything, **TLS_ONLY}]


def test_a_new_bucket_forgets_what_nobody_will_miss(stack: Stack) -> None:
    rules = stack.properties("Segments")["LifecycleConfiguration"]["Rules"]

    assert all(rule["Status"] == "Enabled" for rule in rules)
    assert [rule for rule in rules if "AbortIncompleteMultipartUpload" in rule and "Prefix" not in rule]
    # Segments never expire: what expires lies below the attempt records' own prefix, or was deleted by somebody.
    assert [rule.get("Prefix") for rule in rules if "ExpirationInDays" in rule] == [PREFIX]
    assert [rule for rule in rules if "NoncurrentVersionExpiration" in rule]


def test_segments_outlive_their_stack(stack: Stack) -> None:
    bucket = stack.resources["Segments"]

    assert (bucket["DeletionPolicy"], bucket["UpdateReplacePolicy"]) == ("RetainExceptOnCreate", "Retain")


def test_a_bucket_that_is_there_keeps_its_settings(template: dict[str, Any]) -> None:
    stack = resolve(template, ESSENTIAL | {"CreateOutputBucket": "false", "OutputBucket": "theirs"})

    assert not stack.of("AWS::S3::Bucket")
    assert not stack.of("AWS::S3::BucketPolicy"), "it would replace the policy that the bucket has"
    assert "STT_OUTPUT_BUCKET=theirs\n" in stack.properties("SplitTemplate")["LaunchTemplateData"]["UserData"]
