"""The failure classes of MinIO's errors."""

import re
import ssl
from typing import Any, cast
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
from stt_async.services.minio import ReplacedError, translated_minio

WHAT = "MinIO (audio/amdo/001.mp3)"


def s3_error(code: str | None, status: int) -> S3Error:
    return S3Error(code, "because", "/audio", "1", "host", Mock(status=status))


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
