"""A bound on what all take together, given out first come first served."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Budget:
    """`most` units of something, or less for a while. To be used on the event loop's thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._free = most
        self.total = most
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def take(self, units: int) -> AsyncIterator[None]:
        """Wait until `units` are free and hold them; who wants more than there is waits until it has all of them."""
        async with self._turn:
            while self._free < (held := min(units, self.total)):
                self._freed.clear()
                await self._freed.wait()
            self._free -= held
        try:
            yield
        finally:
            self._free += held
            self._freed.set()

    def shrink(self) -> None:
        """Halve it: what is given out stays given out, and less follows."""
        self._resize(max(1, self.total // 2))

    def grow(self) -> None:
        """Give back a sixteenth of what it was at first."""
        self._resize(min(self._most, self.total + max(1, self._most // 16)))

    def _resize(self, total: int) -> None:
        self._free += total - self.total
        self.total = total
        self._freed.set()
