"""Scenario F37: the log is not read, or cannot be written. The worker continues, and counts the lines that are lost."""

import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.commands import StartWorker
from tests.support.evidence.outputs import verified
from tests.support.faults.proxy import OpenProxy
from tests.support.site import Counts, OpenSite, Site
from tests.support.visibility import has_come_back
from tests.support.waiting import wait_until

LONG = "x" * 2_000
"""An unknown field of this name makes a log line of more than 1,000 characters; up to 1 MiB of lines may wait."""
LONG_JOBS = 1_100


class UnreadPipe:
    """A pipe to which a worker writes its log: full from the start, and read only by `events`."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._text = b""
        fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, 4096)
        os.write(self.fd, b"\n" * 4096)
        with pytest.raises(BlockingIOError):
            os.write(self.fd, b"\n")

    def events(self, name: str) -> list[Any]:
        """Read all waiting lines; return those of one event among all lines read so far."""
        while True:
            try:
                self._text += os.read(self.fd, 1 << 16)
            except BlockingIOError:
                break
        whole = self._text[: self._text.rfind(b"\n") + 1]
        lines = [orjson.loads(line) for line in whole.splitlines() if line]
        return [line for line in lines if line["event"] == name]


@pytest.fixture
def unread(tmp_path: Path) -> Iterator[UnreadPipe]:
    """The log of the first worker of this test."""
    pipe = UnreadPipe(tmp_path / "worker-1.log")
    yield pipe
    os.close(pipe.fd)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_unread_log_stops_no_job_and_no_heartbeat_and_counts_lost_lines(
    open_site: OpenSite,
    start_worker: StartWorker,
    open_proxy: OpenProxy,
    *,
    speech: Path,
    unread: UnreadPipe,
) -> None:
    site = await open_site(visibility_timeout_s=6)
    clock = await open_site(visibility_timeout_s=6)
    source = await open_proxy(site.services.servers.objects.url)
    keys = ["first.wav", "held.wav", "last.wav"]
    await site.put_recordings(dict.fromkeys(keys, speech))
    worker = await start_worker(site, STT_MINIO_ENDPOINT=source.endpoint)
    await site.send(site.job("first.wav"))
    await _done(site, 1)

    source.hold("down", after=0)
    await site.send(site.job("held.wav"))
    await source.holding.wait()
    for _ in range(LONG_JOBS):
        await site.send(site.job("never", **{LONG: None}))
    await wait_until(lambda: _dead_letters(site, LONG_JOBS), what="all long jobs to be dead letters", timeout_s=300)
    await clock.send("a message that no worker receives")
    await wait_until(lambda: has_come_back(clock, 2), what="two visibility timeouts to pass")
    assert await site.counts() == Counts(visible=0, in_flight=1)
    source.release()
    await _done(site, 2)

    await wait_until(lambda: unread.events("worker_started"), what="the first waiting line")
    await wait_until(lambda: unread.events("job_failed"), what="further waiting lines")
    await site.send(site.job("last.wav"))
    await _done(site, 3)
    await wait_until(lambda: unread.events("log_lines_dropped"), what="the count of lost lines")
    worker.signal(signal.SIGTERM)
    assert await worker.wait() == 0
    (stopped,) = unread.events("worker_stopped")
    assert (stopped["job_succeeded"], stopped["job_failed"]) == (3, LONG_JOBS)
    logged = unread.events("job_succeeded") + unread.events("job_failed")
    assert len(unread.events("job_failed")) < LONG_JOBS
    assert len(logged) + sum(line["lines"] for line in unread.events("log_lines_dropped")) >= 3 + LONG_JOBS
    assert {line["receive_count"] for line in logged} == {1}
    for key in keys:
        await verified(site, key)


async def test_unread_log_does_not_delay_the_stop(
    site: Site, start_worker: StartWorker, speech: Path, unread: UnreadPipe
) -> None:
    await site.put_recordings([speech])
    await site.send(site.job(speech.name))
    worker = await start_worker(site)
    await _done(site, 1)
    worker.signal(signal.SIGTERM)
    assert await worker.wait() == 0
    assert unread.events("worker_stopped") == []


async def test_full_disk_under_the_log_stops_no_job(
    site: Site, start_worker: StartWorker, speech: Path, tmp_path: Path
) -> None:
    (tmp_path / "worker-1.log").symlink_to("/dev/full")
    await site.put_recordings([speech])
    await site.send(site.job(speech.name))
    await site.send("not a job")
    worker = await start_worker(site)
    await _done(site, 1)
    await wait_until(lambda: _dead_letters(site, 1), what="the malformed message to be a dead letter")
    worker.signal(signal.SIGTERM)
    assert await worker.wait() == 0
    await verified(site, speech.name)


async def _done(site: Site, jobs: int) -> None:
    async def done() -> bool:
        return len(await site.manifests()) == jobs and await site.is_drained()

    await wait_until(done, what=f"{jobs} jobs to be done", timeout_s=60)


async def _dead_letters(site: Site, count: int) -> bool:
    return await site.dead_letter_counts() == Counts(visible=count, in_flight=0)
