"""Breadcrumbs: what attempts at a job leave behind, below `failures/` in the output bucket, for the next one.

A process that dies tells nobody why. So each attempt after the first leaves a mark before it splits, and any attempt
whose process was lost says so. What can never be split is noted once. A lifecycle rule removes all of it in
time.
"""

import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

import orjson
import structlog

from stt_async.errors import PermanentError
from stt_async.job import SplitJob
from stt_async.retry import Retry
from stt_async.services.aws import object_head, translated

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

_log = structlog.get_logger()

PREFIX = "failures/"
STARTED = "started"
CONDEMNED = "permanent.json"

_SOURCE_ETAG = "source-etag"


@dataclass(frozen=True, slots=True)
class Breadcrumb:
    """One attempt: `event` is `started`, or the code of how its process was lost."""

    attempt: int
    event: str
    host: str
    at: datetime

    def __str__(self) -> str:
        return f"attempt {self.attempt} {self.event} on {self.host} at {self.at:%Y-%m-%d %H:%M:%S} UTC"


class Trail:
    """The breadcrumbs of all jobs. Methods raise the failure classes of `errors`."""

    def __init__(self, client: "S3Client", *, bucket: str, retry: Retry) -> None:
        self._client = client
        self._bucket = bucket
        self._retry = retry

    async def leave(self, job_id: str, attempt: int, event: str) -> None:
        """Leave the breadcrumb of an attempt, over one that it left before."""
        crumb = Breadcrumb(attempt, event, socket.gethostname(), datetime.now(UTC))
        await self._retry(self._put, f"{_folder(job_id)}{attempt}.json", orjson.dumps(crumb))

    async def read(self, job_id: str) -> list[Breadcrumb]:
        """Return what earlier attempts at a job left, in their order."""
        return sorted(await self._retry(self._read, _folder(job_id)), key=lambda crumb: crumb.attempt)

    async def condemn(self, job: SplitJob, source_etag: str | None, error: PermanentError) -> None:
        """Note that these bytes can never be split, so that nobody has to find out again."""
        note = {
            "recording": job.recording,
            "source_key": job.source_key,
            "source_etag": source_etag,
            "code": error.code,
            "reason": error.message,
            "at": datetime.now(UTC),
        }
        head = {_SOURCE_ETAG: source_etag or ""}
        await self._retry(self._put, _folder(job.job_id) + CONDEMNED, orjson.dumps(note), head)

    async def is_condemned(self, job: SplitJob) -> bool:
        """Tell whether the bytes that a job names were condemned: by its ETag, without which nothing is."""
        etag = await self._retry(self._head, _folder(job.job_id) + CONDEMNED)
        return bool(etag) and etag == job.source_etag

    async def _put(self, key: str, data: bytes, head: dict[str, str] | None = None) -> None:
        with translated(f"S3 bucket {self._bucket}"):
            await self._client.put_object(
                Bucket=self._bucket, Key=key, Body=data, ContentType="application/json", Metadata=head or {}
            )

    async def _head(self, key: str) -> str | None:
        found = await object_head(self._client, self._bucket, key)
        return None if found is None else found["Metadata"].get(_SOURCE_ETAG)

    async def _read(self, folder: str) -> list[Breadcrumb]:
        crumbs: list[Breadcrumb] = []
        with translated(f"S3 bucket {self._bucket}"):
            listed = await self._client.list_objects_v2(Bucket=self._bucket, Prefix=folder)
            for found in listed.get("Contents", []):
                if found["Key"].endswith(CONDEMNED):
                    continue
                answer = await self._client.get_object(Bucket=self._bucket, Key=found["Key"])
                try:
                    crumbs.append(_breadcrumb(await answer["Body"].read()))
                except (KeyError, TypeError, ValueError) as error:
                    # Of somebody else's making: no reason for a recording not to be split.
                    _log.warning("breadcrumb_unreadable", key=found["Key"], error=repr(error))
        return crumbs


def _breadcrumb(data: bytes) -> Breadcrumb:
    facts = orjson.loads(data)
    return Breadcrumb(int(facts["attempt"]), str(facts["event"]), facts["host"], datetime.fromisoformat(facts["at"]))


def _folder(job_id: str) -> str:
    return f"{PREFIX}{quote(job_id, safe='')}/"
