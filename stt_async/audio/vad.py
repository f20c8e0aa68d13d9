"""Computes Silero's speech probabilities, one per 512 samples, a block of frames at a time."""

from typing import Protocol

import numpy as np
import torch

from stt_async.audio.silero import CONTEXT_SAMPLES, State
from stt_async.audio.stream import FRAME_SAMPLES, Pcm, Probabilities

VAD_BLOCK_FRAMES = 1_024
"""Frames in one forward pass (33 s, 13 MB). In a whole split, 512 are 3 % slower, 256 12 %, 128 25 % (measured); more
are no faster."""

_INT16_SCALE = 1 / 32_768


class Network(Protocol):
    """Turns frames into probabilities: `silero.BatchedNetwork` or `silero.SteppedNetwork`."""

    name: str

    def start(self) -> State:
        """Return the state before the first frame."""

    def forward(self, samples: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Take CONTEXT_SAMPLES + n * FRAME_SAMPLES float32 samples, return n probabilities and the next state."""


class SpeechProbabilities:
    """Takes samples in parts of any size, returns all probabilities at the end. Memory: 11 MB for 24 h.

    Blocks lie on a fixed grid from the first sample, so the result does not depend on the parts.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._state = network.start()
        self._block = torch.zeros(CONTEXT_SAMPLES + VAD_BLOCK_FRAMES * FRAME_SAMPLES)
        self._filled = CONTEXT_SAMPLES
        self._done: list[Probabilities] = []

    def push(self, pcm: Pcm) -> None:
        """Take any number of 16 kHz samples."""
        taken = 0
        while taken < len(pcm):
            count = min(len(pcm) - taken, len(self._block) - self._filled)
            part = torch.from_numpy(pcm[taken : taken + count])
            torch.mul(part, _INT16_SCALE, out=self._block[self._filled : self._filled + count])
            self._filled += count
            taken += count
            if self._filled == len(self._block):
                self._run(VAD_BLOCK_FRAMES)

    def finish(self) -> Probabilities:
        """Return one float32 probability per frame. Zeros fill the last frame, as in Silero."""
        frames = -(-(self._filled - CONTEXT_SAMPLES) // FRAME_SAMPLES)
        if frames:
            self._block[self._filled :] = 0
            self._run(frames)
        return np.concatenate(self._done) if self._done else np.empty(0, np.float32)

    def _run(self, frames: int) -> None:
        samples = self._block[: CONTEXT_SAMPLES + frames * FRAME_SAMPLES]
        with torch.inference_mode():
            probabilities, self._state = self._network.forward(samples, self._state)
            self._done.append(probabilities.numpy().copy())
            self._block[:CONTEXT_SAMPLES] = self._block[-CONTEXT_SAMPLES:].clone()
        self._filled = CONTEXT_SAMPLES
