"""A bound on what all take together, given out first come first served."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Budget:
    """`total` units of something. To be used on the event loop's thread."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def take(self, units: int) -> AsyncIterator[None]:
        """Wait until `units` are free and hold them; who wants more than there is waits until it has all of them."""
        units = min(units, self.total)
        async with self._turn:
            while self._free < units:
                self._freed.clear()
                await self._freed.wait()
            self._free -= units
        try:
            yield
        finally:
            self._free += units
            self._freed.set()
