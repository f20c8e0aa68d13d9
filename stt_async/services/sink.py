"""S3: segments out, the manifest last."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from botocore.exceptions import ClientError

from stt_async.concurrency import finish_despite_cancel, gather_or_cancel
from stt_async.errors import ClassifiedError, TransientError
from stt_async.manifest import MANIFEST_NAME, Manifest, decode, encode
from stt_async.retry import Retry
from stt_async.services.aws import error_code, object_head, translated
from stt_async.services.gate import Gate

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_s3.type_defs import CompletedPartTypeDef

PARTS_IN_FLIGHT = 8
"""Parts of multipart uploads at once, over all jobs. Memory: this times `multipart_chunksize_bytes` (64 MiB)."""

ABORT_TIMEOUT_S = 5.0

_PARAMS = "params-sha256"
_SOURCE_ETAG = "source-etag"

_log = structlog.get_logger()

_CONTENT_TYPES = {".flac": "audio/flac", ".gz": "application/gzip", ".tar": "application/x-tar", ".wav": "audio/wav"}


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands as a recording's manifest."""

    data: bytes
    etag: str

    def manifest(self) -> Manifest:
        """Parse it.

        Raises:
            PermanentError: `foreign_manifest`, it is not one of ours.
        """
        return decode(self.data)


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """What a manifest was made from, as its object's metadata tells."""

    params_sha256: str
    source_etag: str


class Sink:
    """The output bucket. Every method raises the failure classes of `errors`.

    Args:
        client: S3.
        bucket: The output bucket.
        uploads: How many objects are on their way at once, over all jobs. A segment in flight is held in memory whole
            (30 s are at most 0.96 MB).
        multipart_chunksize_bytes: Size of a part; what is no larger than one part goes in a single PUT.
        retry: The policy.
    """

    def __init__(
        self, client: "S3Client", *, bucket: str, uploads: int, multipart_chunksize_bytes: int, retry: Retry
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._uploads = Gate("uploads", uploads)
        self._parts = Gate("parts", PARTS_IN_FLIGHT)
        self._chunksize_bytes = multipart_chunksize_bytes
        self._retry = retry

    async def read_manifest(self, prefix: str) -> Standing | None:
        """GET what stands below `prefix` (with its slash) as the manifest; None if nothing does."""
        return await self._retry(self._get, prefix + MANIFEST_NAME)

    async def head_manifest(self, prefix: str) -> ManifestHead | None:
        """HEAD the manifest below `prefix`: what it was made from, without its segments; None if there is none."""
        return await self._retry(self._head, prefix + MANIFEST_NAME)

    async def put(self, file: Path, key: str) -> None:
        """Upload one file: a PUT, or a multipart upload when it is larger than a part."""
        if file.stat().st_size > self._chunksize_bytes:
            await self._put_multipart(file, key)
        else:
            await self._retry(self._put_file, file, key)

    async def commit(self, manifest: Manifest, *, replaces: str | None) -> Manifest:
        """Write the manifest, which makes the output exist; then abort what killed attempts at it left open.

        Args:
            manifest: What to commit; everything it lists is already there.
            replaces: ETag of the manifest it may replace; None if there must be none.

        Returns:
            The manifest that now stands: this one, or the one of who was faster.
        """
        key = manifest.output_prefix + MANIFEST_NAME
        condition = {"IfNoneMatch": "*"} if replaces is None else {"IfMatch": replaces}
        head = {_PARAMS: manifest.params_sha256, _SOURCE_ETAG: manifest.source_etag or ""}
        if await self._retry(self._put_if, key, encode(manifest), head, condition):
            if manifest.archive is not None:
                await self._abort_abandoned(manifest.output_prefix)
            return manifest
        winner = await self.read_manifest(manifest.output_prefix)
        if winner is None:
            raise TransientError("manifest_vanished", f"{key} stood in the way of the commit and is now gone")
        return winner.manifest()

    async def probe(self) -> None:
        """Prove that we may write and abort, and that a missing object reads as missing. Leaves nothing behind."""
        key = ".stt-async-probe"
        await self._retry(self._get, key)
        async with self._multipart_upload(key, "application/octet-stream") as upload_id:
            await self._retry(self._put_part, key, upload_id, 1, lambda: b"probe")
            await self._retry(self._abort_upload, key, upload_id)

    async def count_open_uploads(self) -> int:
        """Return how many multipart uploads were neither completed nor aborted, up to 1,000."""
        return len(await self._retry(self._list_uploads, ""))

    async def _get(self, key: str) -> Standing | None:
        with translated(f"S3 bucket {self._bucket}"):
            try:
                answer = await self._client.get_object(Bucket=self._bucket, Key=key)
            except ClientError as error:
                if error_code(error) == "NoSuchKey":
                    return None
                raise
            async with answer["Body"]:  # entered, it gives aiohttp's response, without botocore's errors
                return Standing(await answer["Body"].read(), answer["ETag"])

    async def _head(self, key: str) -> ManifestHead | None:
        found = await object_head(self._client, self._bucket, key)
        if found is None:
            return None
        return ManifestHead(found["Metadata"].get(_PARAMS, ""), found["Metadata"].get(_SOURCE_ETAG, ""))

    async def _put_file(self, file: Path, key: str) -> None:
        async with self._uploads:
            data = await asyncio.to_thread(file.read_bytes)
            with translated(f"S3 bucket {self._bucket}"):
                await self._client.put_object(Bucket=self._bucket, Key=key, Body=data, ContentType=_content_type(file))

    async def _put_if(self, key: str, data: bytes, head: dict[str, str], condition: dict[str, Any]) -> bool:
        with translated(f"S3 bucket {self._bucket}"):
            try:
                await self._client.put_object(
                    Bucket=self._bucket,
                    Key=key,
                    Body=data,
                    ContentType="application/json",
                    Metadata=head,
                    **condition,
                )
            except ClientError as error:
                # NoSuchKey: what If-Match wanted to replace is gone.
                if error_code(error) in {"PreconditionFailed", "412", "NoSuchKey"}:
                    return False
                raise
        return True

    async def _put_multipart(self, file: Path, key: str) -> None:
        # Not upload_fileobj: cancelled, it leaves the upload open and its tasks running (aioboto3 15.5).
        async with self._multipart_upload(key, _content_type(file)) as upload_id:
            parts = await gather_or_cancel(
                self._retry(self._put_part, key, upload_id, number, partial(_read, file, offset, self._chunksize_bytes))
                for number, offset in self._part_offsets(file)
            )
            await self._retry(self._complete, file, key, upload_id, parts)

    @asynccontextmanager
    async def _multipart_upload(self, key: str, content_type: str) -> AsyncIterator[str]:
        """Open a multipart upload; leave by an error or a cancellation, and it is aborted."""
        creating = asyncio.create_task(self._retry(self._create_upload, key, content_type))
        try:
            yield await asyncio.shield(creating)
        except BaseException:
            await finish_despite_cancel(self._abort(key, creating))
            raise

    def _part_offsets(self, file: Path) -> Iterator[tuple[int, int]]:
        return enumerate(range(0, file.stat().st_size, self._chunksize_bytes), start=1)

    async def _create_upload(self, key: str, content_type: str) -> str:
        with translated(f"S3 bucket {self._bucket}"):
            answer = await self._client.create_multipart_upload(
                Bucket=self._bucket, Key=key, ContentType=content_type, ChecksumAlgorithm="CRC32"
            )
            return answer["UploadId"]

    async def _put_part(
        self, key: str, upload_id: str, number: int, read: Callable[[], bytes]
    ) -> "CompletedPartTypeDef":
        async with self._parts:
            data = await asyncio.to_thread(read)
            with translated(f"S3 bucket {self._bucket}"):
                answer = await self._client.upload_part(
                    Bucket=self._bucket,
                    Key=key,
                    UploadId=upload_id,
                    PartNumber=number,
                    Body=data,
                    ChecksumAlgorithm="CRC32",
                )
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": answer["ChecksumCRC32"]}

    async def _complete(self, file: Path, key: str, upload_id: str, parts: list["CompletedPartTypeDef"]) -> None:
        async with self._parts:
            with translated(f"S3 bucket {self._bucket}"):
                try:
                    await self._client.complete_multipart_upload(
                        Bucket=self._bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts}
                    )
                except ClientError as error:
                    # S3 had done it already, when an answer was lost on the way and this is another try.
                    if error_code(error) != "NoSuchUpload" or not await self._stands(file, key):
                        raise

    async def _stands(self, file: Path, key: str) -> bool:
        """Whether a file is there as an object. Its key holds a hash of its content, so the same size will do."""
        found = await object_head(self._client, self._bucket, key)
        return found is not None and found["ContentLength"] == file.stat().st_size

    async def _abort(self, key: str, creating: asyncio.Task[str]) -> None:
        """Abort what `creating` opened, or is about to; what fails here is left to the bucket's lifecycle rule."""
        try:
            async with asyncio.timeout(ABORT_TIMEOUT_S):
                await self._abort_upload(key, await creating)
        except (ClassifiedError, TimeoutError) as error:
            _log.warning("multipart_abort_failed", key=key, error=str(error))

    async def _abort_abandoned(self, prefix: str) -> None:
        """Abort the multipart uploads of a recording whose manifest stands: nobody needs them any more."""
        try:
            async with asyncio.timeout(ABORT_TIMEOUT_S):
                for key, upload_id in await self._retry(self._list_uploads, prefix):
                    # Further down lie the prefixes of other recordings (`a/` and `a/b.mp3/`).
                    if "/" not in key.removeprefix(prefix):
                        await self._retry(self._abort_upload, key, upload_id)
                        _log.info("multipart_abandoned_aborted", key=key)
        except (ClassifiedError, TimeoutError) as error:
            _log.warning("multipart_abort_failed", key=prefix, error=str(error))

    async def _list_uploads(self, prefix: str) -> list[tuple[str, str]]:
        with translated(f"S3 bucket {self._bucket}"):
            answer = await self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=prefix)
        return [(upload["Key"], upload["UploadId"]) for upload in answer.get("Uploads", [])]

    async def _abort_upload(self, key: str, upload_id: str) -> None:
        with translated(f"S3 bucket {self._bucket}"):
            try:
                await self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)
            except ClientError as error:
                if error_code(error) != "NoSuchUpload":
                    raise


def _content_type(file: Path) -> str:
    return _CONTENT_TYPES[file.suffix]


def _read(file: Path, offset: int, size: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)
