"""`python -m stt_async.local.sqs PORT`: serve until killed. Queues and messages are in memory only."""

import argparse
import asyncio
import sys

import uvloop

from stt_async.local.loopback import HOST
from stt_async.local.sqs.model import Sqs
from stt_async.local.sqs.server import sqs_server


async def _serve(port: int) -> None:
    async with sqs_server(Sqs(), port=port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m stt_async.local.sqs", description="SQS on loopback, in memory")
    parser.add_argument("port", type=int)
    port = parser.parse_args().port
    try:
        uvloop.run(_serve(port))
    except OSError as error:
        sys.exit(f"the SQS server cannot listen on {HOST}:{port}: {error}")
