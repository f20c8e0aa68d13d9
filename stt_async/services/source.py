"""Recordings, from MinIO or an S3 bucket. Only GET and LIST are used: MinIO behind its CDN answers HEAD with 403."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError
from miniopy_async.api import Minio

from stt_async.errors import DependencyError, OutageError, PermanentError, TransientError
from stt_async.job import SplitJob
from stt_async.limits import AdaptiveLimit
from stt_async.retry import Retry
from stt_async.services.aws import error_code, translated
from stt_async.services.download import TOO_SLOW, Download
from stt_async.services.minio import ReplacedError, minio_client, missing, translated_minio
from stt_async.settings import Settings

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_s3.type_defs import GetObjectRequestTypeDef

CHUNK_BYTES = 1024**2
"""A download holds two or three chunks in memory, whatever the size of its recording."""

PROBED = 5
"""Most recordings that a probe reads: some may be forbidden, or deleted since they were listed."""

PAGE = 1000
"""Objects in one answer to a LIST. A listing that ends here sends no further request."""


@dataclass(frozen=True, slots=True)
class SourceObject:
    """A recording in a listing."""

    key: str
    size_bytes: int
    etag: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """A finished download."""

    etag: str | None
    """Without quotes."""
    receiving_s: float
    """Time spent receiving bodies."""


@dataclass(frozen=True, slots=True)
class _Stream:
    """A response whose body is not read yet."""

    start_bytes: int
    """Where in the object the body begins; 0 if the server ignored the Range."""
    length_bytes: int | None
    etag: str | None
    chunks: AsyncIterator[bytes]


class Source:
    """The recordings. Every method raises the failure classes of `errors`.

    Args:
        minio: Client of the MinIO server, without retries.
        s3: Client for jobs of source type `s3`.
        downloads: Most downloads at once.
        retry: The policy of one call. A download may take longer: it is resumed as long as it makes progress.
    """

    def __init__(self, minio: Minio, s3: "S3Client", *, downloads: int, retry: Retry) -> None:
        self._minio = minio
        self._s3 = s3
        self._downloads = AdaptiveLimit("downloads", downloads)
        self._retry = retry

    async def fetch(self, job: SplitJob, to: Path) -> Fetched:
        """Download a recording into the file `to`; check its length, and its MD5 if the ETag is one.

        A broken download is resumed (`Range`, `If-Match`). If the recording was replaced meanwhile, it starts again.

        Raises:
            PermanentError: `source_missing`, or `source_changed` since the job was made.
            TransientError: no more bytes arrive (`connection_broken`), or too few (`too_slow`).
        """
        download = Download(to)
        while True:
            before_bytes = download.offset_bytes
            try:
                await self._retry(self._continue, job, download)
            except TransientError as error:
                if error.code == TOO_SLOW or download.offset_bytes <= before_bytes:
                    raise
            else:
                return Fetched(download.etag, download.receiving_s)

    async def pages(self, bucket: str, prefix: str) -> AsyncIterator[list[SourceObject]]:
        """Yield the objects of a bucket in the order of their keys, in pages of up to 1,000."""
        last_key: str | None = None
        while page := await self._retry(self._page, bucket, prefix, last_key):
            yield page
            last_key = page[-1].key

    async def probe(self, bucket: str) -> str:
        """Prove that this process may list the bucket and read from it; return the finding as text."""
        page = await self._retry(self._page, bucket, "", None)
        unreadable: DependencyError | PermanentError | None = None
        for found in page[:: max(1, -(-len(page) // PROBED))]:
            try:
                await self._retry(self._read_start, bucket, found.key)
            except OutageError:
                raise
            except (DependencyError, PermanentError) as error:
                unreadable = error
            else:
                return f"listed, and read {found.key}"
        if unreadable is not None:
            raise unreadable
        return "listed; it is empty, so nothing was read"

    async def _page(self, bucket: str, prefix: str, start_after: str | None) -> list[SourceObject]:
        page: list[SourceObject] = []
        with translated_minio(f"MinIO bucket {bucket}"):
            listing = self._minio.list_objects(bucket, prefix=prefix, recursive=True, start_after=start_after)
            async for entry in listing:
                if entry.object_name is not None and not entry.is_dir:
                    page.append(SourceObject(entry.object_name, entry.size or 0, (entry.etag or "").strip('"')))
                if len(page) == PAGE:
                    break
        return page

    async def _read_start(self, bucket: str, key: str) -> None:
        with translated_minio(f"MinIO ({bucket}/{key})"):
            async with await self._minio.get_object(bucket, key) as response:
                await response.content.read(1)

    async def _continue(self, job: SplitJob, download: Download) -> None:
        """Finish a download over one connection."""
        if not download.resumable:
            download.restart()
        opened = self._open_s3(job, download) if job.source_type == "s3" else self._open_minio(job, download)
        try:
            async with self._downloads, opened as stream:
                if stream.start_bytes != download.offset_bytes:
                    download.restart()
                total_bytes = None if stream.length_bytes is None else stream.start_bytes + stream.length_bytes
                _require_unchanged(job, stream.etag, total_bytes)
                download.etag = stream.etag
                await download.receive(stream.chunks)
        except ReplacedError as error:
            download.restart()
            raise TransientError("source_replaced", f"{job.recording} was replaced during its download") from error
        if total_bytes is None:
            total_bytes = await self._listed_bytes(job) if job.source_size is None else job.source_size
        download.verify(total_bytes)

    async def _listed_bytes(self, job: SplitJob) -> int | None:
        """Return the size in the listing. Without any size, a truncated body would pass as complete."""
        page = await self._page(job.source_bucket, job.source_key, None)
        return next((found.size_bytes for found in page if found.key == job.source_key), None)

    @asynccontextmanager
    async def _open_minio(self, job: SplitJob, download: Download) -> AsyncIterator[_Stream]:
        with translated_minio(f"MinIO ({job.recording})"):
            response = await self._minio.get_object(
                job.source_bucket,
                job.source_key,
                offset=download.offset_bytes,
                request_headers={"If-Match": f'"{download.etag}"'} if download.resumable else None,
            )
            async with response:
                yield _Stream(
                    start_bytes=download.offset_bytes if response.status == HTTPStatus.PARTIAL_CONTENT else 0,
                    length_bytes=response.content_length,
                    etag=response.headers.get("ETag", "").strip('"') or None,
                    chunks=response.content.iter_chunked(CHUNK_BYTES),
                )

    @asynccontextmanager
    async def _open_s3(self, job: SplitJob, download: Download) -> AsyncIterator[_Stream]:
        request: GetObjectRequestTypeDef = {"Bucket": job.source_bucket, "Key": job.source_key}
        if download.resumable:
            request |= {"Range": f"bytes={download.offset_bytes}-", "IfMatch": f'"{download.etag}"'}
        with translated(f"S3 ({job.recording})"):
            try:
                answer = await self._s3.get_object(**request)
            except ClientError as error:
                if error_code(error) == "NoSuchKey":
                    raise missing(job.recording) from error
                if error_code(error) == "PreconditionFailed":
                    raise ReplacedError from error
                raise
            status = answer["ResponseMetadata"]["HTTPStatusCode"]
            async with answer["Body"]:  # entered, it gives aiohttp's response, without botocore's errors
                yield _Stream(
                    start_bytes=download.offset_bytes if status == HTTPStatus.PARTIAL_CONTENT else 0,
                    length_bytes=answer["ContentLength"],
                    etag=answer["ETag"].strip('"'),
                    chunks=answer["Body"].iter_chunks(CHUNK_BYTES),
                )


@asynccontextmanager
async def open_source(settings: Settings, s3: "S3Client", retry: Retry) -> AsyncIterator[Source]:
    """Yield a source with its own MinIO client, which is closed at the end."""
    async with minio_client(settings) as minio:
        yield Source(minio, s3, downloads=settings.downloads, retry=retry)


def _require_unchanged(job: SplitJob, etag: str | None, total_bytes: int | None) -> None:
    if job.source_etag is not None and etag is not None and etag != job.source_etag.strip('"'):
        difference = f"the ETag {etag}, the job names {job.source_etag}"
    elif None not in (job.source_size, total_bytes) and job.source_size != total_bytes:
        difference = f"{total_bytes} bytes, the job names {job.source_size}"
    else:
        return
    raise PermanentError("source_changed", f"{job.recording} has {difference}: enqueue it again")
