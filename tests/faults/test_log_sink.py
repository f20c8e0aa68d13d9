"""Scenario F37: nobody takes the log, or nobody can. The worker works on, and tells what is missing when it can."""

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
from tests.support.sqs.fixture import OpenSqs
from tests.support.visibility import has_come_back
from tests.support.waiting import wait_until

LONG = "x" * 2_000
"""An unknown field of this name makes a log line of more than 1,000 characters; as many as 1 MiB of them may wait."""
LONG_JOBS = 1_100


class UnreadPipe:
    """A pipe that a worker writes its log to; full from the start, and read when a test says so."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._text = b""
        fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, 4096)
        os.write(self.fd, b"\n" * 4096)
        with pytest.raises(BlockingIOError):
            os.write(self.fd, b"\n")

    def events(self, name: str) -> list[Any]:
        """Read what there is; the lines of one event among all that was read so far."""
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
    """Where the first worker of this test writes its log."""
    pipe = UnreadPipe(tmp_path / "worker-1.log")
    yield pipe
    os.close(pipe.fd)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_with_a_log_that_nobody_reads_jobs_are_done_and_heartbeats_sent_and_what_is_missing_is_told(
    open_sqs: OpenSqs,
    open_site: OpenSite,
    start_worker: StartWorker,
    open_proxy: OpenProxy,
    *,
    speech: Path,
    unread: UnreadPipe,
) -> None:
    queues = await open_sqs()  # the emulator takes minutes for so many messages
    site = await open_site(visibility_timeout_s=6, queues_url=queues.url)
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
    await clock.send("a message that nobody keeps")
    await wait_until(lambda: has_come_back(clock, 2), what="two visibility timeouts to pass")
    assert await site.counts() == Counts(visible=0, in_flight=1)
    source.release()
    await _done(site, 2)

    await wait_until(lambda: unread.events("worker_started"), what="the lines that waited, the first")
    await wait_until(lambda: unread.events("job_failed"), what="the lines that waited, others")
    await site.send(site.job("last.wav"))
    await _done(site, 3)
    await wait_until(lambda: unread.events("log_lines_dropped"), what="the count of the lines that are missing")
    worker.signal(signal.SIGTERM)
    assert await worker.wait() == 0
    (stopped,) = unread.events("worker_stopped")
    assert (stopped["job_succeeded"], stopped["job_failed"]) == (3, LONG_JOBS)
    told = unread.events("job_succeeded") + unread.events("job_failed")
    assert len(unread.events("job_failed")) < LONG_JOBS
    assert len(told) + sum(line["lines"] for line in unread.events("log_lines_dropped")) >= 3 + LONG_JOBS
    assert {line["receive_count"] for line in told} == {1}
    for key in keys:
        await verified(site, key)


async def test_with_a_log_that_nobody_reads_a_worker_stops_as_any_other(
    site: Site, start_worker: StartWorker, speech: Path, unread: UnreadPipe
) -> None:
    await site.put_recordings([speech])
    await site.send(site.job(speech.name))
    worker = await start_worker(site)
    await _done(site, 1)
    worker.signal(signal.SIGTERM)
    assert await worker.wait() == 0
    assert unread.events("worker_stopped") == []


async def test_with_a_full_disk_for_its_log_a_worker_does_its_jobs(
    site: Site, start_worker: StartWorker, speech: Path, tmp_path: Path
) -> None:
    (tmp_path / "worker-1.log").symlink_to("/dev/full")
    await site.put_recordings([speech])
    await site.send(site.job(speech.name))
    await site.send("not a job")
    worker = await start_worker(site)
    await _done(site, 1)
    await wait_until(lambda: _dead_letters(site, 1), what="what is no job to be a dead letter")
    worker.signal(signal.SIGTERM)
    assert await worker.wait() == 0
    await verified(site, speech.name)


async def _done(site: Site, jobs: int) -> None:
    async def done() -> bool:
        return len(await site.manifests()) == jobs and await site.is_drained()

    await wait_until(done, what=f"{jobs} jobs to be done", timeout_s=60)


async def _dead_letters(site: Site, count: int) -> bool:
    return await site.dead_letter_counts() == Counts(visible=count, in_flight=0)
