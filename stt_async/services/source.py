"""Recordings in: from MinIO, or from an S3 bucket. GET and LIST only: MinIO behind its CDN answers HEAD with 403."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from xml.etree.ElementTree import ParseError

import aiohttp
from botocore.exceptions import ClientError
from miniopy_async.api import Minio
from miniopy_async.error import InvalidResponseError, MinioException, S3Error, ServerError

from stt_async.errors import UNREACHABLE, DependencyError, JobError, PermanentError, TransientError
from stt_async.job import SplitJob
from stt_async.retry import Retry
from stt_async.services.aws import GONE, REFUSED, error_code, translated
from stt_async.settings import Settings

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

CHUNK_BYTES = 1024**2
"""Memory of a download: two or three of these, whatever the recording's size."""

PAGE = 1000
"""Objects in one answer to a LIST; stopping there asks for no further page."""

_HTTP_FORBIDDEN = 403
_HTTP_NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class SourceObject:
    """A recording, as a listing tells of it."""

    key: str
    size_bytes: int
    etag: str


@dataclass(frozen=True, slots=True)
class _Stream:
    """An answer whose body is still to come."""

    length_bytes: int | None
    etag: str | None
    chunks: AsyncIterator[bytes]


class Source:
    """Where recordings come from. Every method raises the failure classes of `errors`.

    Args:
        minio: Client of the MinIO server, with a session of its own without retries.
        s3: Client for jobs of source type `s3`.
        downloads: How many are on their way at once.
        retry: The policy. A download that breaks starts again.
    """

    def __init__(self, minio: Minio, s3: "S3Client", *, downloads: int, retry: Retry) -> None:
        self._minio = minio
        self._s3 = s3
        self._downloads = asyncio.Semaphore(downloads)
        self._retry = retry

    async def fetch(self, job: SplitJob, to: Path) -> str | None:
        """Download a recording into the file `to`, and check its length.

        Returns:
            The ETag of the bytes read, without quotes.

        Raises:
            PermanentError: `source_missing`, or `source_changed` since the job was made.
        """
        async with self._downloads:
            return await self._retry(self._fetch_once, job, to)

    async def pages(self, bucket: str, prefix: str) -> AsyncIterator[list[SourceObject]]:
        """Yield the objects of a bucket in the order of their keys, in pages of up to 1,000."""
        last_key: str | None = None
        while page := await self._retry(self._page, bucket, prefix, last_key):
            yield page
            last_key = page[-1].key

    async def probe(self, bucket: str) -> str:
        """Prove that we may list and read the bucket; return what was found, for people."""
        page = await self._retry(self._page, bucket, "", None)
        if not page:
            return "lists; it is empty, so nothing was read"
        await self._retry(self._read_start, bucket, page[0].key)
        return f"lists, and reads {page[0].key}"

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

    async def _fetch_once(self, job: SplitJob, to: Path) -> str | None:
        opened = self._open_s3(job) if job.source_type == "s3" else self._open_minio(job)
        async with opened as stream:
            _require_same(job, stream)
            with to.open("wb") as file:
                read_bytes = await _copy(stream.chunks, file)
        expected = stream.length_bytes if stream.length_bytes is not None else job.source_size
        if expected is not None and read_bytes != expected:
            raise TransientError(
                "download_truncated", f"{job.recording}: {read_bytes} bytes came, {expected} were announced"
            )
        return stream.etag

    @asynccontextmanager
    async def _open_minio(self, job: SplitJob) -> AsyncIterator[_Stream]:
        with _translated(f"MinIO ({job.recording})"):
            response = await self._minio.get_object(job.source_bucket, job.source_key)
            async with response:
                yield _Stream(
                    length_bytes=response.content_length,
                    etag=response.headers.get("ETag", "").strip('"') or None,
                    chunks=response.content.iter_chunked(CHUNK_BYTES),
                )

    @asynccontextmanager
    async def _open_s3(self, job: SplitJob) -> AsyncIterator[_Stream]:
        with translated(f"S3 ({job.recording})"):
            try:
                answer = await self._s3.get_object(Bucket=job.source_bucket, Key=job.source_key)
            except ClientError as error:
                if error_code(error) == "NoSuchKey":
                    raise _missing(job.recording) from error
                raise
            async with answer["Body"] as body:
                yield _Stream(answer["ContentLength"], answer["ETag"].strip('"'), body.iter_chunks(CHUNK_BYTES))


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


def _require_same(job: SplitJob, stream: _Stream) -> None:
    if job.source_etag is not None and stream.etag is not None and stream.etag != job.source_etag.strip('"'):
        raise PermanentError(
            "source_changed",
            f"{job.recording} has the ETag {stream.etag}, the job says {job.source_etag}: enqueue it again",
        )
    if None not in (job.source_size, stream.length_bytes) and job.source_size != stream.length_bytes:
        raise PermanentError(
            "source_changed",
            f"{job.recording} has {stream.length_bytes} bytes, the job says {job.source_size}: enqueue it again",
        )


async def _copy(chunks: AsyncIterator[bytes], file: BinaryIO) -> int:
    """Write the chunks, off the event loop; return how many bytes there were."""
    total = 0
    async for chunk in chunks:
        try:
            await asyncio.to_thread(file.write, chunk)
        except OSError as error:
            raise TransientError("disk_full", f"cannot write the download: {error}") from error
        total += len(chunk)
    return total


def _missing(recording: str) -> PermanentError:
    return PermanentError("source_missing", f"{recording} is not there")


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except MinioException as error:
        raise _meaning(what, error) from error
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise DependencyError(UNREACHABLE, f"{what} is out of reach: {error}") from error
    except (aiohttp.ClientError, TimeoutError, ParseError) as error:
        raise TransientError("connection_broken", f"{what}: {str(error) or type(error).__name__}") from error


def _meaning(what: str, error: MinioException) -> JobError:
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
    if code in REFUSED or code in GONE or status == _HTTP_FORBIDDEN:
        return DependencyError(code or "AccessDenied", f"{what} refuses us: {error}")
    return TransientError(code or f"http_{status}", f"{what}: {error}")
