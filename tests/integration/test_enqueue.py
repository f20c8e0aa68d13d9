"""The enqueue command, on real listings."""

import asyncio
from pathlib import Path
from typing import Any

from tests.support.commands import StartWorker, run_command
from tests.support.site import Counts, Site
from tests.support.waiting import wait_until

_KEYS = {
    "listed",
    "not_audio",
    "done",
    "other_params",
    "unsplittable",
    "unusable_keys",
    "sent",
    "sent_bytes",
    "dry_run",
}
_OBJECTS = 1_050
"""A LIST returns at most 1,000 objects."""


async def _enqueue(site: Site, *options: str) -> Any:
    """Run `enqueue --json`; return its output, one object."""
    finished = await run_command("enqueue", "--json", *options, environment=site.environment())
    assert finished.returncode == 0, finished.stderr
    (summary,) = finished.lines()
    assert summary.keys() == _KEYS
    return summary


async def _sent_keys(site: Site) -> list[str]:
    return sorted(letter.job["source_key"] for letter in await site.take_messages())


async def test_listing_of_several_pages_is_sent_once_and_options_select(site: Site) -> None:
    # The first page ends with voa/0996.
    recordings = {1, 995, 996, 997, 998, _OBJECTS}
    voa = {n: f"voa/{n:04d}.{'mp3' if n in recordings else 'txt'}" for n in range(1, _OBJECTS + 1)}
    amdo = ["amdo/1.mp3", "amdo/2.mp3", "amdo/3.mp3"]
    puts = asyncio.Semaphore(32)

    async def put(key: str) -> None:
        async with puts:
            await site.put_recordings({key: b"x"})

    await asyncio.gather(*(put(key) for key in [*voa.values(), *amdo, "amdo2/1.mp3"]))

    summary = await _enqueue(site)
    assert (summary["listed"], summary["not_audio"], summary["sent"]) == (_OBJECTS + 4, _OBJECTS - 6, 10)
    assert await _sent_keys(site) == [*amdo, "amdo2/1.mp3", *(voa[n] for n in sorted(recordings))]

    assert (await _enqueue(site, "--collection", "amdo/"))["sent"] == 3
    assert await _sent_keys(site) == amdo
    assert (await _enqueue(site, "--prefix", "amdo", "--limit", "2"))["sent"] == 2
    assert await _sent_keys(site) == amdo[:2]


async def test_jobs_name_recordings_and_other_objects_are_counted(site: Site, speech: Path) -> None:
    key = "amdo/བཀྲ་ཤིས་ 1+2%.wav"
    await site.put_recordings(dict.fromkeys(["b.MP3", "notes.txt", "mp3", "releases/c.mp3", "b.MP3.json"], b"xx"))
    await site.put_recordings({key: speech})
    size_bytes = speech.stat().st_size

    dry = await _enqueue(site, "--dry-run")
    assert await site.counts() == Counts(visible=0, in_flight=0)
    assert (dry["listed"], dry["not_audio"], dry["unusable_keys"]) == (6, 3, ["releases/c.mp3"])
    assert (dry["sent"], dry["sent_bytes"]) == (2, size_bytes + 2)
    assert await _enqueue(site) == dry | {"dry_run": False}
    jobs = {letter.job["source_key"]: letter.job for letter in await site.take_messages()}
    assert jobs.keys() == {key, "b.MP3"}

    text = await run_command("enqueue", environment=site.environment())
    assert text.returncode == 0, text.stderr
    for part in ("6 objects listed", "3 not audio", "releases/c.mp3", "2 jobs sent"):
        assert part in text.stdout
    assert {letter.job["source_key"]: letter.job for letter in await site.take_messages()} == jobs, "not the same jobs"

    listed = await site.s3.list_objects_v2(Bucket=site.services.source_bucket, Prefix="amdo/")
    job = jobs[key]
    assert job.pop("job_id").startswith("split-")
    assert job == {
        "source_type": "minio",
        "source_bucket": site.services.source_bucket,
        "source_key": key,
        "source_size": size_bytes,
        "source_etag": listed["Contents"][0]["ETag"].strip('"'),
        "output_bucket": site.services.output_bucket,
        "output_prefix": f"{key}/",
        "max_duration": 30.0,
        "metadata": {},
        "replace": False,
    }


async def test_recordings_with_a_result_are_sent_again_only_on_request(
    site: Site, start_worker: StartWorker, speech: Path
) -> None:
    await site.put_recordings({"a.wav": speech, "b.wav": speech, "c.mp3": b"<html>quota exceeded</html>"})
    worker = await start_worker(site)
    assert (await _enqueue(site))["sent"] == 3
    await worker.wait_for("job_succeeded", count=2)
    await worker.wait_for("job_failed")
    await wait_until(site.is_drained, what="the messages to be deleted")

    await site.put_recordings({"b.wav": speech.read_bytes() + bytes(16)})
    again = await _enqueue(site)
    assert (again["done"], again["other_params"], again["unsplittable"], again["sent"]) == (1, 1, 1, 0)
    assert (await _enqueue(site, "--dry-run", "--retry-unsplittable"))["sent"] == 1

    await site.put_recordings({"c.mp3": speech})
    replacing = await _enqueue(site, "--replace")
    assert (replacing["done"], replacing["other_params"], replacing["unsplittable"]) == (1, 1, 0)
    assert replacing["sent"] == 2, "the changed source of a result, and the changed unsplittable recording"
    await worker.wait_for("job_succeeded", count=4)
    await wait_until(site.is_drained, what="the messages to be deleted")
    assert (await _enqueue(site))["done"] == 3
    assert [letter.job["source_key"] for letter in await site.take_dead_letters()] == ["c.mp3"]


async def test_missing_bucket_or_queue_exits_3_with_one_sentence(site: Site) -> None:
    await site.put_recordings({"a.mp3": b"x"})
    for name, value in (("STT_SOURCE_BUCKET", "source-missing"), ("STT_SPLIT_QUEUE", "missing")):
        finished = await run_command("enqueue", environment=site.environment() | {name: value})
        assert finished.returncode == 3
        assert value in finished.stderr
        assert "Traceback" not in finished.stderr
    assert await site.counts() == Counts(visible=0, in_flight=0)
