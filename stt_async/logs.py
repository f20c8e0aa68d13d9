"""Logs: JSON lines on stderr, or lines for people where stderr is a terminal."""

import json
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Thread
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

MOST_BYTES = 1024**2
"""Of lines on their way to a sink that does not take them: about as many as a busy worker writes in ten minutes."""

MOST_CHARACTERS = 4000
"""Of a text in a line, as what a server says of an error: journald cuts a line at 48 KB (`LineMax=`), and half an
object is none."""

FLUSH_TIMEOUT_S = 2.0
"""For what is still on its way at the end."""

_log = structlog.get_logger()


def configure(level: int) -> None:
    """Set up structlog for this process, from `logging`'s `level` upward; who logs, writes.

    Events are `snake_case` past tense; what is bound stands in each line.
    """
    structlog.configure(
        processors=_processors(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
    )


@contextmanager
def in_background(level: int, *additions: Processor) -> Iterator[None]:
    """Log as `configure` says, but let a thread write: nobody who logs ever waits for stderr, or sees it fail.

    The warnings of libraries, asyncio's own errors among them, become lines, too. At the end of the block what is on
    its way is written, for `FLUSH_TIMEOUT_S` at most.

    Args:
        level: As `logging` names it.
        additions: What else makes up a line, if it is for machines.
    """
    processors = _processors(*additions)
    wrapper = structlog.make_filtering_bound_logger(level)

    def told(dropped: int) -> bytes:
        log = structlog.wrap_logger(structlog.ReturnLogger(), processors, wrapper)
        line: bytes = log.warning("log_lines_dropped", lines=dropped)
        return line

    before = structlog.get_config()
    writer = Writer(sys.stderr.fileno(), most_bytes=MOST_BYTES, told=told)
    libraries = _Libraries(logging.WARNING)
    structlog.configure(processors=processors, wrapper_class=wrapper, logger_factory=lambda *_: writer)
    logging.getLogger().addHandler(libraries)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(libraries)
        structlog.configure(**before)
        writer.close(FLUSH_TIMEOUT_S)


class Writer:
    """Writes lines to a file descriptor from a thread of its own: a sink that blocks or fails costs lines, not time.

    Order is kept, and a line is one write. What finds no room, or is refused by the sink, is dropped and counted; the
    next line that gets through brings the count with it, in a line before it.

    Args:
        fd: The sink.
        most_bytes: Of lines on their way.
        told: Makes the line that tells how many were dropped.
    """

    def __init__(self, fd: int, *, most_bytes: int, told: Callable[[int], bytes]) -> None:
        self._fd = fd
        self._most_bytes = most_bytes
        self._told = told
        self._lines: deque[tuple[bytes, int]] = deque()
        """Each with how many were dropped before it."""
        self._lines_bytes = 0
        self._dropped = 0
        self._closing = False
        self._changed = Condition()
        self._torn = False
        self._thread = Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Hand over a line, without its newline; never waits for the sink."""
        with self._changed:
            if self._lines_bytes + len(line) > self._most_bytes:
                self._dropped += 1
                return
            self._lines.append((line, self._dropped))
            self._lines_bytes += len(line)
            self._dropped = 0
            self._changed.notify()

    debug = info = warning = error = critical = exception = write
    """What structlog calls."""

    def close(self, timeout_s: float) -> None:
        """Wait until all is written, but no longer than `timeout_s`; what is handed over later is lost."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (entry := self._next()) is not None:
            line, dropped = entry
            lines = [self._told(dropped), line] if dropped else [line]
            if not self._put(b"".join(each + b"\n" for each in lines)):
                with self._changed:
                    self._dropped += dropped + 1
        if self._dropped:
            self._put(self._told(self._dropped) + b"\n")

    def _next(self) -> tuple[bytes, int] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._closing)
            if not self._lines:
                return None
            line, dropped = self._lines.popleft()
            self._lines_bytes -= len(line)
            return line, dropped

    def _put(self, text: bytes) -> bool:
        """Write `text` whole; False if the sink refuses it, or all but a part of it."""
        rest = memoryview(b"\n" + text if self._torn else text)
        whole_bytes = len(rest)
        try:
            # Straight to the descriptor: a blocked write that holds the lock of `sys.stderr` would hang the exit, too.
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            self._torn = self._torn or len(rest) < whole_bytes
            return False
        self._torn = False
        return True


class _Libraries(logging.Handler):
    """What libraries say, as lines of ours: `logging` itself would write it to stderr, from the event loop, too."""

    def emit(self, record: logging.LogRecord) -> None:
        log = _log.error if record.levelno >= logging.ERROR else _log.warning
        log("library_warned", logger=record.name, message=record.getMessage(), exc_info=record.exc_info)


def _processors(*additions: Processor) -> list[Processor]:
    """Return what makes bytes of an event, with `additions` only where no person reads them."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _time_and_event_first,
    ]
    if sys.stderr.isatty():
        # Its own choice would show the locals of each frame, secrets among them.
        console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        return [*shared, console, _encoded]
    renderer = structlog.processors.JSONRenderer(serializer=_dumps)
    return [*shared, *additions, structlog.processors.format_exc_info, _shortened, renderer]


def _time_and_event_first(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Order a line as people read it."""
    first = ("timestamp", "level", "event")
    return {name: event[name] for name in first} | {n: value for n, value in event.items() if n not in first}


def _shortened(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Cut long texts in their middle: how it began and, of a traceback, what it came to."""
    half = MOST_CHARACTERS // 2
    return {
        name: f"{value[:half]} … {value[-half:]}" if isinstance(value, str) and len(value) > MOST_CHARACTERS else value
        for name, value in event.items()
    }


def _encoded(_logger: WrappedLogger, _method: str, line: Any) -> bytes:
    text: str = line
    return text.encode(errors="backslashreplace")


def _dumps(event: EventDict, default: Callable[[Any], Any]) -> bytes:
    """Write a line whatever it holds: a lone surrogate of a file's name or a huge number must not fail a job."""
    try:
        return orjson.dumps(event, default=default)
    except orjson.JSONEncodeError:
        return json.dumps(event, default=default, ensure_ascii=False).encode(errors="replace")
