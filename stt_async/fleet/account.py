"""AWS as an operator speaks to it: the clients of one region, made once, and calls whose errors people understand."""

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
    operator_client,
    refusal,
    s3_client,
    sqs_client,
    translated,
)
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
"""Error codes of a service that asks to be asked again."""


class RejectedError(SettingsError):
    """AWS rejects what was asked for: the same again would be rejected, too. `message` is its own."""

    def __init__(self, operation: str, message: str) -> None:
        super().__init__(f"AWS rejects {operation}: {message}")
        self.message = message


@dataclass(frozen=True, slots=True)
class AwsAccount:
    """The clients, all of one region, and the retry policy of every call."""

    region: str
    cloudformation: Any
    autoscaling: Any
    cloudwatch: Any
    logs: Any
    s3: "S3Client"
    sqs: "SQSClient"
    retry: Retry

    async def call(self, operation: Callable[..., Awaitable[Any]], **arguments: Any) -> Any:
        """Make a call, again if it may pass.

        Raises:
            RejectedError: AWS says that it cannot be done.
            DependencyError: AWS is out of reach, or refuses us.
            TransientError: it failed for longer than the policy allows.
        """

        async def once() -> Any:
            with translated(f"AWS in {self.region}"):
                try:
                    return await operation(**arguments)
                except ClientError as error:
                    if _is_rejection(error):
                        message = str(error.response["Error"].get("Message") or error_code(error))
                        raise RejectedError(error.operation_name, message) from error
                    raise

        return await self.retry(once)

    async def pages(
        self, operation: Callable[..., Awaitable[Any]], next_key: str = "NextToken", **arguments: Any
    ) -> AsyncIterator[Any]:
        """Yield the answers to a call that gives them page by page; `next_key` leads to the next one."""
        following: dict[str, str] = {}
        while True:
            answer = await self.call(operation, **arguments, **following)
            yield answer
            if not answer.get(next_key):
                return
            following = {next_key: answer[next_key]}


@asynccontextmanager
async def open_account(settings: Settings) -> AsyncIterator[AwsAccount]:
    """Make the clients, and close them at the end."""
    async with (
        operator_client(settings, "cloudformation") as cloudformation,
        operator_client(settings, "cloudwatch") as cloudwatch,
        operator_client(settings, "logs") as logs,
        autoscaling_client(settings) as autoscaling,
        s3_client(settings) as s3,
        sqs_client(settings) as sqs,
    ):
        yield AwsAccount(
            region=settings.aws_region,
            cloudformation=cloudformation,
            autoscaling=autoscaling,
            cloudwatch=cloudwatch,
            logs=logs,
            s3=s3,
            sqs=sqs,
            retry=Retry(settings.retry_timeout_s, settings.retry_max_wait_s),
        )


def _is_rejection(error: ClientError) -> bool:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    code = error_code(error)
    return 400 <= status < 500 and code not in _BUSY and refusal(code, "") is None  # noqa: PLR2004 - HTTP's
