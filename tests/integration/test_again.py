"""A second job for the same output: a finished job is skipped, and only `replace` overwrites another result."""

from datetime import datetime
from pathlib import Path
from typing import Any

from tests.support.commands import StartWorker
from tests.support.evidence.outputs import verified
from tests.support.site import Site
from tests.support.waiting import wait_until


async def test_second_job_is_skipped_or_conflicts_until_it_replaces(
    site: Site, start_worker: StartWorker, speech: Path, samples: list[Path]
) -> None:
    worker = await start_worker(site)
    (other,) = (file for file in samples if file.name == "two-voices.m4a")
    await site.put_recordings({"a.wav": speech, "b.m4a": other})
    foreign = b'{"made": "by something else"}'
    await site.s3.put_object(Bucket=site.services.output_bucket, Key="foreign/metadata.json", Body=foreign)
    await site.send(site.job("a.wav"))
    await worker.wait_for("job_succeeded")
    await wait_until(site.is_drained, what="the message to be deleted")
    first = await verified(site, "a.wav")
    before = await _dates_and_etags(site)

    # The same job again costs one GET of its manifest.
    calls = len(site.history.calls)
    await site.send(site.job("a.wav", job_id="sent again"))
    await worker.wait_for("job_skipped")
    await wait_until(site.is_drained, what="the message to be deleted")
    calls_to_objects = [call for call in site.history.calls[calls:] if call.service != "sqs"]
    assert [(call.service, call.operation, call.key) for call in calls_to_objects] == [
        ("s3", "GetObject", "a.wav/metadata.json")
    ]

    # Other parameters, another source and a manifest of another program are conflicts. No object changes.
    shorter = site.job("a.wav", job_id="other parameters", max_duration=3)
    over_foreign = site.job("a.wav", job_id="foreign manifest", output_prefix="foreign/")
    for job in (shorter, site.job("b.m4a", job_id="other source", output_prefix="a.wav/"), over_foreign):
        await site.send(job)
    await worker.wait_for("job_failed", count=3)
    await wait_until(site.is_drained, what="the messages to be deleted")
    letters = {letter.job["job_id"]: letter for letter in await site.take_dead_letters()}
    assert {job_id: letter.attributes["code"] for job_id, letter in letters.items()} == {
        "other parameters": "conflict",
        "other source": "conflict",
        "foreign manifest": "foreign_manifest",
    }
    assert letters["other parameters"].job == shorter
    assert letters["other parameters"].attributes["failure"] == "permanent"
    assert '"replace": true' in letters["other parameters"].attributes["reason"]
    assert await _dates_and_etags(site) == before

    for job in (shorter, over_foreign):
        await site.send(job | {"replace": True})
    await worker.wait_for("job_succeeded", count=3)
    replaced = await verified(site, "a.wav", orphans=True)
    assert (replaced["job_id"], replaced["max_segment_duration"]) == ("other parameters", 3)
    assert replaced["total_segments"] > first["total_segments"]
    await verified(site, "foreign")
    assert await site.take_dead_letters() == []


async def _dates_and_etags(site: Site) -> dict[str, tuple[datetime, str]]:
    listed: Any = await site.s3.list_objects_v2(Bucket=site.services.output_bucket)
    return {found["Key"]: (found["LastModified"], found["ETag"]) for found in listed["Contents"]}
