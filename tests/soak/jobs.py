"""Many small jobs, and the count of their results.

The source answers as slowly as the real one, so that the network and not the local CPU limits the throughput.
"""

import io
import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import soundfile

from tests.support.faults.gateway import Gateway
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.support.evidence.history import Call

SOURCE_LATENCY_S = 0.5
RECORDING_S = (1.5, 6.0)


class Commits:
    """Counts the manifests that are written."""

    def __init__(self, gateway: Gateway) -> None:
        self._calls = gateway.history.calls
        self._seen = 0
        self._open: list[Call] = []
        self.by_key: Counter[str] = Counter()

    def count(self) -> int:
        """Return how many recordings have a manifest."""
        self._open += [c for c in self._calls[self._seen :] if c.operation == "PutObject" and c.is_of_manifest]
        self._seen = len(self._calls)
        self.by_key.update(call.key for call in self._open if call.served)
        self._open = [call for call in self._open if call.served_status is None and call.ended_s is None]
        return len(self.by_key)


async def wait_for_commits(commits: Commits, count: int) -> None:
    """Wait until so many recordings have a manifest."""
    await wait_until(lambda: commits.count() >= count, what=f"{count} recordings to be done", timeout_s=600)


def excerpts(speech: Path, rng: random.Random) -> list[bytes]:
    """Return a few short excerpts of a recording."""
    samples, rate_hz = soundfile.read(speech, dtype="int16")
    files = []
    for _ in range(8):
        length = int(rng.uniform(*RECORDING_S) * rate_hz)
        start = rng.randrange(len(samples) - length)
        file = io.BytesIO()
        soundfile.write(file, samples[start : start + length], rate_hz, format="WAV", subtype="PCM_16")
        files.append(file.getvalue())
    return files
