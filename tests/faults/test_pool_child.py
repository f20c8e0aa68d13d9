"""A child that dies or hangs costs only its own job a retry."""

import asyncio
import os
import resource
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.children import children, splitting
from tests.support.commands import StartWorker, Worker
from tests.support.evidence.outputs import verified
from tests.support.site import Counts, OpenSite, Site
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)
_TIMEOUT_S = 200.0
"""For many splits on a loaded machine."""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV])
async def test_child_killed_beside_three_others_costs_only_its_job_a_retry(
    site: Site, start_worker: StartWorker, a_quarter: Path, speech: Path, signum: signal.Signals
) -> None:
    beside, later = [f"beside-{n}.wav" for n in range(4)], [f"later-{n}.wav" for n in range(4)]
    await site.put_recordings(dict.fromkeys(beside, a_quarter) | dict.fromkeys(later, speech))
    for key in beside:  # before the worker starts, so that one poll receives them all
        await site.send(site.job(key))
    worker = await start_worker(site, STT_PROCESSES="4")
    await wait_until(lambda: len(splitting(worker)) == 4, what="all children to split", timeout_s=60)
    before = children(worker)
    os.kill(before[0], signum)

    (retried,) = await worker.wait_for("job_retried")
    for key in later:
        await site.send(site.job(key))
    assert (retried["failure"], retried["code"]) == ("worker_lost", "child_died")
    assert retried["recording"].split("/")[1] in beside
    (lost,) = worker.events("child_lost")
    assert (lost["code"], lost["exit_status"], lost["pid"]) == ("child_died", -signum, before[0])
    assert lost["recording"] == retried["recording"]
    await _done_with_one_retry(site, worker, beside + later, retried["recording"])
    assert set(before[1:]) <= set(children(worker))
    assert len(children(worker)) <= 4
    assert len(worker.events("child_lost")) == 1


async def test_child_out_of_memory_costs_only_its_own_job_a_retry(
    site: Site, start_worker: StartWorker, speech: Path
) -> None:
    worker = await _with_children(await start_worker(site, STT_PROCESSES="4"), 4)
    before = children(worker)
    _leave_bytes(before[0], 4 * 1024**2)
    keys = [f"{number}.wav" for number in range(8)]
    await site.put_recordings(dict.fromkeys(keys, speech))
    for key in keys:
        await site.send(site.job(key))
    (retried,) = await worker.wait_for("job_retried")
    assert (retried["failure"], retried["code"]) == ("worker_lost", "out_of_memory")
    assert "STT_CHILD_MAX_BYTES" in retried["error"]
    (lost,) = worker.events("child_lost")
    assert (lost["code"], lost["pid"], lost["in_job"]) == ("out_of_memory", before[0], True)
    await _done_with_one_retry(site, worker, keys, retried["recording"])
    assert set(before[1:]) <= set(children(worker))
    assert len(worker.events("child_lost")) == 1


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGKILL, "child_died"), (signal.SIGSTOP, "child_hung")])
async def test_dead_or_stopped_idle_children_cost_no_job_a_retry(
    site: Site, start_worker: StartWorker, speech: Path, signum: signal.Signals, code: str
) -> None:
    worker = await _with_children(await start_worker(site, STT_PROCESSES="2"), 2)
    gone = set(children(worker))
    keys = [f"{number}.wav" for number in range(6)]
    await site.put_recordings(dict.fromkeys(keys, speech))
    for pid in gone:
        os.kill(pid, signum)
    for key in keys:
        await site.send(site.job(key))
    done = await worker.wait_for("job_succeeded", count=len(keys))
    assert [line["receive_count"] for line in done] == [1] * len(keys)
    assert worker.events("job_retried") == []
    lost = worker.events("child_lost")
    assert {line["pid"] for line in lost} == gone
    assert [(line["code"], line["in_job"]) for line in lost] == [(code, False)] * 2
    assert not gone & set(children(worker))


async def test_child_stopped_in_mid_job_is_killed_and_its_job_retried(
    open_site: OpenSite, start_worker: StartWorker, a_quarter: Path
) -> None:
    site = await open_site(visibility_timeout_s=3)
    worker = await start_worker(site, STT_PROCESSES="1", STT_SLOTS="1", STT_JOB_TIMEOUT_S="8")
    await worker.wait_for("worker_started")
    await site.put_recordings([a_quarter])
    await site.send(site.job(a_quarter.name))
    (hung,) = await wait_until(lambda: splitting(worker), what="the child to split")
    os.kill(hung, signal.SIGSTOP)
    seen = set()
    while not worker.events("job_retried"):
        seen.add((await site.counts()).visible)
        await asyncio.sleep(0.1)
    assert seen == {0}, "the message became visible while its job was running"
    (retried,) = worker.events("job_retried")
    assert retried["code"] in {"job_timeout", "child_hung"}
    await wait_until(lambda: not psutil.pid_exists(hung), what="the child to exit")
    # The second receive also proves that heartbeats stopped: they would hide the message for ever.
    (done,) = await worker.wait_for("job_succeeded")
    assert done["receive_count"] == 2
    await verified(site, a_quarter.name)


async def _with_children(worker: Worker, count: int) -> Worker:
    await worker.wait_for("worker_started")
    await wait_until(lambda: len(children(worker)) == count, what="all children to start")
    return worker


def _leave_bytes(pid: int, left_bytes: int) -> None:
    """Limit the data of a process to its present size and this much more."""
    (size,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmData:"))
    limit = int(size.split()[1]) * 1024 + left_bytes
    resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))


async def _done_with_one_retry(site: Site, worker: Worker, keys: list[str], recording: str) -> None:
    """Check that all jobs are done, that of `recording` at its second receive and alone in the pool."""
    done = await worker.wait_for("job_succeeded", count=len(keys), timeout_s=_TIMEOUT_S)
    again = {line["recording"]: line["receive_count"] for line in done if line["receive_count"] > 1}
    assert again == {recording: 2}
    (alone,) = (_split_span(line) for line in done if line["recording"] == recording)
    others = [_split_span(line) for line in done if line["recording"] != recording]
    assert all(ended_s <= alone[0] or started_s >= alone[1] for started_s, ended_s in others)
    await wait_until(site.is_drained, what="all messages to be deleted")
    for key in keys:
        await verified(site, key)
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)


def _split_span(line: Any) -> tuple[float, float]:
    started_s, ended_s = line["stages"]["split"]
    return started_s, ended_s
