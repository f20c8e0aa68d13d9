"""The source: its probe, and the failure classes of MinIO's errors."""

import re
import ssl
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, Self, cast
from unittest.mock import Mock
from xml.etree.ElementTree import ParseError

import aiohttp
import pytest
from miniopy_async.error import InvalidResponseError, MinioException, S3Error, ServerError

from stt_async.errors import (
    UNREACHABLE,
    ClassifiedError,
    DependencyError,
    LastingOutageError,
    OutageError,
    PermanentError,
    TransientError,
)
from stt_async.retry import Retry
from stt_async.services.minio import ReplacedError, translated_minio
from stt_async.services.source import PROBED, Source
from tests.unit.fakes import TIMEOUT_S


def s3_error(code: str | None, status: int) -> S3Error:
    return S3Error(code, "because", "/audio", "1", "host", Mock(status=status))


class Minio:
    """A bucket that lists these keys, and refuses a GET of some with an error code. It has no other methods."""

    def __init__(self, keys: list[str], refused: dict[str, str]) -> None:
        self.keys = keys
        self.refused = refused
        self.read: list[str] = []

    async def list_objects(self, bucket: str, **_: Any) -> AsyncIterator[Any]:
        del bucket
        for key in self.keys:
            yield SimpleNamespace(object_name=key, is_dir=False, size=1, etag="e")

    async def get_object(self, bucket: str, key: str) -> Any:
        del bucket
        self.read.append(key)
        if code := self.refused.get(key):
            raise s3_error(code, 403)
        return Response()


class Response:
    """A response with a body."""

    def __init__(self) -> None:
        self.content = self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""

    async def read(self, size: int) -> bytes:
        return b"x" * size


def _source(minio: Minio, retry_timeout_s: float = TIMEOUT_S) -> Source:
    client: Any = minio
    return Source(client, Mock(), downloads=1, retry=Retry(retry_timeout_s, 0.001))


KEYS = [f"{number:04}.mp3" for number in range(1000)]


async def test_one_readable_recording_is_enough() -> None:
    minio = Minio(KEYS, {KEYS[0]: "AccessDenied", KEYS[200]: "NoSuchKey"})
    assert KEYS[400] in await _source(minio).probe("audio")
    assert minio.read == [KEYS[0], KEYS[200], KEYS[400]]


async def test_refusals_across_the_listing_are_a_refusal() -> None:
    minio = Minio(KEYS, dict.fromkeys(KEYS, "AccessDenied"))
    with pytest.raises(DependencyError, match="AccessDenied"):
        await _source(minio).probe("audio")
    assert minio.read == KEYS[:: len(KEYS) // PROBED]


@pytest.mark.parametrize("count", [1, 2, 5, 6, 999])
async def test_short_listing_is_probed_without_repeats(count: int) -> None:
    minio = Minio(KEYS[:count], dict.fromkeys(KEYS, "NoSuchKey"))
    with pytest.raises(PermanentError):
        await _source(minio).probe("audio")
    assert 1 <= len(minio.read) <= PROBED
    assert len(set(minio.read)) == len(minio.read)


async def test_empty_bucket_passes() -> None:
    assert "empty" in await _source(Minio([], {})).probe("audio")


async def test_outage_is_raised_at_the_first_recording() -> None:
    minio = Minio(KEYS, dict.fromkeys(KEYS, "RequestTimeTooSkewed"))
    with pytest.raises(OutageError):
        await _source(minio, retry_timeout_s=0.0).probe("audio")
    assert set(minio.read) == {KEYS[0]}


WHAT = "MinIO (audio/amdo/001.mp3)"


def connector_error(kind: type[aiohttp.ClientConnectorError], cause: Any) -> aiohttp.ClientConnectorError:
    return kind(Mock(host="s3.monlam.ai", port=443, ssl=True), cause)


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (s3_error("NoSuchKey", 404), PermanentError, "source_missing"),
        (InvalidResponseError(404, "text/html", "not found"), PermanentError, "source_missing"),
        (s3_error("AccessDenied", 403), DependencyError, "AccessDenied"),
        (s3_error("InvalidAccessKeyId", 403), DependencyError, "InvalidAccessKeyId"),
        (s3_error("SignatureDoesNotMatch", 403), DependencyError, "SignatureDoesNotMatch"),
        (s3_error(None, 403), DependencyError, "AccessDenied"),
        (InvalidResponseError(403, "text/html", "from the CDN"), DependencyError, "AccessDenied"),
        (s3_error("RequestTimeTooSkewed", 403), LastingOutageError, "RequestTimeTooSkewed"),
        (s3_error("ExpiredToken", 400), LastingOutageError, "ExpiredToken"),
        (InvalidResponseError(401, "text/html", "from the CDN"), DependencyError, "AccessDenied"),
        (s3_error("NoSuchBucket", 404), DependencyError, "NoSuchBucket"),
        (s3_error("SlowDown", 503), TransientError, "SlowDown"),
        (s3_error("InternalError", 500), TransientError, "InternalError"),
        (ServerError("bad gateway", 502), TransientError, "http_502"),
        (InvalidResponseError(503, "text/html", "from the CDN"), TransientError, "http_503"),
        (MinioException("any other"), TransientError, "http_0"),
        (connector_error(aiohttp.ClientConnectorError, OSError(111, "refused")), OutageError, UNREACHABLE),
        (
            connector_error(aiohttp.ClientConnectorDNSError, OSError(-2, "no such host")),
            LastingOutageError,
            "unknown_host",
        ),
        (
            connector_error(aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError("expired")),
            LastingOutageError,
            UNREACHABLE,
        ),
        (aiohttp.ConnectionTimeoutError("connect"), OutageError, UNREACHABLE),
        (aiohttp.SocketTimeoutError("read"), TransientError, "connection_broken"),
        (aiohttp.ClientPayloadError("cut"), TransientError, "connection_broken"),
        (aiohttp.ServerDisconnectedError(), TransientError, "connection_broken"),
        (TimeoutError(), TransientError, "connection_broken"),
        (ParseError("a listing that is not XML"), TransientError, "connection_broken"),
    ],
    # The ids must be the same in every process of xdist.
    ids=lambda value: re.sub(r"<Mock id='\d+'>", "connection", ascii(value)) if isinstance(value, Exception) else "",
)
def test_each_error_has_its_class(error: Exception, kind: type[ClassifiedError], code: str) -> None:
    with pytest.raises(ClassifiedError) as caught, translated_minio(WHAT):
        raise error
    assert type(caught.value) is kind
    assert caught.value.code == code
    assert caught.value.message.startswith(WHAT)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [s3_error("PreconditionFailed", 412), InvalidResponseError(412, None, None)], ids=str)
def test_failed_if_match_is_a_replaced_error(error: Exception) -> None:
    with pytest.raises(ReplacedError), translated_minio(WHAT):
        raise error


def test_classified_error_passes_unchanged() -> None:
    error = TransientError("disk_full", "no space")
    with pytest.raises(TransientError) as caught, translated_minio(WHAT):
        raise error
    assert caught.value is cast("object", error)
