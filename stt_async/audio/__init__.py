"""Splits one recording into segments, without network or asyncio. Runs in pool children; the entry point is `split`."""
