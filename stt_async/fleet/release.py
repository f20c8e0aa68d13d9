"""Upload of releases, and checks of a deployment's buckets and queues against its parameters."""

from collections.abc import Mapping
from pathlib import Path

from botocore.exceptions import ClientError

from stt_async.errors import DependencyError, SettingsError
from stt_async.fleet.account import AwsAccount
from stt_async.services.aws import GONE, error_code, translated
from stt_async.services.bucket import Bucket

PART_BYTES = 16 * 1024**2


def release_key(sha256: str) -> str:
    """Return the key of a release; instances fetch it from there."""
    return f"releases/{sha256}.tar.gz"


async def is_uploaded(account: AwsAccount, bucket: str, sha256: str) -> bool:
    """Return whether a release is in its bucket."""
    return await _bucket(account, bucket).head(release_key(sha256)) is not None


async def upload(account: AwsAccount, bucket: str, file: Path, sha256: str) -> None:
    """Upload a release to its bucket."""
    await _bucket(account, bucket).upload(file, release_key(sha256))


def _bucket(account: AwsAccount, name: str) -> Bucket:
    return Bucket(account.s3, name, uploads=1, part_bytes=PART_BYTES, retry=account.retry)


async def check_buckets(account: AwsAccount, values: Mapping[str, str], *, is_new: bool) -> None:
    """Check the release bucket and the output bucket.

    Args:
        account: AWS account, in the fleet's region.
        values: All parameters of the template.
        is_new: Whether the stack is new; a bucket that it creates must not exist.

    Raises:
        SettingsError: a bucket is missing, exists already, or is in another region than the fleet.
    """
    artifacts, output = values["ArtifactBucket"], values["OutputBucket"]
    if not await _bucket_exists(account, artifacts):
        raise SettingsError(
            f"no bucket {artifacts} (ArtifactBucket) exists: "
            f"create it with `aws s3 mb s3://{artifacts} --region {account.region}`"
        )
    exists = await _bucket_exists(account, output)
    creates = values["CreateOutputBucket"] == "true"
    if not exists and not creates:
        raise SettingsError(f"no bucket {output} (OutputBucket) exists: create it with --set CreateOutputBucket=true")
    if exists and creates and is_new:
        raise SettingsError(f"the bucket {output} (OutputBucket) exists: use it with --set CreateOutputBucket=false")


async def check_queues(account: AwsAccount, values: Mapping[str, str], *, is_new: bool) -> None:
    """Check both queues and their dead-letter queues, as `check_buckets` does.

    Raises:
        SettingsError: a queue is missing, or exists already.
    """
    creates = values["CreateQueues"] == "true"
    if creates and not is_new:
        return
    for name in (values["SplitQueueName"], values["DownloadQueueName"]):
        for queue in (name, f"{name}-dlq"):
            exists = await _queue_exists(account, queue)
            if exists and creates:
                raise SettingsError(f"the queue {queue} exists: use all four queues with --set CreateQueues=false")
            if not exists and not creates:
                raise SettingsError(f"the queue {queue} does not exist: create all four with --set CreateQueues=true")


async def _bucket_exists(account: AwsAccount, bucket: str) -> bool:
    region = await account.retry(_bucket_region, account, bucket)
    if region is not None and region != account.region:
        raise SettingsError(
            f"the bucket {bucket} is in {region}, the fleet in {account.region}, and traffic between regions costs "
            f"$0.02 a GB: deploy with AWS_REGION={region}, or set a bucket in {account.region}"
        )
    return region is not None


async def _bucket_region(account: AwsAccount, bucket: str) -> str | None:
    with translated(f"S3 bucket {bucket}"):
        try:
            answer = await account.s3.head_bucket(Bucket=bucket)
        except ClientError as error:
            if error_code(error) in {"404", "NoSuchBucket"}:
                return None
            # From another region, S3 answers 301 or 400, and a header names the bucket's region.
            headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            if error_code(error) != "403" and "x-amz-bucket-region" in headers:
                return str(headers["x-amz-bucket-region"])
            raise
    return answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", account.region)


async def _queue_exists(account: AwsAccount, name: str) -> bool:
    async def get_url() -> None:
        with translated(f"SQS (queue {name})"):
            await account.sqs.get_queue_url(QueueName=name)

    try:
        await account.retry(get_url)
    except DependencyError as error:
        if error.code in GONE:
            return False
        raise
    return True
