"""What a real worker sends to systemd: the second half of scenario F11, and the order of start and stop."""

import asyncio
import signal
from pathlib import Path

import psutil
import pytest

from tests.support.commands import StartWorker, Worker
from tests.support.faults.proxy import OpenProxy
from tests.support.machines.systemd import STARTING, WATCHDOG_S, Systemd
from tests.support.site import OpenSite, Site
from tests.support.waiting import wait_until

_VISIBILITY_TIMEOUT_S = 10
"""Longer than the worker is stopped, on a loaded machine too."""


async def test_systemd_gets_ready_after_preflight_and_stopping_at_the_stop(
    site: Site, open_proxy: OpenProxy, start_worker: StartWorker, systemd: Systemd
) -> None:
    source = await open_proxy(site.services.servers.objects.url)
    source.hold("down", after=0)
    worker = await start_worker(site, STT_MINIO_ENDPOINT=source.endpoint, **systemd.environment())
    await source.holding.wait()
    assert systemd.lines() == STARTING
    source.release()
    await systemd.wait_for("READY=1")
    await systemd.wait_for("WATCHDOG=1", count=2)
    assert "STOPPING=1" not in systemd.lines()
    assert any(line.startswith("STATUS=0 jobs held") for line in systemd.lines())
    worker.signal(signal.SIGTERM)
    assert await worker.wait() == 0
    lines = systemd.lines()
    assert lines[2] == "READY=1"
    extended = lines[lines.index("STOPPING=1") + 1]
    assert extended.startswith("EXTEND_TIMEOUT_USEC=")


async def test_frozen_worker_sends_no_watchdog_signal_keeps_its_lease_and_can_be_aborted(
    open_site: OpenSite, open_proxy: OpenProxy, start_worker: StartWorker, systemd: Systemd, speech: Path
) -> None:
    site = await open_site(visibility_timeout_s=_VISIBILITY_TIMEOUT_S)
    source = await open_proxy(site.services.servers.objects.url)
    worker = await start_worker(site, STT_MINIO_ENDPOINT=source.endpoint, **systemd.environment())
    await systemd.wait_for("READY=1")
    source.hold("down", after=0)
    await site.put_recordings({"a.wav": speech})
    await site.send(site.job("a.wav"))
    await source.holding.wait()
    worker.signal(signal.SIGSTOP)
    await wait_until(lambda: _is_stopped(worker), what="the worker to be stopped")
    before = systemd.signs_of_life()
    # systemd would wait for as long, and then end this worker.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(WATCHDOG_S):
            await systemd.wait_for("WATCHDOG=1", count=before + 1)
    worker.signal(signal.SIGCONT)
    await systemd.wait_for("WATCHDOG=1", count=before + 2)
    [lag] = await worker.wait_for("loop_lagged")
    assert lag["max_s"] > WATCHDOG_S / 2
    source.release()
    [done] = await worker.wait_for("job_succeeded")
    assert done["receive_count"] == 1
    await wait_until(site.is_drained, what="the message to be deleted")

    worker.signal(signal.SIGABRT)  # as systemd does after its timeout
    assert await worker.wait() == -signal.SIGABRT
    log = worker.process.log.read_text()
    assert "Fatal Python error: Aborted" in log
    assert "assembly.py" in log or "stt_async/cli" in log


def _is_stopped(worker: Worker) -> bool:
    return bool(psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED)
