"""Writes test recordings in any container that the libraries can encode."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile as sf
from numpy.typing import NDArray

Write = Callable[[str, NDArray[np.float32], int], Path]

_FFMPEG_CODECS = {
    ".m4a": "aac",
    ".mp4": "aac",
    ".aac": "aac",
    ".webm": "libopus",
    ".mp3": "libmp3lame",
}


@pytest.fixture
def tone() -> NDArray[np.float32]:
    """3 s at 44.1 kHz, (frames, 2): a tone of 440 Hz that rises and falls, softer on the right channel."""
    seconds = np.arange(3 * 44_100) / 44_100
    left = 0.5 * np.sin(2 * np.pi * 440 * seconds) * np.sin(np.pi * seconds / 3)
    return np.stack((left, 0.6 * left), 1).astype(np.float32)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write (frames, channels) samples to a file in the format of its suffix."""

    def write_to(name: str, samples: NDArray[np.float32], rate_hz: int) -> Path:
        path = tmp_path / name
        if path.suffix in _FFMPEG_CODECS:
            _write_with_ffmpeg(path, samples, rate_hz)
        elif path.suffix in {".ogg", ".opus"}:
            subtype = "VORBIS" if path.suffix == ".ogg" else "OPUS"
            with sf.SoundFile(path, "w", rate_hz, samples.shape[1], subtype, format="OGG") as file:
                for start in range(0, len(samples), 4_096):
                    file.write(samples[start : start + 4_096])
        else:
            sf.write(path, samples, rate_hz)
        return path

    return write_to


def _write_with_ffmpeg(path: Path, samples: NDArray[np.float32], rate_hz: int) -> None:
    layout = {1: "mono", 2: "stereo"}[samples.shape[1]]
    pcm = np.ascontiguousarray((samples * 32_767).astype(np.int16).reshape(1, -1))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(_FFMPEG_CODECS[path.suffix], rate=rate_hz, layout=layout)
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout=layout)
        frame.sample_rate = rate_hz
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
