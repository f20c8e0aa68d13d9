"""Failure records: what attempts at a job write below `failures/` in the output bucket, for later attempts.

A process that dies reports nothing. So each attempt after the first writes a record before it splits, and so does any
attempt whose pool process is lost. A recording that can never be split is marked once. A lifecycle rule of the bucket
removes all records in time.
"""

import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

import orjson
import structlog

from stt_async.errors import PermanentError
from stt_async.job import SplitJob
from stt_async.services.bucket import SOURCE_ETAG, Bucket

_log = structlog.get_logger()

PREFIX = "failures/"
STARTED = "started"
UNSPLITTABLE = "permanent.json"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a job: `event` is `started`, or the code of how its pool process was lost."""

    attempt: int
    event: str
    host: str
    at: datetime

    def __str__(self) -> str:
        return f"attempt {self.attempt} {self.event} on {self.host} at {self.at:%Y-%m-%d %H:%M:%S} UTC"


class FailureRecords:
    """The failure records of all jobs. Methods raise the failure classes of `errors`."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def record(self, job_id: str, attempt: int, event: str) -> None:
        """Write the record of an attempt; it replaces an earlier record of the same attempt."""
        record = Attempt(attempt, event, socket.gethostname(), datetime.now(UTC))
        await self._bucket.put_json(f"{_folder(job_id)}{attempt}.json", orjson.dumps(record), {})

    async def read(self, job_id: str) -> list[Attempt]:
        """Return the recorded attempts at a job, in order."""
        attempts: list[Attempt] = []
        for key in await self._bucket.keys(_folder(job_id)):
            stored = None if key.endswith(UNSPLITTABLE) else await self._bucket.get(key)
            if stored is None:
                continue
            try:
                attempts.append(_attempt(stored.data))
            except (KeyError, TypeError, ValueError) as error:
                # Somebody else wrote it: no reason not to split the recording.
                _log.warning("attempt_record_unreadable", key=key, error=repr(error))
        return sorted(attempts, key=lambda attempt: attempt.attempt)

    async def mark_unsplittable(self, job: SplitJob, source_etag: str | None, error: PermanentError) -> None:
        """Record that these bytes can never be split, so that `enqueue` skips them."""
        record = {
            "recording": job.recording,
            "source_key": job.source_key,
            "source_etag": source_etag,
            "code": error.code,
            "reason": error.message,
            "at": datetime.now(UTC),
        }
        key = _folder(job.job_id) + UNSPLITTABLE
        await self._bucket.put_json(key, orjson.dumps(record), {SOURCE_ETAG: source_etag or ""})

    async def is_unsplittable(self, job: SplitJob) -> bool:
        """Return whether the bytes that a job names are marked unsplittable. A job without an ETag never is."""
        head = await self._bucket.head(_folder(job.job_id) + UNSPLITTABLE)
        etag = None if head is None else head.metadata.get(SOURCE_ETAG)
        return bool(etag) and etag == job.source_etag


def _attempt(data: bytes) -> Attempt:
    record = orjson.loads(data)
    return Attempt(int(record["attempt"]), str(record["event"]), record["host"], datetime.fromisoformat(record["at"]))


def _folder(job_id: str) -> str:
    return f"{PREFIX}{quote(job_id, safe='')}/"
