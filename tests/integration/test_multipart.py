"""A tar larger than a part goes up in several parts at once, and is one object."""

from pathlib import Path

from tests.support.commands import StartWorker
from tests.support.outputs import verified
from tests.support.proxy import OpenProxy
from tests.support.site import Site

_PART_BYTES = 5 * 1024**2


async def test_a_tar_larger_than_a_part_goes_up_in_parts(
    site: Site, start_worker: StartWorker, open_proxy: OpenProxy, a_quarter: Path, speech: Path
) -> None:
    s3 = await open_proxy(site.services.servers.objects.url)
    await site.put_recordings({"long.wav": a_quarter, "short.wav": speech})
    for key in ("long.wav", "short.wav"):
        await site.send(site.job(key))
    worker = await start_worker(
        site,
        "--once",
        STT_LAYOUT="tar",
        STT_FORMAT="wav",
        STT_MULTIPART_CHUNKSIZE_BYTES=str(_PART_BYTES),
        AWS_ENDPOINT_URL_S3=s3.url,
    )
    assert await worker.wait() == 0

    long = await verified(site, "long.wav")
    puts = [request for request in s3.requests if request.startswith("PUT ") and "/long.wav/segments-" in request]
    parts = -(-long["archive"]["bytes"] // _PART_BYTES)
    assert parts > 2
    assert len(puts) == parts
    assert {f"partNumber={number}" for number in range(1, parts + 1)} == {
        word for request in puts for word in request.split("?")[1].split("&") if word.startswith("partNumber=")
    }
    await verified(site, "short.wav")
    (put,) = (request for request in s3.requests if request.startswith("PUT ") and "/short.wav/segments-" in request)
    assert "partNumber" not in put
    assert await site.open_uploads() == []
