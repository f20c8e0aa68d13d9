"""Scenario F31: malformed messages among jobs."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from stt_async.local.sqs.limits import MAX_MESSAGE_BYTES
from tests.support.commands import StartWorker
from tests.support.evidence.outputs import verified
from tests.support.site import Site
from tests.support.waiting import wait_until

_ATTRIBUTES_BYTES = 10_000
"""More than the reason of a dead letter has: SQS counts body and attributes together."""


def _malformed(site: Site) -> dict[str, tuple[str, str]]:
    """Bodies, and a part of the reason for each, by name."""
    job = site.job("good.wav")
    text = orjson.dumps(job).decode()
    older = f"{site.services.source_bucket}/good.wav"

    def but(**fields: Any) -> str:
        return orjson.dumps(job | fields).decode()

    return {
        "not JSON": ("this is { not JSON", "not JSON"),
        "cut": (text[:-1], "not JSON"),
        "array": (f"[{text}]", "dict"),
        "string": (orjson.dumps(text).decode(), "dict"),
        "null": ("null", "dict"),
        "256 KB": (but(metadata={"a": "x" * (256 * 1024 - _ATTRIBUTES_BYTES)}), "65536 is the most"),
        "1 MB": (but(metadata={"a": "x" * (1024**2 - _ATTRIBUTES_BYTES)}), "65536 is the most"),
        "too much metadata": (but(metadata={"a": "x" * 9_000}), "metadata"),
        "NaN": (text[:-1] + ', "max_duration": NaN}', "NaN is not a JSON number"),
        "infinity": (text[:-1] + ', "metadata": {"a": 1e999}}', "metadata"),
        "deep nesting": (text[:-1] + ', "metadata": {"a": ' + "[" * 30_000 + "]" * 30_000 + "}}", "not JSON"),
        "name twice": (text[:-1] + ', "job_id": "another"}', "same name twice"),
        "missing fields": ('{"job_id": "x"}', "source_key: Field required"),
        "extra field": (but(surprise=1), "surprise: Extra"),
        "wrong type": (but(source_size="12"), "source_size: "),
        "wrong type inside": (but(metadata=["a"]), "metadata: "),
        "not a number": (but(max_duration=True), "max_duration: "),
        "both formats": (but(raw_audio_path=older), "are in one message"),
        "control character": (but(source_key="a\x1b[31m.wav"), "U+001B"),
        "out of bounds": (but(max_duration=61), "max_duration: "),
    }


async def test_malformed_message_is_dead_lettered_beside_jobs_that_succeed(
    site: Site, start_worker: StartWorker, speech: Path
) -> None:
    malformed = _malformed(site)
    good = [f"good-{number}.wav" for number in range(len(malformed) // 5)]
    await site.put_recordings(dict.fromkeys([*good, "good.wav"], speech))
    for number, (body, _) in enumerate(malformed.values()):
        if number % 5 == 2:  # in each batch of ten
            await site.send(site.job(good[number // 5]))
        await site.send(body)
    worker = await start_worker(site, "--once", STT_SLOTS="16", STT_PROCESSES="1")
    assert await worker.wait() == 4

    letters = {letter.body: letter.attributes for letter in await site.take_dead_letters()}
    assert letters.keys() == {body for body, _ in malformed.values()}
    for name, (body, word) in malformed.items():
        reason = letters[body]
        assert (reason["failure"], reason["code"], reason["receive_count"]) == ("permanent", "invalid_job", "1"), name
        assert word in reason["reason"], name
    assert await site.is_drained()
    done = {line["recording"].split("/")[1]: line["receive_count"] for line in worker.events("job_succeeded")}
    assert done == dict.fromkeys(good, 1)
    assert not worker.events("job_crashed")
    assert {key.split("/")[0] for key in await site.objects()} == set(good)
    for key in good:
        await verified(site, key)


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # of the test's own client
async def test_message_of_the_largest_size_is_dead_lettered_with_its_reason(
    site: Site, start_worker: StartWorker
) -> None:
    await site.send("x" * MAX_MESSAGE_BYTES)
    worker = await start_worker(site, "--once")
    await worker.wait_for("job_failed")
    await wait_until(site.is_drained, what="the message to be deleted")
    [letter] = await site.take_dead_letters()
    assert letter.attributes["code"] == "invalid_job"
    assert letter.attributes["body_bytes"] == str(MAX_MESSAGE_BYTES)
