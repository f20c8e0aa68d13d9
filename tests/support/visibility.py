"""Visibility timeouts, timed by the queue's server."""

from tests.support.site import Site


async def has_come_back(clock: Site, times: int) -> bool:
    """Receive the only message of a queue without workers, and return whether it has become visible so often since.

    Call this repeatedly: each receive starts the next visibility timeout.
    """
    received = await clock.sqs.receive_message(
        QueueUrl=clock.services.queues.url, MessageSystemAttributeNames=["ApproximateReceiveCount"]
    )
    counts = [int(message["Attributes"]["ApproximateReceiveCount"]) for message in received.get("Messages", [])]
    return counts == [1 + times]
