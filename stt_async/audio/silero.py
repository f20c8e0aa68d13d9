"""Silero's 16 kHz network, with the weights of the installed silero-vad: as it ships it, and batched.

As shipped, the TorchScript model takes one frame of 512 samples a call, about 60 small operations. Here all frames of
a block go through the spectrum and the encoder in a few matrix products, and through the LSTM in one call.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from silero_vad import load_silero_vad

from stt_async.params import SAMPLE_RATE_HZ

FRAME_SAMPLES = 512
CONTEXT_SAMPLES = 64
"""Of the frame before, put in front of each frame (zeros before the first)."""

MAX_DIFFERENCE = 1e-4
"""Allowed between the two networks on the probe. The true difference is about 3e-6: rounding."""

State = tuple[torch.Tensor, torch.Tensor] | None

_WINDOW, _HOP, _BINS, _HIDDEN = 256, 128, 129, 128

_log = logging.getLogger(__name__)


class SteppedNetwork:
    """silero-vad's own path, frame by frame: 15 times slower, right by definition."""

    name = "silero-jit"

    def __init__(self, model: Any) -> None:
        self._model = model

    def start(self) -> State:
        """Reset the model, which keeps its state to itself."""
        self._model.reset_states()
        return None

    def forward(self, samples: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Return one probability a frame; the context in front is the model's own business."""
        frames = samples[CONTEXT_SAMPLES:].view(-1, FRAME_SAMPLES)
        return torch.cat([self._model(frame, SAMPLE_RATE_HZ).view(1) for frame in frames]), state


class BatchedNetwork:
    """The same network over a block of frames.

    Args:
        weights: the TorchScript model's state, by name.

    Raises:
        KeyError, RuntimeError: silero-vad has another network than the one known here.
    """

    name = "batched"

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        weights = {name.removeprefix("_model."): value.detach() for name, value in weights.items()}
        basis = weights["stft.forward_basis_buffer"].view(2 * _BINS, _WINDOW)
        # The first row of a windowed Fourier basis (the cosine of frequency 0) is the window itself.
        self._window = basis[0].clone()
        first, *others = (weights[f"encoder.{layer}.reparam_conv.weight"] for layer in range(4))
        self._bias = [weights[f"encoder.{layer}.reparam_conv.bias"] for layer in range(4)]
        before, at, after = first.unbind(2)
        # What each of the four spectra of a frame gives to the four outputs of the first convolution, side by side.
        self._first = (
            torch.cat((at, before)).t().contiguous(),
            torch.cat((after, at, before)).t().contiguous(),
            torch.cat((after, at)).t().contiguous(),
        )
        self._second = others[0].permute(2, 1, 0).reshape(3 * 128, 64).contiguous()
        # On so short an input, the border's zeros meet the other taps: two of three in the third, one in the fourth.
        self._third = others[1][:, :, 1:].permute(2, 1, 0).reshape(2 * 64, 64).contiguous()
        self._fourth = others[2][:, :, 1].t().contiguous()
        self._lstm = torch.nn.LSTM(_HIDDEN, _HIDDEN)
        self._lstm.load_state_dict(
            {
                f"{kind}_{gate}_l0": weights[f"decoder.rnn.{kind}_{gate}"]
                for kind in ("weight", "bias")
                for gate in ("ih", "hh")
            }
        )
        self._output = weights["decoder.decoder.2.weight"].view(_HIDDEN)
        self._output_bias = weights["decoder.decoder.2.bias"]

    def start(self) -> State:
        """Return the zero state."""
        return torch.zeros(1, 1, _HIDDEN), torch.zeros(1, 1, _HIDDEN)

    def forward(self, samples: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Return one probability a frame. Memory: about 13 KB a frame."""
        encoded = self._encode(self._spectra(samples))
        hidden, state = self._lstm(encoded.unsqueeze(1), state)
        return torch.sigmoid(hidden.squeeze(1).relu_() @ self._output + self._output_bias), state

    def _spectra(self, samples: torch.Tensor) -> torch.Tensor:
        frames = (len(samples) - CONTEXT_SAMPLES) // FRAME_SAMPLES
        windows = torch.empty(4, frames, _WINDOW)
        torch.mul(samples.as_strided((3, frames, _WINDOW), (_HOP, FRAME_SAMPLES, 1)), self._window, out=windows[:3])
        # The fourth window reaches 64 samples beyond the frame, which the network fills with its mirror image.
        inside = _WINDOW - CONTEXT_SAMPLES
        end = samples[3 * _HOP :].as_strided((frames, inside), (FRAME_SAMPLES, 1))
        mirrored = samples[FRAME_SAMPLES - 1 :].as_strided((frames, CONTEXT_SAMPLES), (FRAME_SAMPLES, 1)).flip(1)
        torch.mul(end, self._window[:inside], out=windows[3, :, :inside])
        torch.mul(mirrored, self._window[inside:], out=windows[3, :, inside:])
        return torch.fft.rfft(windows).abs()

    def _encode(self, spectra: torch.Tensor) -> torch.Tensor:
        frames = spectra.shape[1]
        first = self._bias[0].repeat(frames, 4)
        outer_left, inner, outer_right = self._first
        first[:, :256].addmm_(spectra[0], outer_left)
        first[:, :384].addmm_(spectra[1], inner)
        first[:, 128:].addmm_(spectra[2], inner)
        first[:, 256:].addmm_(spectra[3], outer_right)
        first.relu_()
        left = torch.addmm(self._bias[1], first[:, :256], self._second[128:])
        right = torch.addmm(self._bias[1], first[:, 128:], self._second)
        second = torch.cat((left, right), 1).relu_()
        third = torch.addmm(self._bias[2], second, self._third).relu_()
        return torch.addmm(self._bias[3], third, self._fourth).relu_()


def load_network() -> BatchedNetwork | SteppedNetwork:
    """Load the network and check it against silero-vad's own on a short probe. Takes about 0.1 s."""
    torch.set_num_threads(1)
    stepped = SteppedNetwork(load_silero_vad())
    try:
        batched = BatchedNetwork(stepped._model.state_dict())
        difference = _difference(batched, stepped)
    except (KeyError, RuntimeError) as error:
        _log.warning("silero-vad has another network than the one known: using its own path (%s)", error)
        return stepped
    if not difference <= MAX_DIFFERENCE:
        _log.warning("probabilities differ by %.2g from silero-vad's: using its own path", difference)
        return stepped
    return batched


def _difference(batched: BatchedNetwork, stepped: SteppedNetwork) -> float:
    samples = _probe()
    with torch.inference_mode():
        half = CONTEXT_SAMPLES + len(samples) // FRAME_SAMPLES // 2 * FRAME_SAMPLES
        first, state = batched.forward(samples[:half], batched.start())
        second, _ = batched.forward(samples[half - CONTEXT_SAMPLES :], state)
        wanted, _ = stepped.forward(samples, stepped.start())
    return float((torch.cat((first, second)) - wanted).abs().max())


def _probe() -> torch.Tensor:
    """3 s of a buzz like a voice's, in syllables, then noise: probabilities of all sizes."""
    seconds = np.arange(94 * FRAME_SAMPLES) / SAMPLE_RATE_HZ
    pitch_hz = 120 + 30 * np.sin(2 * np.pi * 0.7 * seconds)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ
    buzz = sum(np.sin(k * phase) / k for k in range(1, 30))
    syllables = np.clip(np.sin(2 * np.pi * 2 * seconds), 0, None) * (seconds < 2)
    noise = np.random.default_rng(0).normal(0, 0.02, len(seconds))
    return torch.cat((torch.zeros(CONTEXT_SAMPLES), torch.from_numpy(0.2 * buzz * syllables + noise).float()))
