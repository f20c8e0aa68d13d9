"""Scenario F19: MinIO behind its CDN answers 403 to HEAD and 200 to GET, so no request uses HEAD."""

from pathlib import Path

from tests.support.commands import StartWorker, run_command
from tests.support.evidence.outputs import verified
from tests.support.site import Site


async def test_commands_and_worker_read_the_source_by_get_only(
    site: Site, start_worker: StartWorker, speech: Path
) -> None:
    await site.put_recordings({"a/1.wav": speech, "a/2.wav": speech})
    for command in (["doctor"], ["enqueue"]):
        finished = await run_command(*command, environment=site.environment())
        assert finished.returncode == 0, finished.stderr
    worker = await start_worker(site, "--once")
    assert await worker.wait() == 0
    for key in ("a/1.wav", "a/2.wav"):
        await verified(site, key)
    calls = [call for call in site.history.calls if call.bucket == site.services.source_bucket]
    assert {call.operation for call in calls} >= {"ListObjectsV2", "GetObject"}
    assert {call.method for call in calls} == {"GET"}
