"""The EC2 instance metadata service, version 2 (IMDSv2): instance id and interruption notices.

Paths and payloads, as AWS documents them:
- token: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html
- Spot: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
- rebalance: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html
- Auto Scaling: https://docs.aws.amazon.com/autoscaling/ec2/userguide/retrieving-target-lifecycle-state-through-imds.html
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

import aiohttp
import orjson
import structlog

from stt_async.errors import TransientError
from stt_async.settings import Settings

_log = structlog.get_logger()

TOKEN_PATH = "/latest/api/token"  # noqa: S105 - a path
TOKEN_TTL_S = 21_600
"""The maximum. A token that is refused with 401 is renewed."""

INSTANCE_ID = "/latest/meta-data/instance-id"
SPOT_ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
TARGET_STATE = "/latest/meta-data/autoscaling/target-lifecycle-state"

REQUEST_TIMEOUT_S = 2.0
"""The host itself answers, within milliseconds."""

PROBE_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class SpotNotice:
    """EC2 will interrupt this Spot instance."""

    action: str
    """`terminate`, `stop` or `hibernate`; the worker treats all alike."""
    at: datetime
    """Wall clock, timezone-aware."""


class Imds:
    """The metadata service of this instance. Every method except `answers` raises TransientError when a request fails.

    Args:
        session: Without a proxy, as the address is link-local.
        endpoint: `http://169.254.169.254`, or another one for tests.
    """

    def __init__(self, session: aiohttp.ClientSession, endpoint: str) -> None:
        self._session = session
        self._endpoint = endpoint.rstrip("/")
        self._token: str | None = None
        self._instance_id: str | None = None

    async def answers(self) -> bool:
        """Return whether the service exists: one request of at most one second. An answer of 5xx counts."""
        try:
            status, _ = await self._put_token(PROBE_TIMEOUT_S)
        except TransientError:
            return False
        return status == HTTPStatus.OK or status >= HTTPStatus.INTERNAL_SERVER_ERROR

    async def instance_id(self) -> str:
        """Return the id of this instance."""
        if self._instance_id is None:
            self._instance_id = await self._get(INSTANCE_ID)
        if self._instance_id is None:
            raise TransientError("imds_unreadable", f"IMDS has no {INSTANCE_ID}")
        return self._instance_id

    async def spot_notice(self) -> SpotNotice | None:
        """Return the Spot interruption notice; None: there is none."""
        body = await self._get(SPOT_ACTION)
        return None if body is None else parse_spot_notice(body)

    async def rebalance_recommended(self) -> bool:
        """Return whether EC2 recommends to leave this instance, as an interruption is likely."""
        return await self._get(REBALANCE) is not None

    async def target_lifecycle_state(self) -> str | None:
        """Return the state that Auto Scaling moves this instance to, such as `InService`; None outside of a group."""
        return await self._get(TARGET_STATE)

    async def _get(self, path: str) -> str | None:
        """Return the text at a path; None for 404, the normal answer of most paths."""
        status, body = await self._get_once(path)
        if status == HTTPStatus.UNAUTHORIZED:
            self._token = None
            status, body = await self._get_once(path)
        if status == HTTPStatus.NOT_FOUND:
            return None
        if status != HTTPStatus.OK:
            raise TransientError(f"imds_{status}", f"IMDS answered {status} to GET {path}")
        return body.strip()

    async def _get_once(self, path: str) -> tuple[int, str]:
        if self._token is None:
            status, token = await self._put_token(REQUEST_TIMEOUT_S)
            if status != HTTPStatus.OK:
                raise TransientError(f"imds_{status}", f"IMDS answered {status} to PUT {TOKEN_PATH}")
            self._token = token
        return await self._request("GET", path, {"X-aws-ec2-metadata-token": self._token}, REQUEST_TIMEOUT_S)

    async def _put_token(self, timeout_s: float) -> tuple[int, str]:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
        return await self._request("PUT", TOKEN_PATH, headers, timeout_s)

    async def _request(self, method: str, path: str, headers: dict[str, str], timeout_s: float) -> tuple[int, str]:
        try:
            async with self._session.request(
                method,
                self._endpoint + path,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as response:
                return response.status, await response.text(errors="replace")
        except (aiohttp.ClientError, TimeoutError) as error:
            why = str(error) or type(error).__name__
            raise TransientError("imds_unreachable", f"IMDS at {self._endpoint}: {method} {path}: {why}") from error


def parse_spot_notice(body: str) -> SpotNotice:
    """Parse `{"action": "terminate", "time": "2026-03-01T12:02:00Z"}`."""
    try:
        notice = orjson.loads(body)
        at = datetime.fromisoformat(notice["time"])
        return SpotNotice(str(notice["action"]), at if at.tzinfo else at.replace(tzinfo=UTC))
    except (ValueError, KeyError, TypeError) as error:
        raise TransientError("imds_unreadable", f"IMDS: {SPOT_ACTION} holds {body[:200]!r}: {error}") from error


@asynccontextmanager
async def open_imds(settings: Settings) -> AsyncIterator[Imds | None]:
    """Yield the metadata service on EC2, None elsewhere; log which.

    This is EC2 if the service answers, or if STT_AUTOSCALING_GROUP is set, even when the service does not answer yet.
    """
    if settings.aws_ec2_metadata_disabled:
        _log.info("ec2_not_detected", reason="AWS_EC2_METADATA_DISABLED is true")
        yield None
        return
    async with aiohttp.ClientSession() as session:
        imds = Imds(session, settings.aws_ec2_metadata_service_endpoint)
        if await imds.answers():
            _log.info("ec2_detected")
        elif settings.autoscaling_group:
            _log.warning("imds_unanswered", endpoint=settings.aws_ec2_metadata_service_endpoint)
        else:
            _log.info("ec2_not_detected", reason=f"no answer from {settings.aws_ec2_metadata_service_endpoint}")
            yield None
            return
        yield imds
