"""A link that concurrent downloads share equally, with a limit for each connection."""

import heapq
from dataclasses import dataclass
from itertools import count
from typing import Any


@dataclass(slots=True, eq=False)
class Download:
    """A running download; `subject` is the caller's."""

    subject: Any
    cancelled: bool = False


class Link:
    """Processor sharing that does not update every download at every change.

    All downloads have the same rate, so `_served` counts the megabits of a download that runs from the beginning. A
    download of n megabits that begins at count s ends at count s + n, however many others begin and end meanwhile.
    """

    def __init__(self, link_mbps: float, connection_mbps: float) -> None:
        self._link_mbps = link_mbps
        self._connection_mbps = connection_mbps
        self._now_s = 0.0
        self._served = 0.0
        self._active = 0
        self._ends: list[tuple[float, int, Download]] = []
        self._order = count()

    def begin(self, now_s: float, megabits: float, subject: Any) -> Download:
        self._advance(now_s)
        download = Download(subject)
        heapq.heappush(self._ends, (self._served + megabits, next(self._order), download))
        self._active += 1
        return download

    def cancel(self, now_s: float, download: Download) -> None:
        self._advance(now_s)
        download.cancelled = True
        self._active -= 1

    def next_end_s(self) -> float | None:
        """Return when the next download ends if nothing changes until then."""
        while self._ends and self._ends[0][2].cancelled:
            heapq.heappop(self._ends)
        if not self._ends:
            return None
        return self._now_s + max(0.0, self._ends[0][0] - self._served) / self._rate_mbps()

    def end(self, now_s: float) -> Any:
        """End the next download and return its subject."""
        served, _, download = heapq.heappop(self._ends)
        self._advance(now_s)
        self._served = max(self._served, served)
        self._active -= 1
        return download.subject

    def _rate_mbps(self) -> float:
        return min(self._connection_mbps, self._link_mbps / self._active)

    def _advance(self, now_s: float) -> None:
        if self._active:
            self._served += (now_s - self._now_s) * self._rate_mbps()
        self._now_s = now_s
