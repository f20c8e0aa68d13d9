"""The MinIO client, and the failure classes of its errors."""

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from xml.etree.ElementTree import ParseError

import aiohttp
from miniopy_async.api import Minio
from miniopy_async.error import InvalidResponseError, MinioException, S3Error, ServerError

from stt_async.errors import ClassifiedError, PermanentError, TransientError
from stt_async.services.aws import refusal, unreachable
from stt_async.settings import Settings


class ReplacedError(Exception):
    """If-Match failed: the key now holds another object."""


@asynccontextmanager
async def minio_client(settings: Settings) -> AsyncIterator[Minio]:
    """Yield a client on a session without retries and without decoding of bodies; every wait has a limit."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=settings.downloads + 2, ssl=ssl.create_default_context()),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=30),
        auto_decompress=False,
    )
    async with session:
        yield Minio(
            settings.minio_endpoint,
            access_key=settings.minio_access_key.get_secret_value() or None,
            secret_key=settings.minio_secret_key.get_secret_value() or None,
            secure=settings.minio_secure,
            region=settings.minio_region,
            session=session,
        )


@contextmanager
def translated_minio(what: str) -> Iterator[None]:
    """Raise the errors of the client as the failure classes of `errors`, or as ReplacedError."""
    try:
        yield
    except MinioException as error:
        raise _classify(what, error) from error
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise unreachable(what, error, error) from error
    except (aiohttp.ClientError, TimeoutError, ParseError) as error:
        raise TransientError("connection_broken", f"{what}: {str(error) or type(error).__name__}") from error


def missing(recording: str) -> PermanentError:
    """Return the failure of a job whose recording does not exist."""
    return PermanentError("source_missing", f"{recording} does not exist")


def _classify(what: str, error: MinioException) -> ClassifiedError | ReplacedError:
    match error:
        case S3Error():
            code, status = error.code or "", error.response.status
        case ServerError():
            code, status = "", error.status_code
        case InvalidResponseError():
            code, status = "", error._code  # noqa: SLF001 - has no public name for the status
        case _:
            code, status = "", 0
    if code == "NoSuchKey" or (not code and status == HTTPStatus.NOT_FOUND):
        return missing(what)
    if code == "PreconditionFailed" or status == HTTPStatus.PRECONDITION_FAILED:
        return ReplacedError()
    if not code and status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        code = "AccessDenied"
    message = f"{what}: {error}"
    return refusal(code, message) or TransientError(code or f"http_{status}", message)
