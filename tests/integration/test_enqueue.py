"""The enqueue command, on real listings."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Finished, StartWorker, run_command
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
_MANY = 1_050
"""More than the 1,000 objects in one answer to a LIST."""

_PUTS_AT_ONCE = 32


async def _enqueue(site: Site, *options: str) -> Any:
    """What `enqueue --json` says, after a look that it is one object with the promised keys."""
    finished = await run_command("enqueue", "--json", *options, environment=site.environment())
    assert finished.returncode == 0, finished.stderr
    (summary,) = finished.lines()
    assert summary.keys() == _KEYS
    return summary


async def _sent_keys(site: Site) -> list[str]:
    return sorted(letter.job["source_key"] for letter in await site.take_messages())


async def test_a_listing_of_more_than_a_page_is_gone_through_to_its_end_and_once(site: Site) -> None:
    # Few recordings, around the border of the pages: the emulator is slow with a thousand messages.
    recordings = {1, 999, 1000, 1001, 1002, _MANY}
    keys = {number: f"voa/{number:04d}.{'mp3' if number in recordings else 'txt'}" for number in range(1, _MANY + 1)}
    room = asyncio.Semaphore(_PUTS_AT_ONCE)

    async def put(key: str) -> None:
        async with room:
            await site.put_recordings({key: b"x"})

    await asyncio.gather(*(put(key) for key in keys.values()))
    summary = await _enqueue(site)
    assert (summary["listed"], summary["not_audio"], summary["sent"]) == (_MANY, _MANY - 6, 6)
    assert await _sent_keys(site) == [keys[number] for number in sorted(recordings)]


async def test_jobs_name_recording_and_parameters(site: Site, speech: Path) -> None:
    key = "amdo/བཀྲ་ཤིས་ 1+2%.wav"
    await site.put_recordings({key: speech})
    await _enqueue(site)
    await _enqueue(site)
    twice = [letter.job for letter in await site.take_messages()]
    assert len(twice) == 2
    assert twice[0] == twice[1]
    listed: Any = await site.s3.list_objects_v2(Bucket=site.services.source_bucket)
    job_id = twice[0].pop("job_id")
    assert job_id.startswith("split-")
    assert twice[0] == {
        "source_type": "minio",
        "source_bucket": site.services.source_bucket,
        "source_key": key,
        "source_size": speech.stat().st_size,
        "source_etag": listed["Contents"][0]["ETag"].strip('"'),
        "output_bucket": site.services.output_bucket,
        "output_prefix": f"{key}/",
        "max_duration": 30.0,
        "metadata": {},
        "replace": False,
    }


async def test_what_is_not_audio_or_has_no_usable_name_is_counted_and_left(site: Site) -> None:
    await site.put_recordings(
        {"a.mp3": b"x", "b.MP3": b"x", "notes.txt": b"x", "mp3": b"x", "releases/c.mp3": b"x", "a.mp3.json": b"x"}
    )
    summary = await _enqueue(site)
    assert (summary["listed"], summary["not_audio"], summary["sent"]) == (6, 3, 2)
    assert summary["unusable_keys"] == ["releases/c.mp3"]
    assert await _sent_keys(site) == ["a.mp3", "b.MP3"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--limit", "2"], ["amdo/1.mp3", "amdo/2.mp3"]),
        (["--collection", "amdo"], ["amdo/1.mp3", "amdo/2.mp3", "amdo/3.mp3"]),
        (["--collection", "kham/"], ["kham/1.mp3"]),
        (["--prefix", "amdo"], ["amdo/1.mp3", "amdo/2.mp3", "amdo/3.mp3", "amdo2/1.mp3"]),
        (["--prefix", "amdo", "--limit", "1"], ["amdo/1.mp3"]),
        (["--prefix", "nothing"], []),
    ],
    ids=" ".join,
)
async def test_options_choose_what_is_sent(site: Site, options: list[str], expected: list[str]) -> None:
    await site.put_recordings(
        dict.fromkeys(["amdo/1.mp3", "amdo/2.mp3", "amdo/3.mp3", "amdo2/1.mp3", "kham/1.mp3"], b"x")
    )
    assert (await _enqueue(site, *options))["sent"] == len(expected)
    assert await _sent_keys(site) == expected


async def test_a_dry_run_counts_the_same_and_sends_nothing(site: Site) -> None:
    await site.put_recordings(dict.fromkeys(["a.mp3", "b.mp3", "c.txt"], b"xx"))
    dry = await _enqueue(site, "--dry-run")
    assert await site.counts() == Counts(visible=0, in_flight=0)
    wet = await _enqueue(site)
    assert (dry.pop("dry_run"), wet.pop("dry_run")) == (True, False)
    assert dry == wet
    assert (wet["sent"], wet["sent_bytes"]) == (2, 4)


async def test_done_is_skipped_changed_is_told_and_replaced_when_asked(
    site: Site, start_worker: StartWorker, speech: Path
) -> None:
    await site.put_recordings({"a.wav": speech, "b.wav": speech})
    worker = await start_worker(site)
    assert (await _enqueue(site))["sent"] == 2
    await worker.wait_for("job_succeeded", count=2)
    await wait_until(site.is_drained, what="the messages to be deleted")

    again = await _enqueue(site)
    assert (again["done"], again["other_params"], again["sent"]) == (2, 0, 0)

    await site.put_recordings({"b.wav": speech.read_bytes() + bytes(16)})
    changed = await _enqueue(site)
    assert (changed["done"], changed["other_params"], changed["sent"]) == (1, 1, 0)
    replacing = await _enqueue(site, "--replace")
    assert (replacing["done"], replacing["other_params"], replacing["sent"]) == (1, 1, 1)
    await worker.wait_for("job_succeeded", count=3)
    await wait_until(site.is_drained, what="the message to be deleted")
    assert (await _enqueue(site))["done"] == 2
    assert await site.take_dead_letters() == []


async def test_the_words_for_people_say_the_same(site: Site) -> None:
    await site.put_recordings({"a.mp3": b"xx", "b.txt": b"x"})
    finished = await run_command("enqueue", environment=site.environment())
    assert finished.returncode == 0
    assert "2 objects listed" in finished.stdout
    assert "1 not audio" in finished.stdout
    assert "1 jobs sent, 2 bytes" in finished.stdout


async def test_a_missing_bucket_or_queue_is_one_sentence_and_exit_3(site: Site) -> None:
    environment = site.environment()
    await site.put_recordings({"a.mp3": b"x"})
    for name, value in (("STT_SOURCE_BUCKET", "source-missing"), ("STT_SPLIT_QUEUE", "missing")):
        finished: Finished = await run_command("enqueue", environment=environment | {name: value})
        assert finished.returncode == 3
        assert value in finished.stderr
        assert "Traceback" not in finished.stderr
    assert await site.counts() == Counts(visible=0, in_flight=0)


async def test_what_can_never_be_split_is_found_out_once_and_tried_again_when_asked_or_changed(
    site: Site, start_worker: StartWorker, speech: Path
) -> None:
    await site.put_recordings({"a.mp3": b"<html>quota exceeded</html>"})
    worker = await start_worker(site)
    assert (await _enqueue(site))["sent"] == 1
    await worker.wait_for("job_failed")
    await wait_until(site.is_drained, what="the message to be deleted")

    again = await _enqueue(site)
    assert (again["unsplittable"], again["sent"]) == (1, 0)
    assert (await _enqueue(site, "--dry-run", "--retry-unsplittable"))["sent"] == 1

    await site.put_recordings({"a.mp3": speech})
    changed = await _enqueue(site)
    assert (changed["unsplittable"], changed["sent"]) == (0, 1)
    await worker.wait_for("job_succeeded")
    assert (await _enqueue(site))["done"] == 1
