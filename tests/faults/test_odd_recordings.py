"""Scenarios F15, F32 and F33: each odd recording has its own result, and other jobs are unaffected."""

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from tests.support.commands import StartWorker
from tests.support.evidence.outputs import RATE_HZ, verified
from tests.support.site import Site

pytestmark = pytest.mark.timeout(300)

Samples = NDArray[np.float32]

_ID3_BYTES = 40 * 1024**2
_PAGE = b"<!DOCTYPE html><html><body>404: the recording has moved</body></html>" * 50
_UNKNOWN_SIZE = b"\xff\xff\xff\xff"


def _sound(samples: Samples, rate_hz: int, **form: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, **{"format": "WAV", **form})
    return file.getvalue()


def _film(speech: Samples | None, rate_hz: int) -> bytes:
    """Return one second of black pictures, with or without a sound track."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        picture = container.add_stream("mpeg4", rate=10)
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"
        sound = None
        if speech is not None:
            sound = container.add_stream("aac", rate=rate_hz, layout="mono")
            pcm = (speech * 32_767).astype(np.int16).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
            frame.sample_rate = rate_hz
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
        for _ in range(10):
            container.mux(picture.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(picture.encode(None))
    return file.getvalue()


def _without_size(wav: bytes) -> bytes:
    """Return the WAV as written to a pipe, without sizes in its headers."""
    at = wav.index(b"data") + 4
    return wav[:4] + _UNKNOWN_SIZE + wav[8:at] + _UNKNOWN_SIZE + wav[at + 4 :]


def _id3(content: bytes) -> bytes:
    """Return the content behind an ID3 tag with a picture of 40 MB."""
    size = bytes(_ID3_BYTES >> shift & 0x7F for shift in (21, 14, 7, 0))
    frame = b"APIC" + (_ID3_BYTES - 10).to_bytes(4, "big") + b"\0\0"
    return b"ID3\x03\0\0" + size + frame + b"\0" * (_ID3_BYTES - 10) + content


def _with_nan(samples: Samples) -> Samples:
    broken = samples.copy()
    broken[::1000] = np.nan
    broken[1::1000] = np.inf
    return broken


async def test_each_odd_recording_has_its_own_result(
    site: Site, start_worker: StartWorker, speech: Path, samples: list[Path]
) -> None:
    spoken, rate_hz = soundfile.read(speech, dtype="float32")
    assert rate_hz == 8_000
    (mp3,) = (file.read_bytes() for file in samples if file.name == "reading.mp3")
    hiss = np.random.default_rng(1).normal(0, 1e-4, 5 * RATE_HZ).astype(np.float32)
    ok: dict[str, bytes] = {
        "film.mp4": _film(spoken, rate_hz),
        "eight-channels.wav": _sound(np.repeat(spoken[:, None], 8, axis=1), rate_hz),
        "8-khz.wav": _sound(spoken, rate_hz),
        "192-khz.flac": _sound(np.repeat(spoken, 24), 192_000, format="FLAC"),
        "nan.wav": _sound(_with_nan(spoken), rate_hz, subtype="FLOAT"),
        "size-unknown.wav": _without_size(_sound(spoken, rate_hz)),
        "forty-mb-of-id3.mp3": _id3(mp3),
        "a-flac-named.mp3": _sound(spoken, rate_hz, format="FLAC"),
        "no-extension": _sound(spoken, rate_hz, format="FLAC"),
    }
    no_speech: dict[str, bytes] = {
        "all-nan.wav": _sound(np.full_like(hiss, np.nan), RATE_HZ, subtype="FLOAT"),
        "silence.wav": _sound(np.zeros_like(hiss), RATE_HZ),
        "hiss.wav": _sound(hiss, RATE_HZ),
        "one-sample.wav": _sound(spoken[:1], RATE_HZ),
    }
    refused: dict[str, tuple[bytes, str]] = {
        "zero-bytes.mp3": (b"", "empty_file"),
        "page.mp3": (_PAGE, "not_audio"),
        "text.wav": (b"A list of the readings, in order.\n" * 100, "not_audio"),
        "silent-film.mp4": (_film(None, rate_hz), "no_audio_stream"),
        "header-alone.wav": (_sound(spoken[:0], rate_hz), "empty_recording"),
        "nine-bytes.wav": (b"RIFF\x24\0\0\0W", "undecodable"),
    }
    await site.put_recordings({**ok, **no_speech, **{name: content for name, (content, _) in refused.items()}})
    for name in (*ok, *refused, *no_speech):
        await site.send(site.job(name))
    worker = await start_worker(site, "--once")
    assert await worker.wait(timeout_s=100) == 4

    for name in ok:
        manifest = await verified(site, name)
        assert manifest["status"] == "ok", name
        assert not manifest["recording"]["truncated"], name
    for name in no_speech:
        assert (await verified(site, name))["status"] == "no_speech", name
    letters = {letter.job["source_key"]: letter for letter in await site.take_dead_letters()}
    assert {name: letter.attributes["code"] for name, letter in letters.items()} == {
        name: code for name, (_, code) in refused.items()
    }
    assert {letter.attributes["failure"] for letter in letters.values()} == {"permanent"}
    assert {line["receive_count"] for line in worker.lines() if str(line.get("event")).startswith("job_")} == {1}
    assert not worker.events("job_retried")


async def test_recording_truncated_at_the_source_is_split_and_marked(
    site: Site, start_worker: StartWorker, samples: list[Path]
) -> None:
    halves = {
        file.name: file.read_bytes()[: file.stat().st_size // 2]
        for file in samples
        if file.suffix in {".mp3", ".flac", ".wav"} and file.stem in {"reading", "telephone", "བཀྲ་ཤིས་ བདེ་ལེགས།"}
    }
    assert len(halves) == 3
    await site.put_recordings(halves)
    for name in halves:
        await site.send(site.job(name))
    worker = await start_worker(site, "--once")
    assert await worker.wait() == 0
    for name in halves:
        recording: Any = (await verified(site, name))["recording"]
        assert recording["truncated"] is True, name
        assert recording["decoded_duration_s"] < 0.75 * recording["declared_duration_s"], name


async def test_one_sample_over_thirty_seconds_makes_two_segments(
    site: Site, start_worker: StartWorker, samples: list[Path]
) -> None:
    (no_pause,) = (file for file in samples if file.name == "no-pause.mp3")
    spoken, rate_hz = soundfile.read(no_pause, dtype="float32")
    exact = np.resize(spoken if spoken.ndim == 1 else spoken[:, 0], 30 * rate_hz)
    recordings = {"exact.wav": exact, "longer.wav": np.append(exact, exact[:1])}
    await site.put_recordings({name: _sound(sound, rate_hz) for name, sound in recordings.items()})
    for name in recordings:
        await site.send(site.job(name))
    worker = await start_worker(site, "--once")
    assert await worker.wait() == 0
    found = {name: await verified(site, name) for name in recordings}
    assert found["exact.wav"]["recording"]["decoded_duration_s"] == 30
    assert [segment["duration_sec"] for segment in found["exact.wav"]["segments"]] == [30]
    assert found["longer.wav"]["total_segments"] == 2
