"""Decoding of any container to 16 kHz mono, and refusals."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from numpy.typing import NDArray

from stt_async.audio import sniff
from stt_async.audio.decode import Decoded, Tools, decode
from stt_async.audio.silero import State
from stt_async.audio.stopwatch import Stopwatch
from stt_async.audio.stream import FRAME_SAMPLES, Pcm
from stt_async.errors import PermanentError
from stt_async.params import SplitLimits
from tests.unit.audio.conftest import Write

Tone = NDArray[np.float32]


class NoSpeech:
    """A network that finds no speech and takes no time to load."""

    name = "no speech"

    def start(self) -> State:
        return None

    def forward(self, samples: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        return torch.zeros(len(samples) // FRAME_SAMPLES), state


@dataclass
class Result:
    decoded: Decoded
    pcm: Pcm


@contextmanager
def _descriptor(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def _decode(path: Path, limits: SplitLimits | None = None) -> Result:
    tools = Tools(path.parent, NoSpeech(), limits or SplitLimits(), Stopwatch())
    with _descriptor(path) as fd, decode(fd, tools) as decoded:
        decoded.pcm.seek(0)
        return Result(decoded, np.frombuffer(decoded.pcm.read(), np.int16))


def _refusal_code(path: Path, limits: SplitLimits | None = None) -> str:
    before = set(path.parent.iterdir())
    with pytest.raises(PermanentError) as caught:
        _decode(path, limits)
    assert set(path.parent.iterdir()) == before
    assert caught.value.message
    return caught.value.code


@pytest.mark.parametrize(
    "suffix", ["wav", "flac", "aiff", "ogg", "opus", "mp3", "m4a", "mp4", "aac", "webm", "au", "caf", "w64", "rf64"]
)
def test_each_container_decodes_to_the_same_tone(write: Write, tone: Tone, suffix: str) -> None:
    rate_hz = 48_000 if suffix in {"opus", "webm"} else 44_100
    found = _decode(write(f"a.{suffix}", tone, rate_hz))
    seconds = len(tone) / rate_hz
    assert found.decoded.samples == len(found.pcm)
    assert found.decoded.samples / 16_000 == pytest.approx(seconds, abs=0.1)
    assert found.decoded.stream.channels == 2
    assert not found.decoded.truncated
    spectrum = np.abs(np.fft.rfft(found.pcm.astype(np.float64)))
    assert spectrum.argmax() * 16_000 / len(found.pcm) == pytest.approx(440 * rate_hz / 44_100, abs=3)
    assert np.abs(found.pcm).max() / 32_768 == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("channels", [1, 3, 8])
def test_any_rate_and_channel_count_is_decoded(write: Write, rate_hz: int, channels: int) -> None:
    wave = 0.5 * np.sin(2 * np.pi * 300 * np.arange(2 * rate_hz) / rate_hz)
    found = _decode(write("a.wav", np.repeat(wave[:, None], channels, 1).astype(np.float32), rate_hz))
    assert found.decoded.samples == pytest.approx(32_000, abs=1)
    assert np.abs(found.pcm[1_000:-1_000]).max() / 32_768 == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM"])
def test_any_sample_width_is_decoded(tmp_path: Path, tone: Tone, subtype: str) -> None:
    sf.write(tmp_path / "a.wav", tone, 44_100, subtype=subtype)
    found = _decode(tmp_path / "a.wav")
    assert np.abs(found.pcm).max() / 32_768 == pytest.approx(0.4, abs=0.05)


def test_16_khz_16_bit_mono_passes_unchanged(tmp_path: Path) -> None:
    pcm = np.random.default_rng(0).integers(-32_768, 32_768, 100_000).astype(np.int16)
    sf.write(tmp_path / "a.wav", pcm, 16_000)
    assert np.array_equal(_decode(tmp_path / "a.wav").pcm, pcm)


def test_decoding_is_repeatable(write: Write, tone: Tone) -> None:
    path = write("a.mp3", tone, 44_100)
    assert np.array_equal(_decode(path).pcm, _decode(path).pcm)


def test_misleading_file_name_is_ignored(write: Write, tone: Tone) -> None:
    path = write("a.m4a", tone, 44_100)
    renamed = path.rename(path.with_name("http:x%20ཀ.flac"))
    assert _decode(renamed).decoded.stream.codec == "aac"


def test_opposite_phase_is_not_mixed_to_silence(write: Write, tone: Tone) -> None:
    tone[:, 1] = -tone[:, 0]
    found = _decode(write("a.wav", tone, 44_100))
    assert np.abs(found.pcm).max() / 32_768 == pytest.approx(0.5, abs=0.05)


def test_dead_channel_is_averaged(write: Write, tone: Tone) -> None:
    tone[:, 1] = 0
    found = _decode(write("a.wav", tone, 44_100))
    assert np.abs(found.pcm).max() / 32_768 == pytest.approx(0.25, abs=0.05)


def test_clipped_samples_are_counted(write: Write, tone: Tone) -> None:
    assert _decode(write("a.wav", tone, 44_100)).decoded.clipped_samples == 0
    assert _decode(write("b.wav", np.clip(tone * 4, -1, 1), 44_100)).decoded.clipped_samples > 1_000


def test_nan_becomes_silence_and_infinity_full_scale(tmp_path: Path) -> None:
    samples = np.zeros((32_000, 2), np.float32)
    samples[5_000:6_000] = np.nan
    samples[7_000:8_000, 1] = np.inf
    sf.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    pcm = _decode(tmp_path / "a.wav").pcm
    assert not pcm[:7_000].any()
    assert pcm[7_500] == 16_384


def test_truncated_recording_is_decoded_and_marked(write: Write, tone: Tone) -> None:
    for suffix in ("wav", "flac", "mp3", "aiff"):
        path = write(f"a.{suffix}", tone, 44_100)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        found = _decode(path)
        assert found.decoded.truncated, suffix
        assert 1 < found.decoded.samples / 16_000 < 2


@pytest.mark.parametrize("subtype", ["ULAW", "ALAW", "PCM_24", "FLOAT"])
def test_truncated_wav_of_any_sample_width_is_marked(tmp_path: Path, tone: Tone, subtype: str) -> None:
    path = tmp_path / "a.wav"
    sf.write(path, tone, 44_100, subtype=subtype)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert _decode(path).decoded.truncated


def test_audio_after_damage_is_decoded(write: Write, tone: Tone) -> None:
    for suffix in ("mp3", "flac"):
        path = write(f"a.{suffix}", tone, 44_100)
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 500] = os.urandom(500)
        path.write_bytes(data)
        assert _decode(path).decoded.samples / 16_000 > 2.5, suffix


@pytest.mark.parametrize("stated_frames", [44_100, 2**36 - 1])
def test_wrong_length_in_a_flac_header_is_ignored(tmp_path: Path, tone: Tone, stated_frames: int) -> None:
    path = tmp_path / "a.flac"
    sf.write(path, tone, 44_100)
    data = bytearray(path.read_bytes())
    data[21:26] = (data[21] >> 4 << 36 | stated_frames).to_bytes(5, "big")
    path.write_bytes(data)
    assert _decode(path).decoded.samples / 16_000 == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.mp3", b"<!DOCTYPE html><html><body>404</body></html>" * 50, "not_audio"),
        ("a.mp3", b"\0" * 5_000, "not_audio"),
        ("a.wav", b"RIFF\x24\0\0\0WAVEfmt ", "undecodable"),
        ("a.flac", b"fLaC" + b"\0" * 500, "undecodable"),
        ("a.m4a", b"\0\0\0\x1cftypM4A \0\0\0\0M4A mp42", "undecodable"),
        ("a.mp3", b"ID3\x04\0\0\0\0\0\x10" + b"\0" * 16, "undecodable"),
    ],
)
def test_file_without_a_recording_is_refused(tmp_path: Path, name: str, content: bytes, code: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert _refusal_code(tmp_path / name) == code


def test_wav_without_samples_is_an_empty_recording(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", np.empty(0, np.int16), 16_000)
    assert _refusal_code(tmp_path / "a.wav") == "empty_recording"


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:3.0,\n{secret}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{secret}'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:3.0,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        "<MPD><Period><AdaptationSet><Representation><BaseURL>{secret}</BaseURL></Representation></AdaptationSet></Period>",
    ],
)
@pytest.mark.parametrize("secret", ["secret.wav", "secret.mp3", "secret.aac"])
def test_playlist_named_mp3_opens_no_other_file(write: Write, tone: Tone, playlist: str, secret: str) -> None:
    path = write(secret, tone, 44_100)
    for reference in (path.name, str(path)):
        disguised = path.with_name("a.mp3")
        disguised.write_text(playlist.format(secret=reference))
        assert _refusal_code(disguised) == "not_audio"


def test_recording_over_a_limit_is_refused(write: Write, tone: Tone) -> None:
    path = write("a.wav", tone, 44_100)
    assert _refusal_code(path, SplitLimits(max_decoded_s=2)) == "too_long"
    assert _refusal_code(path, SplitLimits(max_scratch_bytes=50_000)) == "too_long"
    assert _refusal_code(path, SplitLimits(max_channels=1)) == "too_many_channels"


def test_sample_rate_of_7_hz_is_refused(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", np.zeros(1_000, np.int16), 7)
    assert _refusal_code(tmp_path / "a.wav") == "undecodable"


def test_decoders_write_nothing_to_the_terminal(write: Write, tone: Tone, capfd: pytest.CaptureFixture[str]) -> None:
    path = write("a.mp3", tone, 44_100)
    data = bytearray(path.read_bytes())
    data[3_000:3_500] = os.urandom(500)
    path.write_bytes(data[:-100])
    _decode(path)
    (path.parent / "b.mp3").write_bytes(b"\xff\xfb\x10\xc0" + os.urandom(3_000))
    with pytest.raises(PermanentError):
        _decode(path.parent / "b.mp3")
    assert capfd.readouterr() == ("", "")


def test_container_is_detected_by_its_first_bytes(tmp_path: Path) -> None:
    for head, name in ((b"RIFF....WAVE", "wav"), (b"\0\0\0 ftypM4A ", "mp4"), (b"\xff\xfb\x90\x64", "mpeg audio")):
        (tmp_path / "a").write_bytes(head + bytes(100))
        with _descriptor(tmp_path / "a") as fd:
            assert sniff.sniff(fd).name == name
