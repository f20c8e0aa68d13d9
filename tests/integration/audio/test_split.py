"""`audio.split.split` with the real network: its result describes the files on disk."""

import errno
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Self

import numpy as np
import pytest
import soundfile as sf

from stt_async.audio.split import split, warm_up
from stt_async.errors import PermanentError, TransientError
from stt_async.manifest import SplitResult
from stt_async.params import SAMPLE_RATE_HZ, Format, Layout, SplitLimits, SplitParams

PARAMS = SplitParams()


def _check(result: SplitResult, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == (
        {segment.filename for segment in result.segments} if result.archive is None else {result.archive.filename}
    )
    position = 0
    for number, segment in enumerate(result.segments, 1):
        assert segment.filename.startswith(f"segment_{number:05d}-{segment.sha256[:8]}.")
        assert position <= segment.start_sample < segment.end_sample
        assert segment.end_sample <= round(result.recording.decoded_duration_s * SAMPLE_RATE_HZ)
        assert 1 <= segment.duration_sec <= 30
        position = segment.end_sample
        if result.archive is None:
            data = (folder / segment.filename).read_bytes()
        else:
            assert segment.tar_offset is not None
            data = (folder / result.archive.filename).read_bytes()[segment.tar_offset :][: segment.bytes]
        assert len(data) == segment.bytes
        assert hashlib.sha256(data).hexdigest() == segment.sha256


@pytest.fixture
def out_dir(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("layout", ["objects", "tar"])
@pytest.mark.parametrize("audio_format", ["flac", "wav"])
def test_result_describes_the_segments_on_disk(
    speech: Path, out_dir: Path, layout: Layout, audio_format: Format
) -> None:
    params = SplitParams(layout=layout, format=audio_format)
    result = split(speech, out_dir, params)
    assert result.segments
    _check(result, out_dir)
    assert result.recording.source_sha256 == hashlib.sha256(speech.read_bytes()).hexdigest()
    assert result.versions["vad"] == "batched"


def test_split_is_repeatable(speech: Path, tmp_path: Path) -> None:
    results = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        results.append(split(speech, tmp_path / name, PARAMS))
    assert results[0] == results[1]


@pytest.mark.timeout(600)
def test_every_real_recording_has_segments_or_a_reason(dev_data: Path, tmp_path: Path) -> None:
    refused, reasons = set(), set()
    for path in sorted(dev_data.rglob("*.*")):
        if path.suffix in {".csv", ".rttm", ".uem", ".TextGrid", ".segments"}:
            continue
        out_dir = tmp_path / hashlib.sha256(str(path).encode()).hexdigest()
        out_dir.mkdir()
        try:
            _check(split(path, out_dir, PARAMS), out_dir)
        except PermanentError as error:
            refused.add(path.name if "malformed" not in path.parts else "")
            reasons.add(error.message)
        assert not list(out_dir.glob("tmp*"))
    assert refused == {"", "pydub_test1_empty.wav", "tinytag_multiple_images.mp3"}
    assert all(reasons)


def test_one_sentence_in_eight_containers_gives_the_same_segments(dev_data: Path, tmp_path: Path) -> None:
    found = []
    for path in sorted((dev_data / "formats_same_content").iterdir()):
        (tmp_path / path.name).mkdir()
        segments = split(path, tmp_path / path.name, PARAMS).segments
        found.append([(segment.start_sec, segment.end_sec) for segment in segments])
    assert np.ptp(np.array(found), axis=0).max() < 0.15


def test_silence_gives_a_result_without_segments(tmp_path: Path, out_dir: Path) -> None:
    sf.write(tmp_path / "a.wav", np.zeros(5 * SAMPLE_RATE_HZ, np.int16), SAMPLE_RATE_HZ)
    layouts: tuple[Layout, ...] = ("objects", "tar")
    for layout in layouts:
        result = split(tmp_path / "a.wav", out_dir, SplitParams(layout=layout))
        assert result.segments == ()
        assert result.archive is None
        assert not list(out_dir.iterdir())


@pytest.mark.parametrize("samples", [1, 511, 512, 513, 30 * SAMPLE_RATE_HZ, 30 * SAMPLE_RATE_HZ + 1])
def test_any_number_of_samples_is_decoded(tmp_path: Path, out_dir: Path, samples: int) -> None:
    sf.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, samples), SAMPLE_RATE_HZ)
    assert split(tmp_path / "a.wav", out_dir, PARAMS).recording.decoded_duration_s == samples / SAMPLE_RATE_HZ


def test_empty_file_is_refused(tmp_path: Path, out_dir: Path) -> None:
    (tmp_path / "a.mp3").touch()
    with pytest.raises(PermanentError, match="empty_file"):
        split(tmp_path / "a.mp3", out_dir, PARAMS)


def test_recording_over_a_limit_leaves_no_files(speech: Path, out_dir: Path) -> None:
    with pytest.raises(PermanentError, match="too_long"):
        split(speech, out_dir, PARAMS, SplitLimits(max_decoded_s=1))
    assert not list(out_dir.iterdir())


class _Full:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, _: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        self._file.close()


def test_full_disk_is_transient_and_leaves_no_files(
    speech: Path, out_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm_up()
    real = tempfile.TemporaryFile
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: _Full(real(dir=dir)))  # noqa: A006 - the name of the real parameter
    with pytest.raises(TransientError, match="disk_full"):
        split(speech, out_dir, PARAMS)
    assert not list(out_dir.iterdir())


# Not ru_maxrss, which a process inherits from its parent.
_PEAK = """
import sys
from pathlib import Path
from stt_async.audio.split import split
from stt_async.params import SplitParams
split(Path(sys.argv[1]), Path(sys.argv[2]), SplitParams())
(peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
print(int(peak.split()[1]) // 1024)
"""


def _peak_mb(path: Path, out_dir: Path) -> int:
    done = subprocess.run([sys.executable, "-c", _PEAK, path, out_dir], capture_output=True, check=True, text=True)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_does_not_grow_with_the_length(tmp_path: Path, out_dir: Path) -> None:
    peaks = []
    for hours in (0.1, 3.0):
        path = tmp_path / f"{hours}.wav"
        sf.write(path, np.empty(0, np.int16), SAMPLE_RATE_HZ)
        header = bytearray(path.read_bytes())
        data_bytes = int(hours * 3600) * SAMPLE_RATE_HZ * 2
        header[4:8] = (36 + data_bytes).to_bytes(4, "little")
        header[40:44] = data_bytes.to_bytes(4, "little")
        path.write_bytes(header)
        with path.open("r+b") as file:
            file.truncate(len(header) + data_bytes)
        peaks.append(_peak_mb(path, out_dir))
    assert peaks[1] < 450
    # The longer recording has 334 MB more of samples.
    assert peaks[1] - peaks[0] < 25
