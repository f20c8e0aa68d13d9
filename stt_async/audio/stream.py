"""What a decoder returns: blocks of samples, and the facts that the container states."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]
Pcm = NDArray[np.int16]
Probabilities = NDArray[np.float32]
"""Probabilities of speech, one per FRAME_SAMPLES samples at 16 kHz."""

FRAME_SAMPLES = 512
"""Silero's frame: 32 ms."""

BLOCK_FRAMES = 65_536
"""Frames of a decoded block: 1.5 s at 44.1 kHz. Larger blocks exceed the cache and are no faster (measured)."""

MIN_BLOCK_FRAMES = 4_096

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 1_000_000
"""Other rates mean a broken header: one block would become hundreds of MB at 16 kHz, or nothing."""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive samples of one rate, an array per channel, full scale at +-1. Valid until the next block."""

    rate_hz: int
    channels: Sequence[Samples]


@dataclass(slots=True, kw_only=True)
class Stream:
    """An opened recording. `damaged` and `read_to_end` are valid once `blocks` is exhausted."""

    container: str
    codec: str
    rate_hz: int
    channels: int
    declared_s: float | None
    blocks: Iterator[Block] = field(default_factory=lambda: iter(()))
    damaged: bool = False
    read_to_end: Callable[[], bool] = field(default=lambda: True)


class NotDecodableError(Exception):
    """This decoder cannot open the recording; the other one may."""


class NoAudioStreamError(NotDecodableError):
    """A readable container without audio."""


def block_frames(channels: int) -> int:
    """Return the frames of a block: fewer for more channels, so that 64 channels take only 1 MB."""
    return max(MIN_BLOCK_FRAMES, BLOCK_FRAMES // channels)
