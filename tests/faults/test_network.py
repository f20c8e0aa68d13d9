"""The network at its worst: servers that go away and come back, connections cut, downloads that take for ever."""

from pathlib import Path

import pytest

from tests.support.commands import StartWorker
from tests.support.evidence.outputs import verified
from tests.support.faults.proxy import OpenProxy
from tests.support.outage import see_it_pause, see_it_recover
from tests.support.site import Counts, OpenSite, Site
from tests.support.stages import KEY, HoldJob
from tests.support.visibility import has_come_back
from tests.support.waiting import wait_until

_SHORT_RETRIES = {"STT_RETRY_TIMEOUT_S": "1", "STT_RETRY_MAX_WAIT_S": "0.2"}


@pytest.mark.parametrize("variable", ["STT_MINIO_ENDPOINT", "AWS_ENDPOINT_URL_S3"])
async def test_a_server_that_goes_away_opens_the_breaker_and_no_job_is_lost_or_spent(
    site: Site, start_worker: StartWorker, open_proxy: OpenProxy, speech: Path, variable: str
) -> None:
    proxy = await open_proxy(site.services.servers.objects.url)
    address = proxy.url if variable.startswith("AWS") else proxy.endpoint
    worker = await start_worker(site, **{variable: address}, **_SHORT_RETRIES)
    keys = [f"{number}.wav" for number in range(6)]
    await site.put_recordings(dict.fromkeys(keys, speech))
    await site.send(site.job(keys[0]))
    await worker.wait_for("job_succeeded")

    await proxy.refuse()
    for key in keys[1:3]:
        await site.send(site.job(key))
    await worker.wait_for("breaker_opened")
    late = keys[3:]
    await see_it_pause(site, worker, late)
    await proxy.accept()
    await see_it_recover(site, worker, late=late, jobs=len(keys))


async def test_the_queue_goes_away_before_a_message_is_deleted_and_its_job_stays_done_once(
    open_site: OpenSite, hold_job: HoldJob, open_proxy: OpenProxy, speech: Path
) -> None:
    site = await open_site(visibility_timeout_s=20)  # the job ends within it, on a busy machine too
    proxy = await open_proxy(site.services.servers.queues_url)
    held = await hold_job(site, "download", AWS_ENDPOINT_URL_SQS=proxy.url, **_SHORT_RETRIES)
    await proxy.refuse()
    held.let_go()
    await held.worker.wait_for("job_succeeded")
    await held.worker.wait_for("message_unsettled")
    standing = await verified(site, KEY)
    await held.worker.wait_for("breaker_opened")
    await site.put_recordings({"next.wav": speech})
    await site.send(site.job("next.wav"))
    await proxy.accept()
    await held.worker.wait_for("breaker_closed")
    done = await held.worker.wait_for("job_succeeded", count=2)
    assert done[1]["receive_count"] == 1
    (skipped,) = await held.worker.wait_for("job_skipped")
    assert skipped["receive_count"] == 2
    await wait_until(site.is_drained, what="both messages to be deleted")
    assert await verified(site, KEY) == standing
    await verified(site, "next.wav")
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)


@pytest.mark.parametrize("source_type", ["minio", "s3"])
async def test_a_download_cut_in_the_middle_is_done_again_and_comes_out_whole(
    site: Site, start_worker: StartWorker, open_proxy: OpenProxy, speech: Path, source_type: str
) -> None:
    proxy = await open_proxy(site.services.servers.objects.url)
    worker = await start_worker(site, STT_MINIO_ENDPOINT=proxy.endpoint, AWS_ENDPOINT_URL_S3=proxy.url)
    await worker.wait_for("worker_started")
    await site.put_recordings([speech])
    proxy.cut("down", after=speech.stat().st_size // 2)
    await site.send(site.job(speech.name, source_type=source_type))
    (done,) = await worker.wait_for("job_succeeded")
    assert proxy.cut_is_done
    assert done["receive_count"] == 1
    assert worker.events("call_retried")
    assert worker.events("job_crashed") == []
    manifest = await verified(site, speech.name)
    assert manifest["recording"]["source_bytes"] == speech.stat().st_size
    assert manifest["recording"]["truncated"] is False


async def test_an_upload_cut_in_the_middle_is_done_again(
    site: Site, start_worker: StartWorker, open_proxy: OpenProxy, five_minutes: Path
) -> None:
    proxy = await open_proxy(site.services.servers.objects.url)
    parts = {"STT_LAYOUT": "tar", "STT_FORMAT": "wav", "STT_MULTIPART_CHUNKSIZE_BYTES": str(5 * 1024**2)}
    worker = await start_worker(site, AWS_ENDPOINT_URL_S3=proxy.url, **parts)
    await worker.wait_for("worker_started")
    await site.put_recordings({KEY: five_minutes})
    proxy.cut("up", after=6_000_000)
    await site.send(site.job(KEY))
    (done,) = await worker.wait_for("job_succeeded")
    assert proxy.cut_is_done
    assert done["receive_count"] == 1
    await verified(site, KEY)
    put = {request.split("?")[1].split("&")[0] for request in proxy.requests if "partNumber=" in request}
    assert len(put) > 1
    assert await site.open_uploads() == []


async def test_a_job_that_outlasts_several_visibility_timeouts_is_not_delivered_twice(
    open_site: OpenSite, hold_job: HoldJob
) -> None:
    site = await open_site(visibility_timeout_s=3)
    clock = await open_site(visibility_timeout_s=3)
    held = await hold_job(site, "download")
    await clock.send("a message that nobody keeps")
    await wait_until(lambda: has_come_back(clock, 3), what="three visibility timeouts to pass")
    assert await site.counts() == Counts(visible=0, in_flight=1)
    held.let_go()
    (done,) = await held.worker.wait_for("job_succeeded")
    assert done["receive_count"] == 1
    await wait_until(site.is_drained, what="the message to be deleted")
    await verified(site, KEY)
