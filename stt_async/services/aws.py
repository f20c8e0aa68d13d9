"""The AWS clients, made once, and what their errors mean for a job."""

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
"""Error codes of a service that refuses us, whatever the job."""

EXPIRED = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "RequestTimeTooSkewed", "TokenRefreshRequired"}
)
"""Error codes of credentials, or of a clock, that may be put right before the next try: botocore renews what a role
gives, and NTP sets the clock."""

GONE = frozenset({"NoSuchBucket", "AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist", "PermanentRedirect"})
"""Error codes of a bucket or a queue that is not there."""

ABORTED_UPLOAD = frozenset({"NoSuchUpload"})
"""Error codes after which a new attempt may succeed, but never the same call: somebody aborted this upload."""

_TIMEOUT_S = 30


def s3_client(settings: Settings) -> "AbstractAsyncContextManager[S3Client]":
    """Return the S3 client, to be entered once a process. Checksums are AWS's default (CRC32 of each body)."""
    return _session(settings).client("s3", config=_config(settings.uploads + 8))


def sqs_client(settings: Settings) -> "AbstractAsyncContextManager[SQSClient]":
    """Return an SQS client. Its read timeout leaves a long poll its 20 s."""
    return _session(settings).client("sqs", config=_config(32))


def autoscaling_client(settings: Settings) -> AbstractAsyncContextManager[Any]:
    """Return an Auto Scaling client."""
    return _session(settings).client("autoscaling", config=_config(4))


def operator_client(
    settings: Settings, service: Literal["cloudformation", "cloudwatch", "logs"]
) -> AbstractAsyncContextManager[Any]:
    """Return a client of what operators alone speak to."""
    return _session(settings).client(service, config=_config(4))


def _session(settings: Settings) -> aioboto3.Session:
    return aioboto3.Session(region_name=settings.aws_region)


def _config(connections: int) -> AioConfig:
    return AioConfig(
        connect_timeout=5,
        read_timeout=_TIMEOUT_S,
        max_pool_connections=connections,
        retries={"total_max_attempts": 1, "mode": "standard"},  # retry.py is the one owner of retries
    )


@contextmanager
def translated(service: str) -> Iterator[None]:
    """Raise botocore's errors as the job's failure classes.

    `NoSuchKey`, failed preconditions and receipt handle errors are the caller's to see: catch them inside.
    """
    try:
        yield
    except ClientError as error:
        raise _meaning(service, error) from error
    except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
        raise OutageError("no_credentials", f"{service}: no usable AWS credentials ({error})") from error
    except (EndpointConnectionError, ConnectTimeoutError, ProxyConnectionError, SSLError) as error:
        raise OutageError(UNREACHABLE, f"{service} is out of reach: {error}") from error
    # aiohttp's: of a body that breaks off. The parser's: of an answer that is not the service's, but a proxy's page.
    except (BotoCoreError, ResponseParserError, aiohttp.ClientError, OSError) as error:
        raise TransientError("connection_broken", f"{service}: {str(error) or type(error).__name__}") from error


def error_code(error: ClientError) -> str:
    """Return the service's error code; for an answer without a body, the HTTP status."""
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _meaning(service: str, error: ClientError) -> ClassifiedError:
    code = error_code(error)
    sentence = f"{service} answered {code} to {error.operation_name}: {error.response.get('Error', {}).get('Message')}"
    if code in ABORTED_UPLOAD:
        return RetryJobError(code, sentence)
    return refusal(code, sentence) or TransientError(code, sentence)


def refusal(code: str, sentence: str) -> DependencyError | None:
    """Return the failure by an error code that refuses us, of any server that speaks S3; None for any other code."""
    if code in EXPIRED:
        return OutageError(code, sentence)
    return DependencyError(code, sentence) if code in REFUSED or code in GONE else None
