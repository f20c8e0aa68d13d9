"""Checks everything that a worker needs: settings, scratch space, model, services."""

import shutil
import tempfile
from collections.abc import AsyncIterator

from stt_async.errors import TransientError
from stt_async.services.connections import connect, operator_retry
from stt_async.settings import Settings
from stt_async.worker.pool import open_pool
from stt_async.worker.preflight import Check, checks, run_check

RETRY_TIMEOUT_S = 5.0
"""For each call to a service. Short, because an operator waits at a terminal."""


async def examine(settings: Settings) -> AsyncIterator[Check]:
    """Yield the checks, local ones first. They leave no file, object or message behind."""
    impatient = settings.model_copy(update={"retry_timeout_s": RETRY_TIMEOUT_S, "retry_max_wait_s": 1.0})
    vad = settings.vad
    yield Check(
        "settings", None, f"{settings.job_slots} slots, {settings.processes} processes, threshold {vad.threshold}"
    )

    async def scratch() -> str:
        try:
            settings.scratch_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=settings.scratch_dir) as file:
                file.write(b"probe")
            free_bytes = shutil.disk_usage(settings.scratch_dir).free
        except OSError as error:
            raise TransientError("scratch", f"cannot write to {settings.scratch_dir}: {error}") from error
        return f"{free_bytes / 1e9:.1f} GB free"

    async def model() -> str:
        async with open_pool(settings.model_copy(update={"processes": 1})):
            return "a pool child loaded it"

    yield await run_check(f"scratch {settings.scratch_dir}", scratch, "Set STT_SCRATCH_DIR to a writable folder")
    yield await run_check("model", model, "Remove .venv and run bin/doctor again, which installs the environment anew")
    async with connect(impatient, operator_retry(impatient)) as services:
        async for check in checks(services, impatient):
            yield check

        async def uploads() -> str:
            return f"{await services.sink.count_open_uploads()} open; a job aborts those of its earlier attempts"

        yield await run_check(
            f"multipart uploads in {settings.output_bucket}",
            uploads,
            "Allow s3:ListBucketMultipartUploads on the bucket. Workers run without it, but then only the bucket's "
            "lifecycle rule removes the uploads of killed attempts",
        )
