"""Splits recordings on disk with the worker's pool, without any service."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stt_async.errors import ClassifiedError, PermanentError, SettingsError, TransientError
from stt_async.job import AUDIO_SUFFIXES, SplitJob, split_job_id
from stt_async.manifest import MANIFEST_NAME, Manifest
from stt_async.params import SplitParams
from stt_async.settings import Settings
from stt_async.worker.pool import Pool, open_pool

BUCKET = "local"
"""The bucket in the manifests of recordings from disk."""


@dataclass(frozen=True, slots=True)
class LocalRecording:
    """A file, and the name of its output folder."""

    file: Path
    name: str


@dataclass(frozen=True, slots=True)
class LocalResult:
    """The result of one recording: a manifest or an error."""

    recording: LocalRecording
    manifest: Manifest | None
    error: ClassifiedError | None
    skipped: bool

    def facts(self) -> dict[str, Any]:
        """Return the object that `--json` prints; its keys are the same for every result."""
        manifest, error = self.manifest, self.error
        return {
            "file": str(self.recording.file),
            "name": self.recording.name,
            "status": "failed" if manifest is None else manifest.status,
            "skipped": self.skipped,
            "duration_s": None if manifest is None else manifest.recording.decoded_duration_s,
            "segments": None if manifest is None else manifest.total_segments,
            "speech_s": None if manifest is None else manifest.speech_s,
            "code": None if error is None else error.code,
            "error": None if error is None else error.message,
        }


def find_recordings(paths: Sequence[Path]) -> list[LocalRecording]:
    """Return the files among the paths, and the files with the suffix of a recording below the folders.

    Raises:
        SettingsError: a path does not exist, no recording was found, or two would get the same output folder.
    """
    found: list[LocalRecording] = []
    for path in paths:
        if path.is_dir():
            files = sorted(f for f in path.rglob("*") if f.suffix.lower() in AUDIO_SUFFIXES and f.is_file())
            found += [LocalRecording(file, file.relative_to(path).as_posix()) for file in files]
        elif path.is_file():
            found.append(LocalRecording(path, path.name))
        else:
            raise SettingsError(f"{path} does not exist")
    if not found:
        raise SettingsError(f"no recording found in {', '.join(map(str, paths))}")
    owners: dict[str, Path] = {}
    for recording in found:
        other = owners.setdefault(recording.name, recording.file)
        if other.resolve() != recording.file.resolve():
            raise SettingsError(f"{other} and {recording.file} have the same name: split them into different folders")
    return list({recording.name: recording for recording in found}.values())


async def split_files(
    recordings: Sequence[LocalRecording], out: Path, settings: Settings
) -> AsyncIterator[LocalResult]:
    """Split recordings into `out/<name>/`; yield each result as soon as it is complete.

    An output folder appears complete or not at all. A recording whose folder matches it and the parameters is skipped.
    """
    processes = min(settings.processes, len(recordings))
    async with open_pool(settings.model_copy(update={"processes": processes})) as pool:
        tasks = [asyncio.create_task(_split_one(each, out, pool, settings)) for each in recordings]
        try:
            for done in asyncio.as_completed(tasks):
                yield await done
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def _split_one(recording: LocalRecording, out: Path, pool: Pool, settings: Settings) -> LocalResult:
    folder = out / recording.name
    params = settings.split_params
    try:
        job = _job(recording, params)
        stored = _stored(folder)
        if stored is not None and stored.matches(job, params, source_etag=job.source_etag):
            return LocalResult(recording, stored, None, skipped=True)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            split = await pool.split(recording.file, partial, params, settings.limits)
            manifest = Manifest.from_result(
                job, split.result, params, source_etag=job.source_etag, processed_at=datetime.now(UTC)
            )
            (partial / MANIFEST_NAME).write_bytes(manifest.to_json())
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except ClassifiedError as error:
        return LocalResult(recording, None, error, skipped=False)
    except OSError as error:
        return LocalResult(recording, None, TransientError("file_error", str(error)), skipped=False)
    return LocalResult(recording, manifest, None, skipped=False)


def _job(recording: LocalRecording, params: SplitParams) -> SplitJob:
    facts = recording.file.stat()
    try:
        return SplitJob(
            job_id=split_job_id(BUCKET, recording.name, params),
            source_bucket=BUCKET,
            source_key=recording.name,
            source_size=facts.st_size,
            source_etag=f"{facts.st_size}-{facts.st_mtime_ns}",
            output_bucket=BUCKET,
            output_prefix=recording.name,
        )
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise PermanentError("unusable_name", f"its name cannot be an output prefix: it {reason}") from error


def _stored(folder: Path) -> Manifest | None:
    with suppress(FileNotFoundError):
        return Manifest.from_json((folder / MANIFEST_NAME).read_bytes())
    return None
