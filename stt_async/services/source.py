"""Recordings in: from MinIO, or from an S3 bucket. GET and LIST only: MinIO behind its CDN answers HEAD with 403."""

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree.ElementTree import ParseError

import aiohttp
from botocore.exceptions import ClientError
from miniopy_async.api import Minio
from miniopy_async.error import InvalidResponseError, MinioException, S3Error, ServerError

from stt_async.errors import UNREACHABLE, ClassifiedError, DependencyError, OutageError, PermanentError, TransientError
from stt_async.job import SplitJob
from stt_async.limits import AdaptiveLimit
from stt_async.retry import Retry
from stt_async.services.aws import error_code, refusal, translated
from stt_async.services.download import TOO_SLOW, Download
from stt_async.settings import Settings

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_s3.type_defs import GetObjectRequestTypeDef

CHUNK_BYTES = 1024**2
"""Memory of a download: two or three of these, whatever the recording's size."""

PROBED = 5
"""Recordings that a probe tries to read, at most: one or a few may be forbidden, or be gone since they were listed."""

PAGE = 1000
"""Objects in one answer to a LIST; stopping there asks for no further page."""

_HTTP_PARTIAL_CONTENT = 206
_HTTP_UNAUTHORIZED = 401
_HTTP_FORBIDDEN = 403
_HTTP_NOT_FOUND = 404
_HTTP_PRECONDITION_FAILED = 412


@dataclass(frozen=True, slots=True)
class SourceObject:
    """A recording, as a listing tells of it."""

    key: str
    size_bytes: int
    etag: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """What is known of a recording that was downloaded."""

    etag: str | None
    """Of the bytes read, without quotes."""
    receiving_s: float
    """For how long they came."""


@dataclass(frozen=True, slots=True)
class _Stream:
    """An answer whose body is still to come."""

    start_bytes: int
    """Where in the object the body begins: a server may ignore a Range and send all of it."""
    length_bytes: int | None
    etag: str | None
    chunks: AsyncIterator[bytes]


class _ReplacedError(Exception):
    """If-Match failed: another object has the key now."""


class Source:
    """Where recordings come from. Every method raises the failure classes of `errors`.

    Args:
        minio: Client of the MinIO server, with a session of its own without retries.
        s3: Client for jobs of source type `s3`.
        downloads: How many are on their way at once.
        retry: The policy of one call. A download may take longer: as long as it gets on, it is resumed.
    """

    def __init__(self, minio: Minio, s3: "S3Client", *, downloads: int, retry: Retry) -> None:
        self._minio = minio
        self._s3 = s3
        self._downloads = AdaptiveLimit("downloads", downloads)
        self._retry = retry

    async def fetch(self, job: SplitJob, to: Path) -> Fetched:
        """Download a recording into the file `to`; check its length, and its MD5 where the ETag is one.

        What breaks on the way goes on where it broke (`Range`, `If-Match`); a recording that is replaced meanwhile
        starts again.

        Raises:
            PermanentError: `source_missing`, or `source_changed` since the job was made.
            TransientError: nothing more comes (`connection_broken`), or hardly anything (`too_slow`).
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
        """Prove that we may list the bucket and read from it, if not everything; return what was found, for people."""
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
                return f"lists, and reads {found.key}"
        if unreadable is not None:
            raise unreadable
        return "lists; it is empty, so nothing was read"

    async def _page(self, bucket: str, prefix: str, start_after: str | None) -> list[SourceObject]:
        page: list[SourceObject] = []
        with _translated(f"MinIO bucket {bucket}"):
            listing = self._minio.list_objects(bucket, prefix=prefix, recursive=True, start_after=start_after)
            async for entry in listing:
                if entry.object_name is not None and not entry.is_dir:
                    page.append(SourceObject(entry.object_name, entry.size or 0, (entry.etag or "").strip('"')))
                if len(page) == PAGE:
                    break
        return page

    async def _read_start(self, bucket: str, key: str) -> None:
        with _translated(f"MinIO ({bucket}/{key})"):
            async with await self._minio.get_object(bucket, key) as response:
                await response.content.read(1)

    async def _continue(self, job: SplitJob, download: Download) -> None:
        """Bring a download to its end over one connection."""
        if not download.resumable:
            download.restart()
        opened = self._open_s3(job, download) if job.source_type == "s3" else self._open_minio(job, download)
        try:
            async with self._downloads, opened as stream:
                if stream.start_bytes != download.offset_bytes:
                    download.restart()
                total_bytes = None if stream.length_bytes is None else stream.start_bytes + stream.length_bytes
                _require_same(job, stream.etag, total_bytes)
                download.etag = stream.etag
                await download.take(stream.chunks)
        except _ReplacedError as error:
            download.restart()
            raise TransientError("source_replaced", f"{job.recording} was replaced during its download") from error
        if total_bytes is None:
            total_bytes = await self._listed_bytes(job) if job.source_size is None else job.source_size
        download.verify(total_bytes)

    async def _listed_bytes(self, job: SplitJob) -> int | None:
        """Ask the listing for the size that neither answer nor job tells: without it, a body cut short looks whole."""
        page = await self._page(job.source_bucket, job.source_key, None)
        return next((found.size_bytes for found in page if found.key == job.source_key), None)

    @asynccontextmanager
    async def _open_minio(self, job: SplitJob, download: Download) -> AsyncIterator[_Stream]:
        with _translated(f"MinIO ({job.recording})"):
            response = await self._minio.get_object(
                job.source_bucket,
                job.source_key,
                offset=download.offset_bytes,
                request_headers={"If-Match": f'"{download.etag}"'} if download.resumable else None,
            )
            async with response:
                yield _Stream(
                    start_bytes=download.offset_bytes if response.status == _HTTP_PARTIAL_CONTENT else 0,
                    length_bytes=response.content_length,
                    etag=response.headers.get("ETag", "").strip('"') or None,
                    chunks=response.content.iter_chunked(CHUNK_BYTES),
                )

    @asynccontextmanager
    async def _open_s3(self, job: SplitJob, download: Download) -> AsyncIterator[_Stream]:
        resume: GetObjectRequestTypeDef = {"Bucket": job.source_bucket, "Key": job.source_key}
        if download.resumable:
            resume |= {"Range": f"bytes={download.offset_bytes}-", "IfMatch": f'"{download.etag}"'}
        with translated(f"S3 ({job.recording})"):
            try:
                answer = await self._s3.get_object(**resume)
            except ClientError as error:
                if error_code(error) == "NoSuchKey":
                    raise _missing(job.recording) from error
                if error_code(error) == "PreconditionFailed":
                    raise _ReplacedError from error
                raise
            status = answer["ResponseMetadata"]["HTTPStatusCode"]
            async with answer["Body"]:  # entered, it gives aiohttp's response, without botocore's errors
                yield _Stream(
                    start_bytes=download.offset_bytes if status == _HTTP_PARTIAL_CONTENT else 0,
                    length_bytes=answer["ContentLength"],
                    etag=answer["ETag"].strip('"'),
                    chunks=answer["Body"].iter_chunks(CHUNK_BYTES),
                )


@asynccontextmanager
async def open_source(settings: Settings, s3: "S3Client", retry: Retry) -> AsyncIterator[Source]:
    """Connect to MinIO with a session of our own: no retries below ours, no decoding of bodies, bounded waits."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=settings.downloads + 2, ssl=ssl.create_default_context()),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=30),
        auto_decompress=False,
    )
    async with session:
        minio = Minio(
            settings.minio_endpoint,
            access_key=settings.minio_access_key.get_secret_value() or None,
            secret_key=settings.minio_secret_key.get_secret_value() or None,
            secure=settings.minio_secure,
            region=settings.minio_region,
            session=session,
        )
        yield Source(minio, s3, downloads=settings.downloads, retry=retry)


def _require_same(job: SplitJob, etag: str | None, total_bytes: int | None) -> None:
    if job.source_etag is not None and etag is not None and etag != job.source_etag.strip('"'):
        raise PermanentError(
            "source_changed", f"{job.recording} has the ETag {etag}, the job says {job.source_etag}: enqueue it again"
        )
    if None not in (job.source_size, total_bytes) and job.source_size != total_bytes:
        raise PermanentError(
            "source_changed",
            f"{job.recording} has {total_bytes} bytes, the job says {job.source_size}: enqueue it again",
        )


def _missing(recording: str) -> PermanentError:
    return PermanentError("source_missing", f"{recording} is not there")


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except MinioException as error:
        raise _meaning(what, error) from error
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise OutageError(UNREACHABLE, f"{what} is out of reach: {error}") from error
    except (aiohttp.ClientError, TimeoutError, ParseError) as error:
        raise TransientError("connection_broken", f"{what}: {str(error) or type(error).__name__}") from error


def _meaning(what: str, error: MinioException) -> ClassifiedError | _ReplacedError:
    match error:
        case S3Error():
            code, status = error.code or "", error.response.status
        case ServerError():
            code, status = "", error.status_code
        case InvalidResponseError():
            code, status = "", error._code  # noqa: SLF001 - has no public name for the status
        case _:
            code, status = "", 0
    if code == "NoSuchKey" or (not code and status == _HTTP_NOT_FOUND):
        return _missing(what)
    if code == "PreconditionFailed" or status == _HTTP_PRECONDITION_FAILED:
        return _ReplacedError()
    if not code and status in {_HTTP_UNAUTHORIZED, _HTTP_FORBIDDEN}:
        code = "AccessDenied"
    return refusal(code, f"{what} refuses us: {error}") or TransientError(code or f"http_{status}", f"{what}: {error}")
