"""Time as the queue's emulator counts it: visibility timeouts that pass."""

from tests.support.site import Site


async def has_come_back(clock: Site, times: int) -> bool:
    """Whether the one message of a queue that no worker knows has become visible so often, after its first receive.

    Receives it whenever it is visible.
    """
    received = await clock.sqs.receive_message(
        QueueUrl=clock.services.queues.url, MessageSystemAttributeNames=["ApproximateReceiveCount"]
    )
    counts = [int(message["Attributes"]["ApproximateReceiveCount"]) for message in received.get("Messages", [])]
    return counts == [1 + times]
