"""The batched network gives the same results as silero-vad's own model, or else that model is used."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from silero_vad import get_speech_timestamps_from_probs

from stt_async.audio import silero
from stt_async.audio.decode import Tools, decode
from stt_async.audio.silero import BatchedNetwork, SteppedNetwork, load_network, load_stepped
from stt_async.audio.stopwatch import Stopwatch
from stt_async.audio.stream import Pcm, Probabilities
from stt_async.audio.vad import Network, SpeechProbabilities
from stt_async.errors import PermanentError
from stt_async.params import SplitLimits

ALLOWED = 1e-3
_NOT_AUDIO = {".csv", ".rttm", ".uem", ".TextGrid", ".segments"}


@pytest.fixture(scope="module")
def batched() -> Network:
    network = load_network()
    assert network.name == "batched"
    return network


@pytest.fixture(scope="module")
def stepped() -> Network:
    return load_stepped()


def _decoded(folder: Path, scratch: Path, network: Network) -> Iterator[tuple[Path, Pcm, Probabilities]]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in _NOT_AUDIO):
        fd = os.open(path, os.O_RDONLY)
        try:
            with decode(fd, Tools(scratch, network, SplitLimits(), Stopwatch())) as decoded:
                decoded.pcm.seek(0)
                yield path, np.frombuffer(bytearray(decoded.pcm.read()), np.int16), decoded.probabilities
        except PermanentError:
            continue
        finally:
            os.close(fd)


def _probabilities(network: Network, pcm: Pcm, step: int) -> Probabilities:
    vad = SpeechProbabilities(network)
    for start in range(0, len(pcm), step):
        vad.push(pcm[start : start + step])
    return vad.finish()


def _check(folder: Path, scratch: Path, batched: Network, stepped: Network) -> int:
    checked = 0
    for path, pcm, probabilities in _decoded(folder, scratch, batched):
        expected = _probabilities(stepped, pcm, len(pcm))
        assert len(probabilities) == len(expected) == -(-len(pcm) // 512)
        assert np.abs(probabilities - expected).max() <= ALLOWED, path
        for threshold in (0.2, 0.3, 0.5):
            found, silero_s = (
                get_speech_timestamps_from_probs(p.tolist(), threshold=threshold, audio_length_samples=len(pcm))
                for p in (probabilities, expected)
            )
            assert found == silero_s, path
        checked += 1
    return checked


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_recordings_give_silero_s_probabilities_and_timestamps(
    dev_data: Path, tmp_path: Path, batched: Network, stepped: Network
) -> None:
    assert _check(dev_data, tmp_path, batched, stepped) >= 90


@pytest.mark.timeout(600)
def test_synthetic_speech_gives_silero_s_probabilities_and_timestamps(
    samples: list[Path], tmp_path: Path, batched: Network, stepped: Network
) -> None:
    assert _check(samples[0].parents[1], tmp_path, batched, stepped) >= 1


def test_probabilities_do_not_depend_on_part_sizes_or_earlier_calls(batched: Network) -> None:
    pcm = (np.random.default_rng(3).normal(0, 4_000, 400_000) * np.sin(np.arange(400_000) / 9_000)).astype(np.int16)
    expected = _probabilities(batched, pcm, len(pcm))
    for step in (1_000, 512, 65_536, 131_073):
        assert np.array_equal(_probabilities(batched, pcm, step), expected)


@pytest.mark.parametrize("block_frames", [1, 7, 64, 1_024])
def test_probabilities_do_not_depend_on_the_block_size(
    batched: Network, monkeypatch: pytest.MonkeyPatch, block_frames: int
) -> None:
    pcm = np.random.default_rng(4).normal(0, 4_000, 300_000).astype(np.int16)
    expected = _probabilities(batched, pcm, len(pcm))
    monkeypatch.setattr("stt_async.audio.vad.VAD_BLOCK_FRAMES", block_frames)
    assert np.abs(_probabilities(batched, pcm, len(pcm)) - expected).max() < 1e-5


def test_network_uses_one_thread(batched: Network) -> None:
    assert batched.name
    assert torch.get_num_threads() == 1


class _Unknown(torch.nn.Module):
    """The network of a later silero-vad: other weights, names or shapes."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self._weights = weights
        self._real = load_stepped().model

    def reset_states(self) -> None:
        self._real.reset_states()

    def forward(self, frame: torch.Tensor, rate_hz: int) -> torch.Tensor:
        probability: torch.Tensor = self._real(frame, rate_hz)
        return probability

    def state_dict(self, *_: object, **__: object) -> dict[str, torch.Tensor]:  # type: ignore[override]  # a stand-in
        return self._weights


@pytest.mark.parametrize("change", ["weights", "names", "shapes"])
def test_unknown_network_is_replaced_by_silero_s_own_model(
    change: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    weights = dict(load_stepped().model.state_dict())
    name = "_model.decoder.rnn.weight_hh"
    if change == "weights":
        weights[name] = weights[name] * 1.01
    elif change == "names":
        del weights[name]
    else:
        weights[name] = weights[name][:, :64]
    unknown = SteppedNetwork(_Unknown(weights))
    monkeypatch.setattr(silero, "load_stepped", lambda: unknown)
    assert load_network().name == "silero-jit"
    assert "using its own, slower model" in caplog.text


def test_probe_gives_low_and_high_probabilities(batched: Network) -> None:
    with torch.inference_mode():
        probabilities, _ = batched.forward(silero._probe(), batched.start())
    assert probabilities.min() < 0.1
    assert probabilities.max() > 0.5
    assert isinstance(batched, BatchedNetwork)
