"""A link that downloads share: each gets the same, and no connection more than it can take."""

import heapq
from dataclasses import dataclass
from itertools import count
from typing import Any


@dataclass(slots=True, eq=False)
class Download:
    """One on its way; `what` is the caller's."""

    what: Any
    given_up: bool = False


class Link:
    """Processor sharing, without touching every download at every change.

    As all get the same, `_served` counts what one download that was there from the beginning would have got. A download
    of n megabits that begins at s ends when that count is s + n, whoever comes and goes meanwhile.
    """

    def __init__(self, link_mbps: float, connection_mbps: float) -> None:
        self._link_mbps = link_mbps
        self._connection_mbps = connection_mbps
        self._now_s = 0.0
        self._served = 0.0
        self._active = 0
        self._ends: list[tuple[float, int, Download]] = []
        self._order = count()

    def begin(self, now_s: float, megabits: float, what: Any) -> Download:
        """Begin one."""
        self._advance(now_s)
        download = Download(what)
        heapq.heappush(self._ends, (self._served + megabits, next(self._order), download))
        self._active += 1
        return download

    def give_up(self, now_s: float, download: Download) -> None:
        """End one that is on its way."""
        self._advance(now_s)
        download.given_up = True
        self._active -= 1

    def next_end_s(self) -> float | None:
        """Return when the next one ends, if nothing changes until then."""
        while self._ends and self._ends[0][2].given_up:
            heapq.heappop(self._ends)
        if not self._ends:
            return None
        return self._now_s + max(0.0, self._ends[0][0] - self._served) / self._rate_mbps()

    def end(self, now_s: float) -> Any:
        """End the next one, and return what it was about."""
        served, _, download = heapq.heappop(self._ends)
        self._advance(now_s)
        self._served = max(self._served, served)
        self._active -= 1
        return download.what

    def _rate_mbps(self) -> float:
        return min(self._connection_mbps, self._link_mbps / self._active)

    def _advance(self, now_s: float) -> None:
        if self._active:
            self._served += (now_s - self._now_s) * self._rate_mbps()
        self._now_s = now_s
