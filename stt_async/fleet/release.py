"""Releases, buckets and queues of a deployment: in the fleet's region, there or not there as the parameters say."""

from collections.abc import Mapping
from pathlib import Path

from botocore.exceptions import ClientError

from stt_async.errors import DependencyError, SettingsError
from stt_async.fleet.account import AwsAccount
from stt_async.services.aws import GONE, error_code, translated
from stt_async.services.bucket import Bucket

PART_BYTES = 16 * 1024**2


def release_key(sha256: str) -> str:
    """Return where a release lies in its bucket; instances fetch it from there."""
    return f"releases/{sha256}.tar.gz"


async def is_uploaded(account: AwsAccount, bucket: str, sha256: str) -> bool:
    """Whether a release is in its bucket."""
    return await _bucket(account, bucket).head(release_key(sha256)) is not None


async def upload(account: AwsAccount, bucket: str, file: Path, sha256: str) -> None:
    """Put a release into its bucket."""
    await _bucket(account, bucket).upload(file, release_key(sha256))


def _bucket(account: AwsAccount, name: str) -> Bucket:
    return Bucket(account.s3, name, uploads=1, part_bytes=PART_BYTES, retry=account.retry)


async def check_buckets(account: AwsAccount, values: Mapping[str, str], *, is_new: bool) -> None:
    """Hold the buckets against the parameters.

    Args:
        account: Where.
        values: Of all parameters.
        is_new: Of the stack: what it shall make must not be there.

    Raises:
        SettingsError: a bucket is missing, in the way, or in another region than the fleet.
    """
    artifacts, output = values["ArtifactBucket"], values["OutputBucket"]
    if not await _is_here(account, artifacts):
        raise SettingsError(
            f"there is no bucket {artifacts} (ArtifactBucket) for the releases: "
            f"make it with `aws s3 mb s3://{artifacts} --region {account.region}`"
        )
    there = await _is_here(account, output)
    creates = values["CreateOutputBucket"] == "true"
    if not there and not creates:
        raise SettingsError(
            f"there is no bucket {output} (OutputBucket) for the segments: --set CreateOutputBucket=true makes it"
        )
    if there and creates and is_new:
        raise SettingsError(f"the bucket {output} (OutputBucket) is there: take it with --set CreateOutputBucket=false")


async def check_queues(account: AwsAccount, values: Mapping[str, str], *, is_new: bool) -> None:
    """Hold the queues against the parameters.

    Raises:
        SettingsError: a queue is missing, or in the way.
    """
    creates = values["CreateQueues"] == "true"
    if creates and not is_new:
        return
    for name in (values["SplitQueueName"], values["DownloadQueueName"]):
        for queue in (name, f"{name}-dlq"):
            there = await _is_queue(account, queue)
            if there and creates:
                raise SettingsError(
                    f"the queue {queue} is there, of an earlier stack, say: take all four with --set CreateQueues=false"
                )
            if not there and not creates:
                raise SettingsError(f"there is no queue {queue}: --set CreateQueues=true makes all four")


async def _is_here(account: AwsAccount, bucket: str) -> bool:
    region = await account.retry(_bucket_region, account, bucket)
    if region is not None and region != account.region:
        raise SettingsError(
            f"the bucket {bucket} is in {region}, the fleet would be in {account.region}: traffic between regions "
            f"costs $0.02 a GB. Deploy with AWS_REGION={region}, or name a bucket in {account.region}"
        )
    return region is not None


async def _bucket_region(account: AwsAccount, bucket: str) -> str | None:
    with translated(f"S3 bucket {bucket}"):
        try:
            answer = await account.s3.head_bucket(Bucket=bucket)
        except ClientError as error:
            if error_code(error) in {"404", "NoSuchBucket"}:
                return None
            # Asked in the wrong region, S3 answers 301 or 400, and says where the bucket is.
            headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            if error_code(error) != "403" and "x-amz-bucket-region" in headers:
                return str(headers["x-amz-bucket-region"])
            raise
    return answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", account.region)


async def _is_queue(account: AwsAccount, name: str) -> bool:
    async def ask() -> None:
        with translated(f"SQS (queue {name})"):
            await account.sqs.get_queue_url(QueueName=name)

    try:
        await account.retry(ask)
    except DependencyError as error:
        if error.code in GONE:
            return False
        raise
    return True
