"""One download into a file: its progress, its rate, and the check of its content."""

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from stt_async.errors import DISK_FULL, TransientError

MIN_RATE_BYTES_S = 32 * 1024
RATE_WINDOW_S = 60.0
"""A connection slower than 32 KiB/s over a minute is closed: it would hold its slot for hours."""

TOO_SLOW = "too_slow"

_MD5_ETAG = re.compile(r"[0-9a-f]{32}")


class Download:
    """A download that may take several connections. Its file holds `offset_bytes` valid bytes."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.offset_bytes = 0
        self.etag: str | None = None
        self.receiving_s = 0.0
        """Time spent receiving bodies, over all connections."""
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._mismatched_md5: str | None = None

    @property
    def resumable(self) -> bool:
        """Whether the next connection may continue where the last one broke; this needs an ETag for If-Match."""
        return self.offset_bytes > 0 and self.etag is not None

    def restart(self) -> None:
        """Discard what was received."""
        self.offset_bytes = 0
        self.etag = None
        self._md5 = hashlib.md5(usedforsecurity=False)

    async def receive(self, chunks: AsyncIterator[bytes]) -> None:
        """Append a body to the file, off the event loop.

        Raises:
            TransientError: `disk_full` or `too_slow`.
        """
        with self._open() as file, self._timed():
            window_s, window_bytes = time.monotonic(), 0
            async for chunk in chunks:
                await asyncio.to_thread(self._append, file, chunk)
                window_bytes += len(chunk)
                if (passed_s := time.monotonic() - window_s) >= RATE_WINDOW_S:
                    if window_bytes < MIN_RATE_BYTES_S * passed_s:
                        rate = f"{window_bytes / passed_s:.0f} bytes/s over {passed_s:.0f} s"
                        raise TransientError(TOO_SLOW, f"the download is too slow: {rate}")
                    window_s, window_bytes = time.monotonic(), 0

    def verify(self, expected_bytes: int | None) -> None:
        """Compare the content with its announced size and its ETag.

        An ETag of 32 hex digits is the MD5 of the content, except with some kinds of encryption. So after a mismatch
        the content is downloaded once more: if it is the same again, the ETag is no MD5.

        Raises:
            TransientError: `download_truncated` or `download_corrupt`.
        """
        if expected_bytes is not None and self.offset_bytes != expected_bytes:
            received_bytes = self.offset_bytes
            self.restart()
            raise TransientError("download_truncated", f"received {received_bytes} of {expected_bytes} bytes")
        md5 = self._md5.hexdigest()
        if self.etag is None or not _MD5_ETAG.fullmatch(self.etag) or md5 in {self.etag, self._mismatched_md5}:
            return
        self._mismatched_md5, etag = md5, self.etag
        self.restart()
        raise TransientError("download_corrupt", f"the content's MD5 is {md5}, its ETag says {etag}")

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started_s = time.monotonic()
        try:
            yield
        finally:
            self.receiving_s += time.monotonic() - started_s

    def _open(self) -> FileIO:
        try:
            # No buffer: closing would write again what a full disk refused, and its error would hide the first one.
            file = self._file.open("r+b" if self.offset_bytes else "wb", buffering=0)
        except OSError as error:
            raise _disk_full(error) from error
        file.seek(self.offset_bytes)
        return file

    def _append(self, file: FileIO, chunk: bytes) -> None:
        unwritten = memoryview(chunk)
        try:
            while unwritten:
                unwritten = unwritten[file.write(unwritten) :]
        except OSError as error:
            raise _disk_full(error) from error
        self._md5.update(chunk)
        self.offset_bytes += len(chunk)


def _disk_full(error: OSError) -> TransientError:
    return TransientError(DISK_FULL, f"cannot write the download: {error}")
