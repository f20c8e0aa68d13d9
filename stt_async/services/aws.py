"""The AWS clients, and the failure classes of their errors."""

import socket
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import aioboto3
import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioCredentialResolver
from aiobotocore.session import get_session
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
    SSLError,
    SSOError,
)
from botocore.parsers import ResponseParserError

from stt_async.errors import (
    UNREACHABLE,
    ClassifiedError,
    DependencyError,
    LastingOutageError,
    OutageError,
    RetryJobError,
    TransientError,
)
from stt_async.settings import Settings

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_sqs import SQSClient

REFUSED = frozenset(
    {
        "401",
        "403",  # the answer to a HEAD has no body to hold a code
        "AccessDenied",
        "AccessDeniedException",
        "AllAccessDisabled",
        "AuthFailure",
        "AuthorizationHeaderMalformed",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "InvalidToken",
        "MissingAuthenticationToken",
        "NotAuthorized",
        "OptInRequired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
"""Error codes of a service that refuses this process, whatever the job."""

EXPIRED = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "RequestTimeTooSkewed", "TokenRefreshRequired"}
)
"""Error codes of credentials or a clock that may be right at the next try: botocore renews the credentials of a role,
and NTP sets the clock."""

GONE = frozenset({"NoSuchBucket", "AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist", "PermanentRedirect"})
"""Error codes of a bucket or a queue that does not exist."""

_NO_SUCH_NAME = frozenset({socket.EAI_NONAME, socket.EAI_NODATA})
"""Answers of the resolver that a name does not exist; EAI_AGAIN says that no name server answered."""

_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, ProfileNotFound, SSOError)

_CREDENTIALS = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run under an instance role"

_TIMEOUT_S = 30


async def open_session(settings: Settings) -> aioboto3.Session:
    """Look for credentials, once for all clients of the session: each look waits a second or two for IMDS off EC2.

    Raises:
        OutageError: the credentials are incomplete, or their source does not answer.
    """
    chain = get_session()
    with translated("AWS"):
        if await chain.get_credentials() is None:  # each client would look again
            chain.register_component("credential_provider", AioCredentialResolver([]))
        return aioboto3.Session(botocore_session=chain, region_name=settings.aws_region)


def s3_client(session: aioboto3.Session, settings: Settings) -> "AbstractAsyncContextManager[S3Client]":
    """Return the S3 client; enter it once a process. It sends AWS's default checksums (CRC32 of each body)."""
    return session.client("s3", config=_config(settings.uploads + 8))


def sqs_client(session: aioboto3.Session) -> "AbstractAsyncContextManager[SQSClient]":
    """Return an SQS client. Its read timeout is longer than a long poll of 20 s."""
    return session.client("sqs", config=_config(32))


def autoscaling_client(session: aioboto3.Session) -> AbstractAsyncContextManager[Any]:
    """Return an Auto Scaling client."""
    return session.client("autoscaling", config=_config(4))


def operator_client(
    session: aioboto3.Session, service: Literal["cloudformation", "cloudwatch"]
) -> AbstractAsyncContextManager[Any]:
    """Return the client of a service that only operator commands call."""
    return session.client(service, config=_config(4))


def _config(connections: int) -> AioConfig:
    return AioConfig(
        connect_timeout=5,
        read_timeout=_TIMEOUT_S,
        max_pool_connections=connections,
        retries={"total_max_attempts": 1, "mode": "standard"},  # only retry.py retries
    )


@contextmanager
def translated(service: str) -> Iterator[None]:
    """Raise botocore's errors as the failure classes of `errors`.

    Callers handle `NoSuchKey`, failed preconditions and receipt handle errors themselves, inside the block.
    """
    try:
        yield
    except ClientError as error:
        raise _classify(service, error) from error
    except _NO_CREDENTIALS as error:
        raise LastingOutageError("no_credentials", f"{service}: {error}; {_CREDENTIALS}") from error
    except (EndpointConnectionError, ConnectTimeoutError, ProxyConnectionError, SSLError) as error:
        raise unreachable(service, error, error.kwargs.get("error")) from error
    # aiohttp's errors: a body that breaks off. The parser's: the answer is a proxy's page instead of the service's.
    except (BotoCoreError, ResponseParserError, aiohttp.ClientError, OSError) as error:
        raise TransientError("connection_broken", f"{service}: {str(error) or type(error).__name__}") from error


def unreachable(service: str, error: Exception, cause: object) -> OutageError:
    """Return the failure of a connection that was not opened, for the `cause` that aiohttp names."""
    if isinstance(cause, aiohttp.ClientConnectorDNSError) and cause.os_error.errno in _NO_SUCH_NAME:
        return LastingOutageError("unknown_host", f"{service}: the host {cause.host} does not exist")
    kind = LastingOutageError if isinstance(cause, aiohttp.ClientSSLError) else OutageError
    return kind(UNREACHABLE, f"{service} is out of reach: {error}")


def error_code(error: ClientError) -> str:
    """Return the service's error code; the HTTP status if the answer has no body."""
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _classify(service: str, error: ClientError) -> ClassifiedError:
    code = error_code(error)
    message = f"{service} answered {code} to {error.operation_name}: {error.response.get('Error', {}).get('Message')}"
    if code == "NoSuchUpload":  # the upload was aborted: only a new attempt can succeed
        return RetryJobError(code, message)
    return refusal(code, message) or TransientError(code, message)


def refusal(code: str, message: str) -> DependencyError | None:
    """Return the failure if a server that speaks S3 refuses this process by this error code; else None."""
    if code in EXPIRED:
        return LastingOutageError(code, message)
    return DependencyError(code, message) if code in REFUSED or code in GONE else None
