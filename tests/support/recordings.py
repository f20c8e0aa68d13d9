"""Recordings to test on: what the project ships, and the shared collection of real ones where it is at hand."""

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
    """All that the project ships, in order of their names; one of them is not a recording."""
    files = sorted(file for file in _SAMPLES.rglob("*") if file.suffix in _AUDIO)
    if not files:
        pytest.skip(f"no recordings in {_SAMPLES}: they are made by the script beside it")
    return files


@pytest.fixture(scope="session")
def speech(samples: list[Path]) -> Path:
    """One short recording of speech, with a few segments in it."""
    (recording,) = (file for file in samples if file.name == "telephone.wav")
    return recording


@pytest.fixture(scope="session")
def five_minutes(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Speech for some five minutes: 2.4 MB to download, 9 MB of WAV segments."""
    return _joined(speech, tmp_path_factory.mktemp("recordings") / "five-minutes.wav", times=14)


@pytest.fixture(scope="session")
def a_quarter(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Speech for a quarter of an hour: to split it takes a second."""
    return _joined(speech, tmp_path_factory.mktemp("recordings") / "a-quarter.wav", times=42)


@pytest.fixture(scope="session")
def an_hour(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Speech for an hour: to split it takes seconds."""
    return _joined(speech, tmp_path_factory.mktemp("recordings") / "an-hour.wav", times=170)


@pytest.fixture(scope="session")
def three_hours(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Speech for 3.4 hours, as the longest recordings of the corpus: 98 MB."""
    return _joined(speech, tmp_path_factory.mktemp("recordings") / "three-hours.wav", times=580)


def _joined(recording: Path, to: Path, *, times: int) -> Path:
    samples, rate_hz = soundfile.read(recording, dtype="int16")
    soundfile.write(to, np.tile(samples, times), rate_hz, subtype="ULAW")
    return to
