"""Jobs that can never succeed become dead letters with a reason; the other jobs of the batch succeed."""

from pathlib import Path
from typing import Any

import orjson

from tests.support.commands import StartWorker
from tests.support.evidence.outputs import verified
from tests.support.site import Site


async def test_permanent_error_is_a_dead_letter_with_its_reason(
    site: Site, start_worker: StartWorker, speech: Path, samples: list[Path]
) -> None:
    (web_page,) = (file for file in samples if file.name == "not-a-recording.mp3")
    cut = speech.read_bytes()[:30]
    await site.put_recordings(
        {
            "good-1.wav": speech,
            "good-2.wav": speech,
            "page.mp3": web_page,
            "cut.wav": cut,
            "empty.wav": b"",
            "changed.wav": speech,
        }
    )
    source = site.services.source_bucket
    bad: list[tuple[str, dict[str, Any] | str, str]] = [
        ("invalid_job", "this is { not JSON", "JSON"),
        ("invalid_job", "[]", "dict"),
        ("invalid_job", {"job_id": "x"}, "source_bucket"),
        ("invalid_job", site.job("good-1.wav", output_bucket="elsewhere"), "elsewhere"),
        ("invalid_job", site.job("good-1.wav", source_bucket="secrets"), "secrets"),
        ("invalid_job", site.job("good-1.wav", surprise=1), "surprise"),
        ("invalid_job", site.job("good-1.wav", output_prefix="../up"), "output_prefix"),
        ("invalid_job", {"job_id": "x", "raw_audio_path": "no-slash", "output_prefix": "x"}, "raw_audio_path"),
        ("source_missing", site.job("missing.wav"), f"{source}/missing.wav"),
        ("not_audio", site.job("page.mp3"), "audio"),
        ("undecodable", site.job("cut.wav"), ""),
        ("empty_file", site.job("empty.wav"), "0 bytes"),
        ("source_changed", site.job("changed.wav", source_etag="0" * 32), "ETag"),
        ("source_changed", site.job("changed.wav", source_size=7), "7"),
    ]
    bodies = [body if isinstance(body, str) else orjson.dumps(body).decode() for _, body, _ in bad]
    await site.send(site.job("good-1.wav"))
    for body in bodies:
        await site.send(body)
    await site.send(site.job("good-2.wav"))
    worker = await start_worker(site, "--once")
    assert await worker.wait(timeout_s=200) == 4

    letters = {letter.body: letter for letter in await site.take_dead_letters()}
    assert letters.keys() == set(bodies)
    for (code, _, detail), body in zip(bad, bodies, strict=True):
        attributes = letters[body].attributes
        assert (attributes["failure"], attributes["code"], attributes["receive_count"]) == ("permanent", code, "1")
        assert detail in attributes["reason"]
    assert await site.is_drained()
    assert set(await site.manifests()) == {"good-1.wav", "good-2.wav"}
    assert {key.split("/")[0] for key in await site.objects()} == {"good-1.wav", "good-2.wav", "failures"}
    assert all(key.endswith("/permanent.json") for key in await site.objects("failures/"))
    for key in ("good-1.wav", "good-2.wav"):
        assert (await verified(site, key))["status"] == "ok"
    receives = {line["recording"]: line["receive_count"] for line in worker.events("job_succeeded")}
    assert receives == {f"{source}/good-1.wav": 1, f"{source}/good-2.wav": 1}
