"""Scenario F9: an attempt that did not commit leaves orphans, which are no result and do no harm."""

from pathlib import Path

from tests.support.commands import StartWorker
from tests.support.evidence.outputs import verified
from tests.support.site import Site
from tests.support.waiting import wait_until


async def test_segments_without_a_manifest_are_redone_and_orphans_stay(
    site: Site, start_worker: StartWorker, speech: Path
) -> None:
    bucket = site.services.output_bucket
    worker = await start_worker(site)
    await site.put_recordings({"a.wav": speech, "whole.wav": speech})
    await site.send(site.job("whole.wav"))
    await worker.wait_for("job_succeeded")
    first, *others = (await verified(site, "whole.wav"))["segments"]
    assert others

    # An older attempt wrote the first segment with the same name, and others with names that this attempt does not use.
    older = {
        f"a.wav/{first['filename']}": await site.read(f"whole.wav/{first['filename']}"),
        "a.wav/segment_00001-00000000.flac": b"rounded otherwise by another CPU",
        "a.wav/segment_99999-ffffffff.flac": b"cut otherwise by an older version",
        "a.wav/segments-0badf00d.tar": b"of another layout",
    }
    for key, body in older.items():
        await site.s3.put_object(Bucket=bucket, Key=key, Body=body)
    await site.send(site.job("a.wav"))
    await worker.wait_for("job_succeeded", count=2)
    await wait_until(site.is_drained, what="the message to be deleted")
    manifest = await verified(site, "a.wav", orphans=True)
    assert [segment["sha256"] for segment in manifest["segments"]] == [
        segment["sha256"] for segment in (first, *others)
    ]
    for key, body in older.items():
        assert await site.read(key) == body
    assert not worker.events("job_skipped")
