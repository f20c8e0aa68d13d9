"""The same recording again: nothing is computed twice, and nothing is overwritten unasked."""

from datetime import datetime
from pathlib import Path
from typing import Any

from tests.support.commands import StartWorker
from tests.support.outputs import verified
from tests.support.proxy import OpenProxy
from tests.support.site import Counts, Site
from tests.support.waiting import wait_until


async def test_a_job_done_before_costs_one_get_of_its_manifest(
    site: Site, start_worker: StartWorker, open_proxy: OpenProxy, speech: Path
) -> None:
    minio, s3 = await open_proxy(site.services.servers.objects.url), await open_proxy(site.services.servers.objects.url)
    worker = await start_worker(site, STT_MINIO_ENDPOINT=minio.endpoint, AWS_ENDPOINT_URL_S3=s3.url)
    await site.put_recordings({"a.wav": speech})
    await site.send(site.job("a.wav"))
    await worker.wait_for("job_succeeded")
    await wait_until(site.is_drained, what="the message to be deleted")
    before = await _facts_of_objects(site)
    assert "a.wav/metadata.json" in before

    minio.requests.clear()
    s3.requests.clear()
    await site.send(site.job("a.wav", job_id="sent again"))
    await worker.wait_for("job_skipped")
    await wait_until(site.is_drained, what="the message to be deleted")
    assert minio.requests == []
    assert s3.requests == [f"GET /{site.services.output_bucket}/a.wav/metadata.json"]
    assert await _facts_of_objects(site) == before
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)


async def test_other_parameters_are_a_conflict_until_told_to_replace(
    site: Site, start_worker: StartWorker, speech: Path
) -> None:
    worker = await start_worker(site)
    await site.put_recordings({"a.wav": speech})
    await site.send(site.job("a.wav"))
    await worker.wait_for("job_succeeded")
    first = await verified(site, "a.wav")

    shorter = site.job("a.wav", job_id="shorter", max_duration=3)
    await site.send(shorter)
    await worker.wait_for("job_failed")
    await wait_until(site.is_drained, what="the message to be deleted")
    (letter,) = await site.take_dead_letters()
    assert letter.job == shorter
    assert (letter.attributes["failure"], letter.attributes["code"]) == ("permanent", "conflict")
    assert '"replace": true' in letter.attributes["reason"]
    assert await verified(site, "a.wav") == first

    await site.send(shorter | {"replace": True})
    await worker.wait_for("job_succeeded", count=2)
    replaced = await verified(site, "a.wav", orphans=True)
    assert (replaced["job_id"], replaced["max_segment_duration"]) == ("shorter", 3)
    assert replaced["total_segments"] > first["total_segments"]
    assert await site.take_dead_letters() == []


async def test_another_source_under_the_same_prefix_is_a_conflict(
    site: Site, start_worker: StartWorker, speech: Path, samples: list[Path]
) -> None:
    worker = await start_worker(site)
    (other,) = (file for file in samples if file.name == "two-voices.m4a")
    await site.put_recordings({"a.wav": speech, "b.m4a": other})
    await site.send(site.job("a.wav"))
    await worker.wait_for("job_succeeded")
    first = await verified(site, "a.wav")

    await site.send(site.job("b.m4a", output_prefix="a.wav/"))
    await worker.wait_for("job_failed")
    await wait_until(site.is_drained, what="the message to be deleted")
    (letter,) = await site.take_dead_letters()
    assert letter.attributes["code"] == "conflict"
    assert await verified(site, "a.wav") == first


async def _facts_of_objects(site: Site) -> dict[str, tuple[datetime, str]]:
    listed: Any = await site.s3.list_objects_v2(Bucket=site.services.output_bucket)
    return {found["Key"]: (found["LastModified"], found["ETag"]) for found in listed["Contents"]}


async def test_a_manifest_that_is_not_ours_stands_until_told_to_replace(
    site: Site, start_worker: StartWorker, speech: Path
) -> None:
    worker = await start_worker(site)
    await site.put_recordings({"a.wav": speech})
    foreign = b'{"made": "by something else"}'
    await site.s3.put_object(Bucket=site.services.output_bucket, Key="a.wav/metadata.json", Body=foreign)
    await site.send(site.job("a.wav"))
    await worker.wait_for("job_failed")
    await wait_until(site.is_drained, what="the message to be deleted")
    (letter,) = await site.take_dead_letters()
    assert letter.attributes["code"] == "foreign_manifest"
    assert await site.read("a.wav/metadata.json") == foreign

    await site.send(site.job("a.wav") | {"replace": True})
    await worker.wait_for("job_succeeded")
    await verified(site, "a.wav")
