"""One S3 bucket: whole objects, conditional writes, and uploads of files in one PUT or in parts."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from botocore.exceptions import ClientError

from stt_async.concurrency import finish_despite_cancel, gather_or_cancel
from stt_async.errors import ClassifiedError
from stt_async.limits import AdaptiveLimit
from stt_async.retry import Retry
from stt_async.services.aws import error_code, translated

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_s3.type_defs import CompletedPartTypeDef

PARTS_IN_FLIGHT = 8
"""Parts of multipart uploads in flight, over all uploads of a bucket."""

ABORT_TIMEOUT_S = 5.0

SOURCE_ETAG = "source-etag"
"""Name in an object's metadata: the ETag of the recording that a manifest or a failure record was made from."""

_CONTENT_TYPES = {".flac": "audio/flac", ".gz": "application/gzip", ".tar": "application/x-tar", ".wav": "audio/wav"}

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class StoredObject:
    """The content of an object, and its ETag with the quotes."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class ObjectHead:
    """The size of an object, and its user metadata."""

    bytes: int
    metadata: Mapping[str, str]


class Bucket:
    """One bucket. Every method retries by the policy and raises the failure classes of `errors`.

    Memory: at most `uploads` whole files of up to `part_bytes` each, and `PARTS_IN_FLIGHT` parts of `part_bytes`.

    Args:
        client: S3 client.
        name: The bucket.
        uploads: Files uploaded in a single PUT at once.
        part_bytes: Size of a part; a larger file is uploaded in parts.
        retry: The retry policy.
    """

    def __init__(self, client: "S3Client", name: str, *, uploads: int, part_bytes: int, retry: Retry) -> None:
        self._client = client
        self._name = name
        self._uploads = AdaptiveLimit("uploads", uploads)
        self._parts = AdaptiveLimit("parts", PARTS_IN_FLIGHT)
        self._part_bytes = part_bytes
        self._retry = retry

    async def get(self, key: str) -> StoredObject | None:
        """Return an object; None if it does not exist."""
        return await self._retry(self._get, key)

    async def head(self, key: str) -> ObjectHead | None:
        """Return an object's size and metadata; None if it does not exist."""
        return await self._retry(self._head, key)

    async def keys(self, prefix: str) -> list[str]:
        """Return the keys below a prefix, up to 1,000."""
        return await self._retry(self._list_keys, prefix)

    async def put_json(self, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        """Write a JSON object; an existing one is replaced."""
        await self._retry(self._put_json, key, data, metadata)

    async def put_json_if(self, key: str, data: bytes, metadata: Mapping[str, str], *, replaces: str | None) -> bool:
        """Write a JSON object on a condition; return whether the condition held.

        Args:
            key: Its key.
            data: Its content.
            metadata: Its user metadata.
            replaces: ETag of the object it may replace; None: there must be no object.
        """
        condition = {"IfNoneMatch": "*"} if replaces is None else {"IfMatch": replaces}
        return await self._retry(self._put_json_if, key, data, metadata, condition)

    async def upload(self, file: Path, key: str) -> None:
        """Upload a file: one PUT, or a multipart upload when it is larger than a part."""
        if file.stat().st_size <= self._part_bytes:
            await self._retry(self._put_file, file, key)
            return
        # Not upload_fileobj: cancelled, it leaves the upload open and its tasks running (aioboto3 15.5).
        async with self.multipart_upload(key, _content_type(file)) as upload_id:
            parts = await gather_or_cancel(
                self._retry(self._put_part, key, upload_id, number, partial(_read, file, offset, self._part_bytes))
                for number, offset in self._part_offsets(file)
            )
            await self._retry(self._complete, file, key, upload_id, parts)

    @asynccontextmanager
    async def multipart_upload(self, key: str, content_type: str) -> AsyncIterator[str]:
        """Open a multipart upload and yield its id; abort it when the block raises or is cancelled."""
        creating = asyncio.create_task(self._retry(self._create_upload, key, content_type))
        try:
            yield await asyncio.shield(creating)
        except BaseException:
            await finish_despite_cancel(self._abort_created(key, creating))
            raise

    async def probe(self, key: str) -> None:
        """Prove that this process may read, write and abort under `key`. Leaves nothing behind."""
        await self.get(key)
        async with self.multipart_upload(key, "application/octet-stream") as upload_id:
            await self._retry(self._put_part, key, upload_id, 1, lambda: b"probe")
            await self.abort(key, upload_id)

    async def open_uploads(self, prefix: str) -> list[tuple[str, str]]:
        """Return key and upload id of the open multipart uploads below a prefix, up to 1,000."""
        return await self._retry(self._list_uploads, prefix)

    async def abort(self, key: str, upload_id: str) -> None:
        """Abort a multipart upload; one that no longer exists is no error."""
        await self._retry(self._abort, key, upload_id)

    async def _get(self, key: str) -> StoredObject | None:
        with self._translated():
            try:
                answer = await self._client.get_object(Bucket=self._name, Key=key)
            except ClientError as error:
                if error_code(error) == "NoSuchKey":
                    return None
                raise
            async with answer["Body"]:  # entered, it gives aiohttp's response, without botocore's errors
                return StoredObject(await answer["Body"].read(), answer["ETag"])

    async def _head(self, key: str) -> ObjectHead | None:
        with self._translated():
            try:
                found = await self._client.head_object(Bucket=self._name, Key=key)
            except ClientError as error:
                if error_code(error) in {"NoSuchKey", "404"}:
                    return None
                raise
        return ObjectHead(found["ContentLength"], found["Metadata"])

    async def _list_keys(self, prefix: str) -> list[str]:
        with self._translated():
            answer = await self._client.list_objects_v2(Bucket=self._name, Prefix=prefix)
        return [found["Key"] for found in answer.get("Contents", [])]

    async def _put_json(self, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        with self._translated():
            await self._put_object(key, data, "application/json", Metadata=metadata)

    async def _put_json_if(
        self, key: str, data: bytes, metadata: Mapping[str, str], condition: Mapping[str, str]
    ) -> bool:
        with self._translated():
            try:
                await self._put_object(key, data, "application/json", Metadata=metadata, **condition)
            except ClientError as error:
                # NoSuchKey: the object that If-Match names is gone.
                if error_code(error) in {"PreconditionFailed", "412", "NoSuchKey"}:
                    return False
                raise
        return True

    async def _put_file(self, file: Path, key: str) -> None:
        async with self._uploads:
            data = await asyncio.to_thread(file.read_bytes)
            with self._translated():
                await self._put_object(key, data, _content_type(file))

    async def _put_object(self, key: str, data: bytes, content_type: str, **more: Any) -> None:
        await self._client.put_object(Bucket=self._name, Key=key, Body=data, ContentType=content_type, **more)

    def _part_offsets(self, file: Path) -> Iterator[tuple[int, int]]:
        return enumerate(range(0, file.stat().st_size, self._part_bytes), start=1)

    async def _create_upload(self, key: str, content_type: str) -> str:
        with self._translated():
            answer = await self._client.create_multipart_upload(
                Bucket=self._name, Key=key, ContentType=content_type, ChecksumAlgorithm="CRC32"
            )
            return answer["UploadId"]

    async def _put_part(
        self, key: str, upload_id: str, number: int, read: Callable[[], bytes]
    ) -> "CompletedPartTypeDef":
        async with self._parts:
            data = await asyncio.to_thread(read)
            with self._translated():
                answer = await self._client.upload_part(
                    Bucket=self._name,
                    Key=key,
                    UploadId=upload_id,
                    PartNumber=number,
                    Body=data,
                    ChecksumAlgorithm="CRC32",
                )
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": answer["ChecksumCRC32"]}

    async def _complete(self, file: Path, key: str, upload_id: str, parts: "list[CompletedPartTypeDef]") -> None:
        async with self._parts:
            with self._translated():
                try:
                    await self._client.complete_multipart_upload(
                        Bucket=self._name, Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts}
                    )
                except ClientError as error:
                    # An earlier try may have completed the upload and lost its answer. The key holds a hash of the
                    # content, so an object of the same size is this file.
                    if error_code(error) != "NoSuchUpload":
                        raise
                    head = await self._head(key)
                    if head is None or head.bytes != file.stat().st_size:
                        raise

    async def _abort_created(self, key: str, creating: asyncio.Task[str]) -> None:
        """Abort the upload that `creating` opens. A failure is left to the bucket's lifecycle rule."""
        try:
            async with asyncio.timeout(ABORT_TIMEOUT_S):
                await self.abort(key, await creating)
        except (ClassifiedError, TimeoutError) as error:
            _log.warning("multipart_abort_failed", key=key, error=str(error))

    async def _list_uploads(self, prefix: str) -> list[tuple[str, str]]:
        with self._translated():
            answer = await self._client.list_multipart_uploads(Bucket=self._name, Prefix=prefix)
        return [(upload["Key"], upload["UploadId"]) for upload in answer.get("Uploads", [])]

    async def _abort(self, key: str, upload_id: str) -> None:
        with self._translated():
            try:
                await self._client.abort_multipart_upload(Bucket=self._name, Key=key, UploadId=upload_id)
            except ClientError as error:
                if error_code(error) != "NoSuchUpload":
                    raise

    def _translated(self) -> AbstractContextManager[None]:
        return translated(f"S3 bucket {self._name}")


def _content_type(file: Path) -> str:
    return _CONTENT_TYPES[file.suffix]


def _read(file: Path, offset: int, size: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)
