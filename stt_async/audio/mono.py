"""Converts a stream of any rate and channel count to 16 kHz 16 bit mono."""

from collections.abc import Sequence

import numpy as np
import soxr

from stt_async.audio.stream import Block, Pcm, Samples
from stt_async.params import SAMPLE_RATE_HZ

_FULL_SCALE = 32_768

_CANCELLED = 0.1
"""Channels cancel each other out if their mix has less than this share of their summed energy.

Independent channels keep all of it, as does one live channel among dead ones. A reversed copy at 65 % of the loudness
or more leaves less than a tenth.
"""


class Mono:
    """Takes blocks, returns 16 kHz int16. Without dither, so results repeat and a 16 bit source passes unchanged.

    Args:
        channel: The one channel to take, or None for the mean of all.
    """

    def __init__(self, channel: int | None = None) -> None:
        self.clipped_samples = 0
        self._channel = channel
        self._source = (0, 0)
        self._resampler: soxr.ResampleStream | None = None
        self._channel_energy = np.zeros(1)
        self._mix_energy = 0.0

    def push(self, block: Block) -> Pcm:
        """Return the 16 kHz samples that are ready after this block."""
        source = (block.rate_hz, len(block.channels))
        tail = self.finish() if source != self._source else None
        self._source = source
        if tail is not None:
            self._channel_energy, self._mix_energy = np.zeros(len(block.channels)), 0.0
            if block.rate_hz != SAMPLE_RATE_HZ:
                self._resampler = soxr.ResampleStream(block.rate_hz, SAMPLE_RATE_HZ, 1, "float32", "HQ")
        mixed = self._mix(block.channels)
        if self._resampler is not None:
            mixed = self._resampler.resample_chunk(mixed)
        pcm = self._quantise(mixed)
        return pcm if tail is None else np.concatenate((tail, pcm))

    def finish(self) -> Pcm:
        """Return the samples that are still in the resampler."""
        if self._resampler is None:
            return np.empty(0, np.int16)
        tail = self._resampler.resample_chunk(np.empty(0, np.float32), last=True)
        self._resampler = None
        return self._quantise(tail)

    def loudest_if_cancelled(self) -> int | None:
        """Return the loudest channel if the channels cancel each other out (opposite phase)."""
        channels = len(self._channel_energy)
        if self._channel is not None or channels == 1:
            return None
        if self._mix_energy >= _CANCELLED * float(self._channel_energy.sum()):
            return None
        return int(self._channel_energy.argmax())

    def _mix(self, channels: Sequence[Samples]) -> Samples:
        """Return the sum of all channels, or the chosen one; `_quantise` divides."""
        if self._channel is not None:
            channels = channels[min(self._channel, len(channels) - 1) :][:1]
        mixed = _sum(channels)
        if not np.isfinite(mixed.sum()):
            channels = [_finite(channel) for channel in channels]
            mixed = _sum(channels)
        if len(channels) > 1:
            for index, channel in enumerate(channels):
                self._channel_energy[index] += _energy(channel)
            self._mix_energy += _energy(mixed)
        return mixed

    def _quantise(self, samples: Samples) -> Pcm:
        _, channels = self._source
        scaled = samples * np.float32(_FULL_SCALE if self._channel is not None else _FULL_SCALE / channels)
        np.rint(scaled, out=scaled)
        if len(scaled) and max(scaled.max(), -scaled.min()) >= _FULL_SCALE - 1:
            self.clipped_samples += int(np.count_nonzero(np.abs(scaled) >= _FULL_SCALE - 1))
            np.clip(scaled, -_FULL_SCALE, _FULL_SCALE - 1, out=scaled)
        pcm: Pcm = scaled.astype(np.int16)
        return pcm


def _sum(channels: Sequence[Samples]) -> Samples:
    if len(channels) == 1:
        return channels[0]
    mixed: Samples = channels[0] + channels[1]
    for channel in channels[2:]:
        mixed += channel
    return mixed


def _energy(samples: Samples) -> float:
    """Return the energy of every eighth sample, which is enough to distinguish silence from sound."""
    some = samples[::8]
    # Not dot: BLAS would start threads.
    return float(np.einsum("i,i->", some, some))


def _finite(samples: Samples) -> Samples:
    finite: Samples = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)
    return finite.clip(-1, 1)
