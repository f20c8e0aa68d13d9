"""The first half of scenario F11: a worker that is stopped for 30 s keeps its leases, and logs it afterwards."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import psutil
import pytest

from tests.support.commands import StartWorker, Worker
from tests.support.evidence.emf import metrics_of
from tests.support.evidence.outputs import verified
from tests.support.faults.proxy import OpenProxy
from tests.support.machines.systemd import Systemd
from tests.support.site import Counts, OpenSite
from tests.support.visibility import has_come_back
from tests.support.waiting import wait_until

VISIBILITY_TIMEOUT_S = 60
"""A heartbeat is due after 20 s, and the lease is lost when 6 s are left: little more than 30 s are possible."""
STOPPED_S = 30

_BLOCKS = """
import signal, time
from pathlib import Path

def block(number, frame):
    marker = Path({marker!r})
    marker.touch()
    while marker.exists():
        time.sleep(0.05)

signal.signal(signal.SIGUSR1, block)
"""
"""Python runs it at the start of the worker, and the handler between two steps of its main thread: the event loop is
blocked, as by a callback, and other threads continue. SIGSTOP stops all of them."""


@asynccontextmanager
async def _stopped(worker: Worker, what: str, marker: Path) -> AsyncIterator[None]:
    if what == "loop":
        worker.signal(signal.SIGUSR1)
        await wait_until(marker.exists, what="the loop to be blocked")
        try:
            yield
        finally:
            marker.unlink()
    else:
        process = psutil.Process(worker.pid)
        worker.signal(signal.SIGSTOP)
        await wait_until(lambda: process.status() == psutil.STATUS_STOPPED, what="the worker to be stopped")
        try:
            yield
        finally:
            worker.signal(signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["loop", "process"])
async def test_worker_stopped_for_half_a_minute_keeps_its_lease_and_logs_the_lag(
    *,
    open_site: OpenSite,
    open_proxy: OpenProxy,
    start_worker: StartWorker,
    systemd: Systemd,
    speech: Path,
    tmp_path: Path,
    what: Literal["loop", "process"],
) -> None:
    marker = tmp_path / "blocked"
    (tmp_path / "sitecustomize.py").write_text(_BLOCKS.format(marker=str(marker)))
    site = await open_site(visibility_timeout_s=VISIBILITY_TIMEOUT_S)
    clock = await open_site(visibility_timeout_s=STOPPED_S)
    source = await open_proxy(site.services.servers.objects.url)
    worker = await start_worker(
        site,
        STT_MINIO_ENDPOINT=source.endpoint,
        STT_ENVIRONMENT="test",
        PYTHONPATH=str(tmp_path),
        **systemd.environment(),
    )
    await systemd.wait_for("READY=1")
    source.hold("down", after=0)
    await site.put_recordings({"a.wav": speech})
    await site.send(site.job("a.wav"))
    await source.holding.wait()

    async with _stopped(worker, what, marker):
        signals = systemd.signs_of_life()
        await clock.send("a message that no worker receives")
        await wait_until(lambda: has_come_back(clock, 1), what=f"{STOPPED_S} s to pass", timeout_s=2 * STOPPED_S)
        assert systemd.signs_of_life() == signals
        assert await site.counts() == Counts(visible=0, in_flight=1)

    [lag] = await worker.wait_for("loop_lagged")
    [late] = await worker.wait_for("heartbeat_late")
    assert metrics_of(lag)["LoopLag"] > STOPPED_S - 1
    assert metrics_of(late)["HeartbeatLate"] > VISIBILITY_TIMEOUT_S / 10
    await systemd.wait_for("WATCHDOG=1", count=signals + 2)
    source.release()
    [done] = await worker.wait_for("job_succeeded")
    assert done["receive_count"] == 1
    await wait_until(site.is_drained, what="the message to be deleted")
    assert worker.events("job_lease_lost") == []
    await verified(site, "a.wav")
