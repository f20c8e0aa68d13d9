"""What botocore's errors mean for a job."""

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
    ProxyConnectionError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)

from stt_async.errors import (
    UNREACHABLE,
    ClassifiedError,
    DependencyError,
    LeaseLostError,
    OutageError,
    PermanentError,
    RetryJobError,
    TransientError,
)
from stt_async.services.aws import error_code, translated

URL = "https://sqs.us-east-1.amazonaws.com/"


def test_an_upload_that_was_aborted_is_not_tried_again_within_the_call() -> None:
    assert type(meaning(answer("NoSuchUpload"))) is RetryJobError


def answer(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "because"}}, "SendMessage")


def meaning(error: BaseException) -> ClassifiedError:
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
def test_a_refusal_of_everyone_is_of_the_environment(code: str) -> None:
    error = meaning(answer(code))
    assert isinstance(error, DependencyError)
    assert error.code == code
    assert "SendMessage" in error.message
    assert "because" in error.message


@pytest.mark.parametrize(
    "code", ["ExpiredToken", "ExpiredTokenException", "RequestExpired", "RequestTimeTooSkewed", "TokenRefreshRequired"]
)
def test_credentials_or_a_clock_that_may_be_put_right_are_tried_again(code: str) -> None:
    error = meaning(answer(code))
    assert isinstance(error, OutageError)
    assert error.code == code


@pytest.mark.parametrize(
    "code", ["InternalError", "500", "503", "SlowDown", "Throttling", "RequestThrottled", "ConditionalRequestConflict"]
)
def test_any_other_answer_may_pass(code: str) -> None:
    error = meaning(answer(code))
    assert isinstance(error, TransientError)
    assert error.code == code


@pytest.mark.parametrize(
    "error",
    [
        NoCredentialsError(),
        PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"),
        CredentialRetrievalError(provider="iam-role", error_msg="no answer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_without_credentials_it_is_the_environment(error: Exception) -> None:
    found = meaning(error)
    assert isinstance(found, OutageError)
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
def test_out_of_reach_is_of_the_environment_and_tried_again(error: Exception) -> None:
    found = meaning(error)
    assert isinstance(found, OutageError)
    assert found.code == UNREACHABLE


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
def test_a_connection_that_broke_may_pass(error: Exception) -> None:
    found = meaning(error)
    assert isinstance(found, TransientError)
    assert found.code == "connection_broken"
    assert found.message.removeprefix("SQS: ")


@pytest.mark.parametrize(
    "error",
    [PermanentError("a", "b"), LeaseLostError("c"), ZeroDivisionError()],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_botocores_passes(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, translated("SQS"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("response", [{}, {"Error": {}}])
def test_an_answer_without_a_code_has_one(response: dict[str, dict[str, str]]) -> None:
    assert error_code(ClientError(response, "GetObject")) == "unknown"  # type: ignore[arg-type]  # as some servers answer
