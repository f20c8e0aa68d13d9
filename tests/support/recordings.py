"""Recordings for tests: the shipped samples, longer ones made of them, and real ones where they are available."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parents[2]
_SAMPLES = ROOT / "stt_async" / "local" / "samples"
_AUDIO = {".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav", ".webm"}


@pytest.fixture(scope="session")
def dev_data() -> Path:
    """The folder of real recordings (STT_TEST_DATA, else ../shared/data/dev beside the repository)."""
    given = os.environ.get("STT_TEST_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data" / "dev"
    if not (folder / "MANIFEST.csv").is_file():
        pytest.skip(f"the shared recordings are not at {folder} (set STT_TEST_DATA to their folder)")
    return folder


@pytest.fixture(scope="session")
def samples() -> list[Path]:
    """All shipped samples, sorted by name; one of them is not a recording."""
    files = sorted(file for file in _SAMPLES.rglob("*") if file.suffix in _AUDIO)
    if not files:
        pytest.skip(f"no recordings in {_SAMPLES}: the script beside it makes them")
    return files


@pytest.fixture(scope="session")
def speech(samples: list[Path]) -> Path:
    """One short recording of speech, of a few segments."""
    (recording,) = (file for file in samples if file.name == "telephone.wav")
    return recording


@pytest.fixture(scope="session")
def five_minutes(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five minutes of speech: 2.4 MB to download, 9 MB of WAV segments."""
    return _joined(speech, tmp_path_factory.mktemp("recordings") / "five-minutes.wav", times=14)


@pytest.fixture(scope="session")
def a_quarter(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quarter of an hour of speech: a split takes a second."""
    return _joined(speech, tmp_path_factory.mktemp("recordings") / "a-quarter.wav", times=42)


@pytest.fixture(scope="session")
def an_hour(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An hour of speech: a split takes seconds."""
    return _joined(speech, tmp_path_factory.mktemp("recordings") / "an-hour.wav", times=170)


@pytest.fixture(scope="session")
def three_hours(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3.4 hours of speech, as in the longest recordings of the corpus: 98 MB."""
    return _joined(speech, tmp_path_factory.mktemp("recordings") / "three-hours.wav", times=580)


def _joined(recording: Path, to: Path, *, times: int) -> Path:
    samples, rate_hz = soundfile.read(recording, dtype="int16")
    soundfile.write(to, np.tile(samples, times), rate_hz, subtype="ULAW")
    return to
