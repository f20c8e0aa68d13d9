"""Any rate and channel count to 16 kHz mono 16 bit, as a stream."""

import numpy as np
import soxr

from stt_async.audio.stream import Block, Pcm, Samples
from stt_async.params import SAMPLE_RATE_HZ

_FULL_SCALE = np.float32(32_768)

_CANCELLED = 0.1
"""A mix of n channels that holds less than 0.1/n of their mean energy cancels itself out.

Independent channels leave 1/n, one live channel among dead ones leaves 1/n, a reversed copy of 60 % of the
loudness or more leaves less than 0.1/n.
"""


class Mono:
    """Blocks in, 16 kHz int16 out. Not dithered: same bytes every time, and a 16 bit source stays what it was.

    Args:
        channel: the one channel to take, or None for the mean of all.
    """

    def __init__(self, channel: int | None = None) -> None:
        self.clipped_samples = 0
        self._channel = channel
        self._rate_hz = 0
        self._resampler: soxr.ResampleStream | None = None
        self._channel_energy = np.zeros(1)
        self._mix_energy = 0.0

    def push(self, block: Block) -> Pcm:
        """Return the 16 kHz samples that are ready after this block."""
        mixed = self._mix(block.samples)
        if block.rate_hz == self._rate_hz:
            return self._quantise(self._resample(mixed))
        tail = self.finish()
        self._rate_hz = block.rate_hz
        if block.rate_hz != SAMPLE_RATE_HZ:
            self._resampler = soxr.ResampleStream(block.rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ")
        return np.concatenate((tail, self._quantise(self._resample(mixed))))

    def finish(self) -> Pcm:
        """Return what the resampler still holds."""
        if self._resampler is None:
            return np.empty(0, np.int16)
        tail = self._resampler.resample_chunk(np.empty(0, np.float32), last=True)
        self._resampler = None
        return self._quantise(tail)

    def loudest_if_cancelled(self) -> int | None:
        """Return the loudest channel if the mean of all is near silence though they are not (opposite phase)."""
        channels = len(self._channel_energy)
        if self._channel is not None or channels == 1:
            return None
        mean_energy = float(self._channel_energy.mean())
        if self._mix_energy >= _CANCELLED / channels * mean_energy:
            return None
        return int(self._channel_energy.argmax())

    def _mix(self, samples: Samples) -> Samples:
        channels = len(samples)
        if channels == 1 or self._channel is not None:
            return _finite(samples[min(self._channel or 0, channels - 1)])
        if len(self._channel_energy) != channels:
            self._channel_energy = np.zeros(channels)
            self._mix_energy = 0.0
        if not np.isfinite(samples.sum()):
            samples = _finite(samples)
        mixed: Samples = samples[0] + samples[1]
        for channel in samples[2:]:
            mixed += channel
        mixed *= np.float32(1 / channels)
        # einsum, not dot: BLAS would start threads of its own here.
        self._channel_energy += np.einsum("ij,ij->i", samples, samples)
        self._mix_energy += float(np.einsum("i,i->", mixed, mixed))
        return mixed

    def _resample(self, mixed: Samples) -> Samples:
        if self._resampler is None:
            return mixed
        resampled: Samples = self._resampler.resample_chunk(mixed)
        return resampled

    def _quantise(self, samples: Samples) -> Pcm:
        scaled = samples * _FULL_SCALE
        np.rint(scaled, out=scaled)
        if len(scaled) and max(scaled.max(), -scaled.min()) >= _FULL_SCALE - 1:
            self.clipped_samples += int(np.count_nonzero(np.abs(scaled) >= _FULL_SCALE - 1))
            np.clip(scaled, -32_768, 32_767, out=scaled)
        pcm: Pcm = scaled.astype(np.int16)
        return pcm


def _finite(samples: Samples) -> Samples:
    if np.isfinite(samples.sum()):
        return samples
    finite: Samples = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)
    return finite.clip(-1, 1)
