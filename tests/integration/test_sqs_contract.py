"""One contract of SQS for the local server and two emulators, which check each other.

A deviation of an emulator is a strict xfail: when the emulator fixes it, the test fails until the mark is deleted. The
modules of stt_async/local/sqs name the pages that the rules come from. Tests advance the local server's clock, and wait
for the emulators.
"""

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson
import pytest
import pytest_asyncio
from botocore.exceptions import ClientError

from stt_async.local.loopback import Keys, sqs_client
from tests.support.fakes.sqs import ClockedSqs, OpenSqs
from tests.support.site import Counts
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from types_aiobotocore_sqs import SQSClient
    from types_aiobotocore_sqs.type_defs import MessageTypeDef

MIB = 1_048_576
MAX_RECEIVES = 2


@dataclass(frozen=True)
class Service:
    """An SQS with a queue, whose visibility timeout is 60 s, and its dead-letter queue."""

    sqs: "SQSClient"
    local: ClockedSqs | None
    name: str
    url: str
    dead_letter_url: str

    def pass_time(self, seconds: float) -> None:
        """Advance the local server's clock; the emulators have real time."""
        if self.local is not None:
            self.local.advance(seconds)

    async def send(self, *bodies: str) -> None:
        for body in bodies:
            await self.sqs.send_message(QueueUrl=self.url, MessageBody=body)

    async def receive(self, url: str | None = None, **parameters: Any) -> "list[MessageTypeDef]":
        options: Any = {"MaxNumberOfMessages": 10, "MessageSystemAttributeNames": ["All"]} | parameters
        return (await self.sqs.receive_message(QueueUrl=url or self.url, **options)).get("Messages", [])

    async def receive_one(self, **parameters: Any) -> "MessageTypeDef":
        [message] = await self.receive(**parameters)
        return message

    async def receive_again(self) -> "MessageTypeDef":
        """Receive the only message again, after a visibility timeout of 1 s."""
        self.pass_time(1)
        return await self.receive_one(WaitTimeSeconds=20)

    async def change(self, message: "MessageTypeDef", timeout_s: int) -> None:
        await self.sqs.change_message_visibility(
            QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=timeout_s
        )

    async def delete(self, message: "MessageTypeDef") -> None:
        await self.sqs.delete_message(QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"])

    async def counts(self, url: str | None = None) -> Counts:
        answer = await self.sqs.get_queue_attributes(
            QueueUrl=url or self.url,
            AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"],
        )
        found = answer["Attributes"]
        return Counts(
            visible=int(found["ApproximateNumberOfMessages"]),
            in_flight=int(found["ApproximateNumberOfMessagesNotVisible"]),
        )


def contract(*, local: str = "local", **deviations: str) -> pytest.MarkDecorator:
    """Run a test on the local server, moto and ministack; `deviations` says why an emulator fails it."""
    services = [
        pytest.param(
            name,
            marks=pytest.mark.xfail(
                strict=True,
                reason=deviations[name],
                raises=(AssertionError, ClientError, KeyError, pytest.fail.Exception),
            )
            if name in deviations
            else (),
        )
        for name in (local, "moto", "ministack")
    ]
    return pytest.mark.parametrize("server", services, indirect=True)


HONOURING = "local-honouring-old-handles"


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> str:
    """The name of a local server, or the URL of an emulator. Not async: emulators belong to the session's loop."""
    if request.param == "moto":
        return str(request.getfixturevalue("moto_url"))
    if request.param == "ministack":
        return str(request.getfixturevalue("ministack"))
    return str(request.param)


@pytest_asyncio.fixture
async def service(server: str, open_sqs: OpenSqs) -> AsyncIterator[Service]:
    local = None
    if not server.startswith("http"):
        local = await open_sqs(stale="honoured" if server == HONOURING else "ignored")
    async with sqs_client(local.url if local else server, Keys.random()) as sqs:
        name = f"contract-{uuid.uuid4().hex}"
        dead_letter_url = (await sqs.create_queue(QueueName=f"{name}-dlq"))["QueueUrl"]
        described = await sqs.get_queue_attributes(QueueUrl=dead_letter_url, AttributeNames=["QueueArn"])
        policy = {"deadLetterTargetArn": described["Attributes"]["QueueArn"], "maxReceiveCount": MAX_RECEIVES}
        attributes: Any = {"VisibilityTimeout": "60", "RedrivePolicy": orjson.dumps(policy).decode()}
        url = (await sqs.create_queue(QueueName=name, Attributes=attributes))["QueueUrl"]
        yield Service(sqs, local, name, url, dead_letter_url)


@contextmanager
def refused(*codes: str) -> Iterator[None]:
    """SQS refuses a call with one of these codes."""
    with pytest.raises(ClientError) as error:
        yield
    assert error.value.response["Error"]["Code"] in codes


@contract()
async def test_queue_is_found_by_name_until_deleted(service: Service) -> None:
    found = await service.sqs.get_queue_url(QueueName=service.name)
    assert found["QueueUrl"] == service.url
    listed = await service.sqs.list_queues(QueueNamePrefix=service.name)
    assert sorted(listed["QueueUrls"]) == [service.url, service.dead_letter_url]
    await service.sqs.delete_queue(QueueUrl=service.url)
    with pytest.raises(service.sqs.exceptions.QueueDoesNotExist):
        await service.send("a")
    with refused("AWS.SimpleQueueService.NonExistentQueue"):
        await service.sqs.get_queue_url(QueueName=service.name)


@contract()
async def test_existing_queue_is_created_again_only_with_equal_attributes(service: Service) -> None:
    again = await service.sqs.create_queue(QueueName=service.name, Attributes={"VisibilityTimeout": "60"})
    assert again["QueueUrl"] == service.url
    with pytest.raises(service.sqs.exceptions.QueueNameExists):
        await service.sqs.create_queue(QueueName=service.name, Attributes={"VisibilityTimeout": "61"})


@contract()
async def test_queue_attributes_have_defaults_and_can_change(service: Service) -> None:
    async def described(*names: Any) -> Any:
        answer = await service.sqs.get_queue_attributes(QueueUrl=service.url, AttributeNames=names)
        return answer["Attributes"]

    names = ("VisibilityTimeout", "DelaySeconds", "ReceiveMessageWaitTimeSeconds", "MessageRetentionPeriod")
    assert await described(*names) == dict(zip(names, ("60", "0", "0", "345600"), strict=True))
    await service.sqs.set_queue_attributes(QueueUrl=service.url, Attributes={"VisibilityTimeout": "90"})
    assert await described("VisibilityTimeout") == {"VisibilityTimeout": "90"}
    everything = await described("All")
    assert everything["VisibilityTimeout"] == "90"
    assert orjson.loads(everything["RedrivePolicy"])["maxReceiveCount"] == MAX_RECEIVES
    assert everything["QueueArn"].endswith(f":{service.name}")


@contract(moto="accepts them")
async def test_queue_attribute_out_of_range_is_refused(service: Service) -> None:
    values: dict[Any, str] = {
        "VisibilityTimeout": "43201",
        "DelaySeconds": "901",
        "ReceiveMessageWaitTimeSeconds": "21",
        "MessageRetentionPeriod": "59",
        "MaximumMessageSize": "1048577",
    }
    for attribute, value in values.items():
        with refused("InvalidAttributeValue"):
            await service.sqs.set_queue_attributes(QueueUrl=service.url, Attributes={attribute: value})


@contract(moto="accepts it", ministack="accepts it")
async def test_unknown_queue_attribute_is_refused(service: Service) -> None:
    with refused("InvalidAttributeName"):
        await service.sqs.set_queue_attributes(QueueUrl=service.url, Attributes={"Colour": "red"})  # type: ignore[dict-item]


@contract()
async def test_message_is_received_as_sent(service: Service) -> None:
    sent = await service.sqs.send_message(
        QueueUrl=service.url,
        MessageBody='{"key": "བོད་ +%2F"}\n',
        MessageAttributes={
            "code": {"DataType": "String", "StringValue": "ཨ"},
            "other": {"DataType": "String", "StringValue": "o"},
        },
    )
    message = await service.receive_one(MessageAttributeNames=["code"])
    assert message["MessageId"] == sent["MessageId"]
    assert message["Body"] == '{"key": "བོད་ +%2F"}\n'
    assert sent["MD5OfMessageBody"] == message["MD5OfBody"] == hashlib.md5(message["Body"].encode()).hexdigest()  # noqa: S324
    assert set(message["MessageAttributes"]) == {"code"}
    assert message["MessageAttributes"]["code"]["StringValue"] == "ཨ"
    assert message["Attributes"]["ApproximateReceiveCount"] == "1"
    assert int(message["Attributes"]["SentTimestamp"]) <= int(message["Attributes"]["ApproximateFirstReceiveTimestamp"])


@contract()
async def test_received_message_is_hidden_until_its_timeout_ends(service: Service) -> None:
    await service.send("a")
    first = await service.receive_one(VisibilityTimeout=1)
    second = await service.receive_again()
    assert second["MessageId"] == first["MessageId"]
    assert second["ReceiptHandle"] != first["ReceiptHandle"]
    assert second["Attributes"]["ApproximateReceiveCount"] == "2"
    for unchanged in ("SentTimestamp", "ApproximateFirstReceiveTimestamp"):
        assert second["Attributes"][unchanged] == first["Attributes"][unchanged]
    assert await service.receive() == [], "the queue's own timeout is 60 s"
    assert await service.counts() == Counts(visible=0, in_flight=1)


@contract()
async def test_change_sets_timeout_from_now_on(service: Service) -> None:
    await service.send("extended", "unchanged", "released")
    by_body = {each["Body"]: each for each in await service.receive(VisibilityTimeout=5)}
    await service.change(by_body["extended"], 60)
    await service.change(by_body["released"], 0)
    assert [each["Body"] for each in await service.receive()] == ["released"]
    service.pass_time(5)
    assert [each["Body"] for each in await service.receive(WaitTimeSeconds=20)] == ["unchanged"]
    assert await service.counts() == Counts(visible=0, in_flight=3)


@contract(ministack="the second delete is ReceiptHandleIsInvalid")
async def test_deleted_message_never_returns_and_second_delete_succeeds(service: Service) -> None:
    await service.send("a")
    message = await service.receive_one(VisibilityTimeout=1)
    await service.delete(message)
    await service.delete(message)
    service.pass_time(10)
    assert await service.receive(WaitTimeSeconds=2 if service.local is None else 0) == []
    assert await service.counts() == Counts(visible=0, in_flight=0)


@contract()
async def test_last_handle_deletes_message_that_is_visible_again(service: Service) -> None:
    await service.send("a")
    message = await service.receive_one(VisibilityTimeout=0)
    await service.delete(message)
    assert await service.receive() == []


@contract(moto="ReceiptHandleIsInvalid", ministack="ReceiptHandleIsInvalid")
async def test_change_of_deleted_message_is_refused(service: Service) -> None:
    await service.send("a")
    message = await service.receive_one()
    await service.delete(message)
    with refused("InvalidParameterValue"):
        await service.change(message, 60)


@contract(moto="deletes the message", ministack="ReceiptHandleIsInvalid")
async def test_old_handle_deletes_nothing(service: Service) -> None:
    await service.send("a")
    old = await service.receive_one(VisibilityTimeout=1)
    new = await service.receive_again()
    await service.delete(old)
    assert await service.counts() == Counts(visible=0, in_flight=1)
    await service.delete(new)
    assert await service.counts() == Counts(visible=0, in_flight=0)


@contract(moto="changes the timeout", ministack="ReceiptHandleIsInvalid")
async def test_change_with_old_handle_is_refused(service: Service) -> None:
    await service.send("a")
    old = await service.receive_one(VisibilityTimeout=1)
    await service.receive_again()
    with refused("InvalidParameterValue"):
        await service.change(old, 0)
    assert await service.counts() == Counts(visible=0, in_flight=1)


@contract(local=HONOURING, ministack="ReceiptHandleIsInvalid")
async def test_honoured_old_handle_works_like_the_newest(service: Service) -> None:
    await service.send("a")
    old = await service.receive_one(VisibilityTimeout=1)
    await service.receive_again()
    await service.change(old, 30)
    await service.delete(old)
    assert await service.counts() == Counts(visible=0, in_flight=0)


@contract(moto="hides it again", ministack="hides it again")
async def test_change_of_message_that_is_visible_again_is_refused(service: Service) -> None:
    await service.send("a")
    message = await service.receive_one(VisibilityTimeout=1)
    service.pass_time(1)

    async def visible() -> bool:
        return (await service.counts()).visible == 1

    await wait_until(visible, what="the message to be visible")
    with pytest.raises(service.sqs.exceptions.MessageNotInflight):
        await service.change(message, 60)
    await service.receive_one()


@contract()
async def test_malformed_handle_is_refused(service: Service) -> None:
    with pytest.raises(service.sqs.exceptions.ReceiptHandleIsInvalid):
        await service.sqs.delete_message(QueueUrl=service.url, ReceiptHandle="rubbish")
    with pytest.raises(service.sqs.exceptions.ReceiptHandleIsInvalid):
        await service.sqs.change_message_visibility(QueueUrl=service.url, ReceiptHandle="rubbish", VisibilityTimeout=1)


@contract(ministack="no limit")
async def test_one_receive_lasts_at_most_12_hours(service: Service) -> None:
    await service.send("a")
    message = await service.receive_one()
    with refused("InvalidParameterValue"):
        await service.change(message, 43_200)
    await service.change(message, 43_100)


@contract()
async def test_message_is_redriven_after_max_receive_count(service: Service) -> None:
    await service.send("a")
    for count in range(1, MAX_RECEIVES + 1):
        message = await service.receive_one(VisibilityTimeout=0)
        assert message["Attributes"]["ApproximateReceiveCount"] == str(count)
        assert await service.counts(service.dead_letter_url) == Counts(visible=0, in_flight=0)
    assert await service.receive() == []
    assert await service.counts() == Counts(visible=0, in_flight=0)
    [dead] = await service.receive(service.dead_letter_url)
    assert dead["MessageId"] == message["MessageId"]
    assert dead["Attributes"]["SentTimestamp"] == message["Attributes"]["SentTimestamp"]


@contract(moto="no DeadLetterQueueSourceArn")
async def test_redriven_message_names_its_queue_and_keeps_its_receive_count(service: Service) -> None:
    await service.send("a")
    while await service.receive(VisibilityTimeout=0):
        pass
    [dead] = await service.receive(service.dead_letter_url)
    assert dead["Attributes"]["DeadLetterQueueSourceArn"].endswith(f":{service.name}")
    assert dead["Attributes"]["ApproximateReceiveCount"] == str(MAX_RECEIVES + 1)


@contract()
async def test_poll_returns_when_a_message_arrives(service: Service) -> None:
    async with asyncio.TaskGroup() as polling:
        polls = [polling.create_task(service.receive(WaitTimeSeconds=20, MaxNumberOfMessages=1)) for _ in range(3)]
        started_s = time.monotonic()
        await service.send("a", "b", "c")
    assert time.monotonic() - started_s < 15
    assert sorted(each["Body"] for poll in polls for each in poll.result()) == ["a", "b", "c"]


@contract()
async def test_poll_returns_nothing_after_its_wait_time(service: Service) -> None:
    started_s = time.monotonic()
    assert await service.receive(WaitTimeSeconds=1) == []
    assert time.monotonic() - started_s > 0.9


@contract()
async def test_each_message_goes_to_one_of_ten_concurrent_receives(service: Service) -> None:
    await service.send(*"abcde")
    answers = await asyncio.gather(*(service.receive(MaxNumberOfMessages=1) for _ in range(10)))
    assert sorted(message["Body"] for answer in answers for message in answer) == list("abcde")


@contract()
async def test_receive_of_0_or_11_messages_is_refused(service: Service) -> None:
    for number in (0, 11):
        with refused("InvalidParameterValue"):
            await service.receive(MaxNumberOfMessages=number)


@contract(ministack="accepts it")
async def test_wait_time_over_20_s_is_refused(service: Service) -> None:
    await service.send("a")
    with refused("InvalidParameterValue"):
        await service.receive(WaitTimeSeconds=21)


@contract(ministack="accepts it")
async def test_visibility_timeout_over_12_hours_is_refused(service: Service) -> None:
    await service.send("a")
    with refused("InvalidParameterValue"):
        await service.receive(VisibilityTimeout=43_201)
    message = await service.receive_one()
    with refused("InvalidParameterValue"):
        await service.change(message, 43_201)


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
@contract()
async def test_body_over_1_mib_is_refused(service: Service) -> None:
    await service.send("x" * MIB)
    with refused("InvalidParameterValue"):
        await service.send("x" * (MIB + 1))


@contract(moto="accepts it")
async def test_empty_body_is_refused(service: Service) -> None:
    with refused("MissingParameter", "InvalidParameterValue"):
        await service.send("")


@contract(moto="accepts it")
async def test_body_with_a_character_that_xml_forbids_is_refused(service: Service) -> None:
    with refused("InvalidMessageContents"):
        await service.send("\x00")


@contract(moto="accepts it", ministack="accepts it")
async def test_empty_message_attribute_is_refused(service: Service) -> None:
    with refused("InvalidParameterValue"):
        await service.sqs.send_message(
            QueueUrl=service.url,
            MessageBody="a",
            MessageAttributes={"reason": {"DataType": "String", "StringValue": ""}},
        )


@contract()
async def test_delayed_message_is_hidden_until_its_delay_ends(service: Service) -> None:
    await service.sqs.send_message(QueueUrl=service.url, MessageBody="a", DelaySeconds=5)
    delayed: Final = "ApproximateNumberOfMessagesDelayed"
    answer = await service.sqs.get_queue_attributes(QueueUrl=service.url, AttributeNames=[delayed])
    assert answer["Attributes"][delayed] == "1"
    assert await service.receive() == []
    service.pass_time(5)
    await service.receive_one(WaitTimeSeconds=20)


@contract()
async def test_batches_send_change_and_delete_ten_messages(service: Service) -> None:
    sent = await service.sqs.send_message_batch(
        QueueUrl=service.url, Entries=[{"Id": str(n), "MessageBody": f"body {n}"} for n in range(10)]
    )
    assert [each["Id"] for each in sent["Successful"]] == [str(n) for n in range(10)]
    messages = await service.receive(VisibilityTimeout=0)
    assert len(messages) == 10
    handles = [each["ReceiptHandle"] for each in await service.receive()]
    changed = await service.sqs.change_message_visibility_batch(
        QueueUrl=service.url,
        Entries=[{"Id": str(n), "ReceiptHandle": each, "VisibilityTimeout": 60} for n, each in enumerate(handles)],
    )
    assert len(changed["Successful"]) == 10
    deleted = await service.sqs.delete_message_batch(
        QueueUrl=service.url, Entries=[{"Id": str(n), "ReceiptHandle": each} for n, each in enumerate(handles)]
    )
    assert len(deleted["Successful"]) == 10
    assert await service.counts() == Counts(visible=0, in_flight=0)


@contract()
async def test_invalid_batch_is_refused_as_a_whole(service: Service) -> None:
    batches: list[tuple[list[str], str]] = [
        ([str(n) for n in range(11)], "TooManyEntriesInBatchRequest"),
        (["a", "a"], "BatchEntryIdsNotDistinct"),
        (["a b"], "InvalidBatchEntryId"),
        ([], "EmptyBatchRequest"),
    ]
    for ids, code in batches:
        with refused(f"AWS.SimpleQueueService.{code}"):
            await service.sqs.send_message_batch(
                QueueUrl=service.url, Entries=[{"Id": each, "MessageBody": "a"} for each in ids]
            )
    assert await service.counts() == Counts(visible=0, in_flight=0)


@contract()
async def test_failed_batch_entry_does_not_affect_the_others(service: Service) -> None:
    await service.send("a")
    message = await service.receive_one()
    changed = await service.sqs.change_message_visibility_batch(
        QueueUrl=service.url,
        Entries=[
            {"Id": "good", "ReceiptHandle": message["ReceiptHandle"], "VisibilityTimeout": 60},
            {"Id": "bad", "ReceiptHandle": "rubbish", "VisibilityTimeout": 60},
        ],
    )
    deleted = await service.sqs.delete_message_batch(
        QueueUrl=service.url,
        Entries=[
            {"Id": "bad", "ReceiptHandle": "rubbish"},
            {"Id": "good", "ReceiptHandle": message["ReceiptHandle"]},
        ],
    )
    for answer in (changed, deleted):
        assert [each["Id"] for each in answer["Successful"]] == ["good"]
        [failed] = answer["Failed"]
        assert (failed["Id"], failed["Code"], failed["SenderFault"]) == ("bad", "ReceiptHandleIsInvalid", True)
    assert await service.counts() == Counts(visible=0, in_flight=0)
