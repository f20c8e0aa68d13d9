"""One recording to segments. Knows no network and no asyncio; runs in pool children. The door in is `split`."""
