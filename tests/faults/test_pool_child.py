"""A pool process that dies or hangs costs its own job alone, and that job only a retry."""

import os
import signal
from pathlib import Path

import psutil

from tests.support.commands import StartWorker, Worker
from tests.support.outputs import verified
from tests.support.site import Counts, Site
from tests.support.waiting import wait_until


async def test_a_child_killed_in_mid_job_costs_its_own_job_a_retry(
    site: Site, start_worker: StartWorker, an_hour: Path, speech: Path
) -> None:
    worker = await start_worker(site, STT_PROCESSES="2")
    await worker.wait_for("worker_started")
    long, short = ["long-1.wav", "long-2.wav"], ["short-1.wav", "short-2.wav"]
    await site.put_recordings(dict.fromkeys(long, an_hour) | dict.fromkeys(short, speech))
    for key in long:
        await site.send(site.job(key))
    await wait_until(lambda: len(_splitting(worker)) == 2, what="both children to be at work")
    for key in short:
        await site.send(site.job(key))
    os.kill(_splitting(worker)[0], signal.SIGKILL)

    (retried,) = await worker.wait_for("job_retried")
    assert (retried["failure"], retried["code"]) == ("worker_lost", "child_died")
    assert retried["recording"].split("/")[1] in long
    done = await worker.wait_for("job_succeeded", count=4)
    again = {line["recording"]: line["receive_count"] for line in done if line["receive_count"] > 1}
    assert again == {retried["recording"]: 2}
    await wait_until(site.is_drained, what="all messages to be deleted")
    for key in long + short:
        await verified(site, key)
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)
    assert len(_children(worker)) == 2


async def test_an_idle_child_killed_costs_nothing(site: Site, start_worker: StartWorker, speech: Path) -> None:
    worker = await start_worker(site, STT_PROCESSES="2")
    await worker.wait_for("worker_started")
    await site.put_recordings([speech])
    idle = await wait_until(lambda: _if_count(_children(worker), 2), what="both children to be up")
    os.kill(idle[0], signal.SIGKILL)
    await wait_until(lambda: idle[0] not in _children(worker), what="the child to be gone")
    await site.send(site.job(speech.name))
    (done,) = await worker.wait_for("job_succeeded")
    assert done["receive_count"] == 1
    assert worker.events("job_retried") == []
    await wait_until(lambda: _if_count(_children(worker), 2), what="the child to be replaced")


async def test_a_child_that_hangs_is_killed_at_the_jobs_timeout_and_the_job_retried(
    site: Site, start_worker: StartWorker, a_quarter: Path
) -> None:
    worker = await start_worker(site, STT_PROCESSES="1", STT_JOB_TIMEOUT_S="6")
    await worker.wait_for("worker_started")
    await site.put_recordings([a_quarter])
    await site.send(site.job(a_quarter.name))
    (hung,) = await wait_until(lambda: _splitting(worker), what="the child to be at work")
    os.kill(hung, signal.SIGSTOP)
    (retried, *_) = await worker.wait_for("job_retried")
    assert retried["code"] in {"job_timeout", "child_hung"}
    (done,) = await worker.wait_for("job_succeeded")
    assert done["receive_count"] > 1
    assert hung not in _children(worker)
    await verified(site, a_quarter.name)


def _children(worker: Worker) -> list[int]:
    """The pool processes: children of the fork server, which is a child of the worker."""
    return [
        process.pid
        for helper in psutil.Process(worker.pid).children()
        for process in helper.children()
        if process.status() != psutil.STATUS_ZOMBIE
    ]


def _splitting(worker: Worker) -> list[int]:
    """Those of them that have a recording open."""
    return [pid for pid in _children(worker) if any("/job-" in file.path for file in psutil.Process(pid).open_files())]


def _if_count(pids: list[int], count: int) -> list[int]:
    return pids if len(pids) == count else []
