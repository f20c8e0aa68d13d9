"""Before the first receive: a worker that cannot start says why, one that is told to stop meanwhile does."""

import signal

from tests.support.commands import StartWorker
from tests.support.proxy import OpenProxy
from tests.support.site import Site


async def test_worker_told_to_stop_while_it_looks_at_its_services_stops_at_once(
    site: Site, start_worker: StartWorker, open_proxy: OpenProxy
) -> None:
    proxy = await open_proxy(site.services.servers.objects.url)
    proxy.hold("down")
    worker = await start_worker(site, STT_MINIO_ENDPOINT=proxy.endpoint)
    await proxy.holding.wait()
    worker.signal(signal.SIGTERM)
    assert await worker.wait(timeout_s=15) == 0
    assert worker.events("stop_requested")
    assert not worker.events("worker_started")


async def test_worker_whose_source_refuses_it_receives_nothing(site: Site, start_worker: StartWorker) -> None:
    await site.send("a message that must not be received")
    worker = await start_worker(site, STT_MINIO_SECRET_KEY="wrong")  # noqa: S106 - wrong on purpose
    assert await worker.wait() == 3
    assert (await site.counts()).visible == 1
    (letter,) = await site.take_messages()
    assert letter.receive_count == 1
