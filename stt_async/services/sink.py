"""The output: segments first, the manifest last."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import structlog

from stt_async.errors import ClassifiedError, TransientError
from stt_async.manifest import MANIFEST_NAME, Manifest
from stt_async.services.bucket import ABORT_TIMEOUT_S, SOURCE_ETAG, Bucket

_PARAMS = "params-sha256"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A recording's manifest as it is stored, not parsed yet, and its ETag."""

    data: bytes
    etag: str

    def parse(self) -> Manifest:
        """Return the manifest.

        Raises:
            PermanentError: `foreign_manifest`, it is not one of ours.
        """
        return Manifest.from_json(self.data)


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """What a manifest was made from, by the metadata of its object."""

    params_sha256: str
    source_etag: str


class Sink:
    """The output bucket. Every method raises the failure classes of `errors`."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def read_manifest(self, prefix: str) -> StoredManifest | None:
        """GET the manifest below `prefix` (with its slash); None if there is none."""
        stored = await self._bucket.get(prefix + MANIFEST_NAME)
        return None if stored is None else StoredManifest(stored.data, stored.etag)

    async def head_manifest(self, prefix: str) -> ManifestHead | None:
        """HEAD the manifest below `prefix`: what it was made from, without its segments; None if there is none."""
        head = await self._bucket.head(prefix + MANIFEST_NAME)
        if head is None:
            return None
        return ManifestHead(head.metadata.get(_PARAMS, ""), head.metadata.get(SOURCE_ETAG, ""))

    async def put(self, file: Path, key: str) -> None:
        """Upload one file."""
        await self._bucket.upload(file, key)

    async def commit(self, manifest: Manifest, *, replaces: str | None) -> Manifest | None:
        """Write the manifest, which makes the output exist; then abort uploads that killed attempts left open.

        Args:
            manifest: What to commit. All objects that it lists are uploaded already.
            replaces: ETag of the manifest it may replace; None: there must be none.

        Returns:
            None if this manifest is committed; else the manifest of a faster attempt, or of this attempt's own earlier
            try whose answer was lost.
        """
        key = manifest.output_prefix + MANIFEST_NAME
        metadata = {_PARAMS: manifest.params_sha256, SOURCE_ETAG: manifest.source_etag or ""}
        if await self._bucket.put_json_if(key, manifest.to_json(), metadata, replaces=replaces):
            if manifest.archive is not None:
                await self._abort_abandoned(manifest.output_prefix)
            return None
        winner = await self.read_manifest(manifest.output_prefix)
        if winner is None:
            raise TransientError("manifest_vanished", f"{key} prevented the commit and does not exist any more")
        return winner.parse()

    async def probe(self) -> None:
        """Prove that this process may write and abort, and that a missing object reads as missing."""
        await self._bucket.probe(".stt-async-probe")

    async def count_open_uploads(self) -> int:
        """Return how many multipart uploads were neither completed nor aborted, up to 1,000."""
        return len(await self._bucket.open_uploads(""))

    async def _abort_abandoned(self, prefix: str) -> None:
        """Abort the multipart uploads of a recording whose manifest is committed: nothing needs them any more."""
        try:
            async with asyncio.timeout(ABORT_TIMEOUT_S):
                for key, upload_id in await self._bucket.open_uploads(prefix):
                    # A deeper key belongs to another recording (`a/` and `a/b.mp3/`).
                    if "/" not in key.removeprefix(prefix):
                        await self._bucket.abort(key, upload_id)
                        _log.info("multipart_abandoned_aborted", key=key)
        except (ClassifiedError, TimeoutError) as error:
            _log.warning("multipart_abort_failed", key=prefix, error=str(error))
