"""The failure classes of botocore's errors."""

import socket
from unittest.mock import Mock

import aiohttp
import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)

from stt_async.errors import (
    UNREACHABLE,
    ClassifiedError,
    DependencyError,
    LastingOutageError,
    LeaseLostError,
    OutageError,
    PermanentError,
    RetryJobError,
    TransientError,
)
from stt_async.services.aws import error_code, translated

URL = "https://sqs.us-east-1.amazonaws.com/"


def answer(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "because"}}, "SendMessage")


def failure(error: BaseException) -> ClassifiedError:
    with pytest.raises(ClassifiedError) as caught, translated("SQS"):
        raise error
    assert caught.value.__cause__ is error
    assert "SQS" in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    "code",
    [
        "403",
        "AccessDenied",
        "AccessDeniedException",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "NotAuthorized",
        "OptInRequired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
        "NoSuchBucket",
        "AWS.SimpleQueueService.NonExistentQueue",
    ],
)
def test_refusal_is_a_dependency_error(code: str) -> None:
    error = failure(answer(code))
    assert isinstance(error, DependencyError)
    assert error.code == code
    assert "SendMessage" in error.message
    assert "because" in error.message


@pytest.mark.parametrize(
    "code", ["ExpiredToken", "ExpiredTokenException", "RequestExpired", "RequestTimeTooSkewed", "TokenRefreshRequired"]
)
def test_expired_credentials_or_a_wrong_clock_are_a_lasting_outage(code: str) -> None:
    error = failure(answer(code))
    assert isinstance(error, LastingOutageError)
    assert error.code == code


@pytest.mark.parametrize(
    "code", ["InternalError", "500", "503", "SlowDown", "Throttling", "RequestThrottled", "ConditionalRequestConflict"]
)
def test_any_other_code_is_transient(code: str) -> None:
    error = failure(answer(code))
    assert isinstance(error, TransientError)
    assert error.code == code


@pytest.mark.parametrize(
    "error",
    [
        NoCredentialsError(),
        PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"),
        CredentialRetrievalError(provider="iam-role", error_msg="no answer"),
        ProfileNotFound(profile="mistyped"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_missing_credentials_are_a_lasting_outage(error: Exception) -> None:
    found = failure(error)
    assert isinstance(found, LastingOutageError)
    assert found.code == "no_credentials"


@pytest.mark.parametrize(
    "error",
    [
        EndpointConnectionError(endpoint_url=URL),
        ConnectTimeoutError(endpoint_url=URL),
        ProxyConnectionError(proxy_url=URL),
        SSLError(endpoint_url=URL, error=OSError("expired")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_unreachable_service_is_an_outage(error: Exception) -> None:
    found = failure(error)
    assert type(found) is OutageError
    assert found.code == UNREACHABLE


@pytest.mark.parametrize(
    ("errno", "kind", "code"),
    [
        (socket.EAI_NONAME, LastingOutageError, "unknown_host"),
        (socket.EAI_AGAIN, OutageError, UNREACHABLE),
    ],
    ids=["no such name", "no answer from DNS"],
)
def test_only_a_name_that_does_not_exist_is_a_lasting_outage(errno: int, kind: type[OutageError], code: str) -> None:
    cause = aiohttp.ClientConnectorDNSError(Mock(host="mistyped"), socket.gaierror(errno, "because"))
    found = failure(EndpointConnectionError(endpoint_url=URL, error=cause))
    assert (type(found), found.code) == (kind, code)


@pytest.mark.parametrize(
    "error",
    [
        ReadTimeoutError(endpoint_url=URL),
        ConnectionClosedError(endpoint_url=URL),
        HTTPClientError(error="reset"),
        ResponseStreamingError(error="cut"),
        ConnectionResetError("reset by peer"),
        TimeoutError(),
        aiohttp.ClientPayloadError("not enough data"),
        aiohttp.ServerDisconnectedError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_broken_connection_is_transient(error: Exception) -> None:
    found = failure(error)
    assert isinstance(found, TransientError)
    assert found.code == "connection_broken"
    assert found.message.removeprefix("SQS: ")


@pytest.mark.parametrize(
    "error",
    [PermanentError("a", "b"), LeaseLostError("c"), ZeroDivisionError()],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_pass_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, translated("SQS"):
        raise error
    assert caught.value is error


def test_aborted_upload_needs_a_new_attempt() -> None:
    assert type(failure(answer("NoSuchUpload"))) is RetryJobError


@pytest.mark.parametrize("response", [{}, {"Error": {}}])
def test_answer_without_a_code_has_the_code_unknown(response: dict[str, dict[str, str]]) -> None:
    assert error_code(ClientError(response, "GetObject")) == "unknown"  # type: ignore[arg-type]  # as some servers answer
