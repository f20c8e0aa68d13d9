"""The AWS clients, and the failure classes of their errors."""

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import aioboto3
import aiohttp
from aiobotocore.config import AioConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ProxyConnectionError,
    SSLError,
)
from botocore.parsers import ResponseParserError

from stt_async.errors import (
    UNREACHABLE,
    ClassifiedError,
    DependencyError,
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

_TIMEOUT_S = 30


def s3_client(settings: Settings) -> "AbstractAsyncContextManager[S3Client]":
    """Return the S3 client; enter it once a process. It sends AWS's default checksums (CRC32 of each body)."""
    return _session(settings).client("s3", config=_config(settings.uploads + 8))


def sqs_client(settings: Settings) -> "AbstractAsyncContextManager[SQSClient]":
    """Return an SQS client. Its read timeout is longer than a long poll of 20 s."""
    return _session(settings).client("sqs", config=_config(32))


def autoscaling_client(settings: Settings) -> AbstractAsyncContextManager[Any]:
    """Return an Auto Scaling client."""
    return _session(settings).client("autoscaling", config=_config(4))


def operator_client(
    settings: Settings, service: Literal["cloudformation", "cloudwatch", "logs"]
) -> AbstractAsyncContextManager[Any]:
    """Return the client of a service that only operator commands call."""
    return _session(settings).client(service, config=_config(4))


def _session(settings: Settings) -> aioboto3.Session:
    return aioboto3.Session(region_name=settings.aws_region)


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
    except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
        raise OutageError("no_credentials", f"{service}: no usable AWS credentials ({error})") from error
    except (EndpointConnectionError, ConnectTimeoutError, ProxyConnectionError, SSLError) as error:
        raise OutageError(UNREACHABLE, f"{service} is out of reach: {error}") from error
    # aiohttp's errors: a body that breaks off. The parser's: the answer is a proxy's page instead of the service's.
    except (BotoCoreError, ResponseParserError, aiohttp.ClientError, OSError) as error:
        raise TransientError("connection_broken", f"{service}: {str(error) or type(error).__name__}") from error


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
        return OutageError(code, message)
    return DependencyError(code, message) if code in REFUSED or code in GONE else None
