"""Silero's 16 kHz network with the weights of the installed silero-vad: as shipped, and batched.

The shipped TorchScript model takes one frame of 512 samples per call, in about 60 small operations. The batched network
computes the spectrum and the encoder for all frames of a block in a few matrix products, and the LSTM in one call.
"""

import ctypes
import logging
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from silero_vad import load_silero_vad

from stt_async.audio.stream import FRAME_SAMPLES
from stt_async.params import SAMPLE_RATE_HZ

CONTEXT_SAMPLES = 64
"""The end of the previous frame, which the network reads before each frame (zeros before the first)."""

MAX_DIFFERENCE = 1e-4
"""Allowed between the two networks on the probe. Rounding makes about 3e-6."""

State = tuple[torch.Tensor, torch.Tensor] | None

_WINDOW, _HOP, _BINS, _HIDDEN = 256, 128, 129, 128

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""From glibc's malloc.h."""

# Winograd's F(4, 3): four outputs of a three-tap convolution from six products instead of twelve. A frame is one such
# tile: four spectra between two borders of zeros. 30 % faster than the direct product, and as exact.
_WINOGRAD_WEIGHTS = (
    torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64) / 24
)
_WINOGRAD_INPUT = torch.tensor(
    [[0, -5, 0, 1], [-4, -4, 1, 1], [4, -4, -1, 1], [-2, -1, 2, 1], [2, -1, -2, 1], [4, 0, -5, 0]], dtype=torch.float32
)
_WINOGRAD_OUTPUT = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float32
)

_log = logging.getLogger(__name__)


class SteppedNetwork:
    """silero-vad's own model, frame by frame: 15 times slower, correct by definition."""

    name = "silero-jit"

    def __init__(self, model: Any) -> None:
        self.model = model

    def start(self) -> State:
        """Reset the model, which holds its state internally."""
        self.model.reset_states()
        return None

    def forward(self, samples: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Return one probability per frame. The model remembers the context itself."""
        frames = samples[CONTEXT_SAMPLES:].view(-1, FRAME_SAMPLES)
        return torch.cat([self.model(frame, SAMPLE_RATE_HZ).view(1) for frame in frames]), state


class BatchedNetwork:
    """The same network over a block of frames.

    Args:
        weights: The TorchScript model's state, by name.

    Raises:
        KeyError, RuntimeError: The weights are those of an unknown network.
    """

    name = "batched"

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        weights = {name.removeprefix("_model."): value.detach() for name, value in weights.items()}
        basis = weights["stft.forward_basis_buffer"].view(2 * _BINS, _WINDOW)
        # The first row of a windowed Fourier basis (the cosine of frequency 0) is the window itself.
        self._window = basis[0].clone()
        first, second, third, fourth = (weights[f"encoder.{layer}.reparam_conv.weight"] for layer in range(4))
        self._bias = [weights[f"encoder.{layer}.reparam_conv.bias"] for layer in range(4)]
        self._first = torch.einsum("pk,oik->pio", _WINOGRAD_WEIGHTS, first.double()).float().contiguous()
        before, at, after = (tap.t() for tap in second.unbind(2))
        # What each output of the first convolution contributes to the two outputs of the second, side by side.
        self._second = tuple(part.contiguous() for part in (at, torch.cat((after, before), 1), at, after))
        self._second_bias = self._bias[1].repeat(2)
        # The input is so short that some taps only see the border's zeros: one of three here, two in the fourth.
        self._third = third[:, :, 1:].permute(2, 1, 0).reshape(2 * 64, 64).contiguous()
        self._fourth = fourth[:, :, 1].t().contiguous()
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
        """Return one probability per frame. Memory: about 13 KB per frame."""
        encoded = self._encode(self._spectra(samples))
        hidden, state = self._lstm(encoded.unsqueeze(1), state)
        return torch.sigmoid(hidden.squeeze(1).relu_() @ self._output + self._output_bias), state

    def _spectra(self, samples: torch.Tensor) -> torch.Tensor:
        frames = (len(samples) - CONTEXT_SAMPLES) // FRAME_SAMPLES
        windows = torch.empty(4, frames, _WINDOW)
        torch.mul(samples.as_strided((3, frames, _WINDOW), (_HOP, FRAME_SAMPLES, 1)), self._window, out=windows[:3])
        # The fourth window reaches 64 samples beyond the frame; the network mirrors the frame's end there.
        inside = _WINDOW - CONTEXT_SAMPLES
        end = samples[3 * _HOP :].as_strided((frames, inside), (FRAME_SAMPLES, 1))
        mirrored = samples[FRAME_SAMPLES - 1 :].as_strided((frames, CONTEXT_SAMPLES), (FRAME_SAMPLES, 1)).flip(1)
        torch.mul(end, self._window[:inside], out=windows[3, :, :inside])
        torch.mul(mirrored, self._window[inside:], out=windows[3, :, inside:])
        spectrum = torch.fft.rfft(windows)
        real, imaginary = spectrum.real, spectrum.imag
        # Three times as fast as abs(), which protects against overflow.
        return torch.addcmul(real * real, imaginary, imaginary).sqrt_()

    def _encode(self, spectra: torch.Tensor) -> torch.Tensor:
        frames = spectra.shape[1]
        tiles = torch.mm(_WINOGRAD_INPUT, spectra.view(4, -1)).view(6, frames, _BINS)
        products = torch.bmm(tiles, self._first).view(6, -1)
        first = torch.mm(_WINOGRAD_OUTPUT, products).view(4, frames, -1).add_(self._bias[0]).relu_()
        second = torch.addmm(self._second_bias, first[1], self._second[1])
        second[:, :64].addmm_(first[0], self._second[0])
        second[:, 64:].addmm_(first[2], self._second[2]).addmm_(first[3], self._second[3])
        third = torch.addmm(self._bias[2], second.relu_(), self._third).relu_()
        return torch.addmm(self._bias[3], third, self._fourth).relu_()


def load_stepped() -> SteppedNetwork:
    """Load silero-vad's own model."""
    with warnings.catch_warnings():
        # torch deprecates the format that silero-vad ships; only silero-vad can change that.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.jit")
        return SteppedNetwork(load_silero_vad())


def load_network() -> BatchedNetwork | SteppedNetwork:
    """Load the batched network, or silero-vad's own model if the two differ on a short probe. Takes about 0.1 s.

    Also sets the process up for it: one torch thread, and an allocator that keeps freed memory.
    """
    torch.set_num_threads(1)
    _keep_freed_memory()
    stepped = load_stepped()
    try:
        batched = BatchedNetwork(stepped.model.state_dict())
        difference = _difference(batched, stepped)
    except (KeyError, RuntimeError) as error:
        _log.warning("silero-vad's network is not the known one: using its own, slower model (%s)", error)
        return stepped
    if not difference <= MAX_DIFFERENCE:
        _log.warning("probabilities differ by %.2g from silero-vad's: using its own, slower model", difference)
        return stepped
    return batched


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory (up to 64 MB) for the next block.

    By default, glibc returns each block's buffers to the kernel and requests them again, zeroed: 25,000 page faults in
    6 min of audio, a third of the network's time (measured). These buffers have 4 MB; larger ones still come from the
    kernel, because the index of a 12 h m4a, which grows by copies, would leave 50 MB of holes. Other C libraries have
    no mallopt.
    """
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 8 * 2**20)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 * 2**20)


def _difference(batched: BatchedNetwork, stepped: SteppedNetwork) -> float:
    samples = _probe()
    with torch.inference_mode():
        half = CONTEXT_SAMPLES + len(samples) // FRAME_SAMPLES // 2 * FRAME_SAMPLES
        first, state = batched.forward(samples[:half], batched.start())
        second, _ = batched.forward(samples[half - CONTEXT_SAMPLES :], state)
        expected, _ = stepped.forward(samples, stepped.start())
    return float((torch.cat((first, second)) - expected).abs().max())


def _probe() -> torch.Tensor:
    """Return 3 s of a voice-like buzz in syllables, with noise, which gives low and high probabilities."""
    seconds = np.arange(94 * FRAME_SAMPLES) / SAMPLE_RATE_HZ
    pitch_hz = 120 + 30 * np.sin(2 * np.pi * 0.7 * seconds)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ
    buzz = sum(np.sin(k * phase) / k for k in range(1, 30))
    syllables = np.clip(np.sin(4 * np.pi * seconds), 0, None)
    noise = np.random.default_rng(0).normal(0, 0.02, len(seconds))
    return torch.cat((torch.zeros(CONTEXT_SAMPLES), torch.from_numpy(0.2 * buzz * syllables + noise).float()))
