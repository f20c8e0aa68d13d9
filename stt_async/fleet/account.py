"""The operator's access to AWS: the clients of one region, and calls with retries and clear errors."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from stt_async.errors import SettingsError
from stt_async.retry import Retry
from stt_async.services.aws import (
    autoscaling_client,
    error_code,
    open_session,
    operator_client,
    refusal,
    s3_client,
    sqs_client,
    translated,
)
from stt_async.services.connections import operator_retry
from stt_async.settings import Settings

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_sqs import SQSClient

_BUSY = frozenset(
    {
        "OperationInProgressException",
        "RequestLimitExceeded",
        "ResourceContention",
        "ScalingActivityInProgress",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
"""Error codes of calls that may succeed when tried again."""


class RejectedError(SettingsError):
    """AWS rejects the call, and would reject it again. `message` is AWS's."""

    def __init__(self, operation: str, message: str) -> None:
        super().__init__(f"AWS rejects {operation}: {message}")
        self.message = message


@dataclass(frozen=True, slots=True)
class AwsAccount:
    """Clients of one region, and the retry policy of their calls."""

    region: str
    cloudformation: Any
    autoscaling: Any
    cloudwatch: Any
    s3: "S3Client"
    sqs: "SQSClient"
    retry: Retry

    async def call(self, operation: Callable[..., Awaitable[Any]], **arguments: Any) -> Any:
        """Call AWS, with retries.

        Raises:
            RejectedError: AWS rejects the call.
            DependencyError: AWS is out of reach, or refuses the operator.
            TransientError: the call failed for longer than the policy allows.
        """

        async def call_once() -> Any:
            with translated(f"AWS in {self.region}"):
                try:
                    return await operation(**arguments)
                except ClientError as error:
                    if _is_rejection(error):
                        message = str(error.response["Error"].get("Message") or error_code(error))
                        raise RejectedError(error.operation_name, message) from error
                    raise

        return await self.retry(call_once)

    async def pages(self, operation: Callable[..., Awaitable[Any]], **arguments: Any) -> AsyncIterator[Any]:
        """Yield the pages of an answer."""
        token: dict[str, str] = {}
        while True:
            page = await self.call(operation, **arguments, **token)
            yield page
            if not page.get("NextToken"):
                return
            token = {"NextToken": page["NextToken"]}


@asynccontextmanager
async def open_account(settings: Settings) -> AsyncIterator[AwsAccount]:
    """Open the clients, and close them after the block."""
    session = await open_session(settings)
    async with (
        operator_client(session, "cloudformation") as cloudformation,
        operator_client(session, "cloudwatch") as cloudwatch,
        autoscaling_client(session) as autoscaling,
        s3_client(session, settings) as s3,
        sqs_client(session) as sqs,
    ):
        yield AwsAccount(
            region=settings.aws_region,
            cloudformation=cloudformation,
            autoscaling=autoscaling,
            cloudwatch=cloudwatch,
            s3=s3,
            sqs=sqs,
            retry=operator_retry(settings),
        )


def _is_rejection(error: ClientError) -> bool:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    code = error_code(error)
    return 400 <= status < 500 and code not in _BUSY and refusal(code, "") is None  # noqa: PLR2004 - HTTP's
