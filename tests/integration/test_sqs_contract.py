"""One contract of SQS for our server and two emulators, so that ours is known to be right.

A deviation of an emulator is a strict xfail: once it is fixed, its line here has to go.

The modules of stt_async/local/sqs name the pages that the rules come from. Our server's clock is advanced; the others
are waited for, by a condition.
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
    """An SQS with one queue on it, whose visibility timeout is 60 s, and its dead-letter queue."""

    sqs: "SQSClient"
    ours: ClockedSqs | None
    name: str
    url: str
    dead_letter_url: str

    def pass_time(self, seconds: float) -> None:
        """Advance our server's clock; the time of the others passes by itself."""
        if self.ours is not None:
            self.ours.advance(seconds)

    async def send(self, *bodies: str) -> None:
        for body in bodies:
            await self.sqs.send_message(QueueUrl=self.url, MessageBody=body)

    async def receive(self, url: str | None = None, **parameters: Any) -> "list[MessageTypeDef]":
        asked: Any = {"MaxNumberOfMessages": 10, "MessageSystemAttributeNames": ["All"]} | parameters
        return (await self.sqs.receive_message(QueueUrl=url or self.url, **asked)).get("Messages", [])

    async def receive_one(self, **parameters: Any) -> "MessageTypeDef":
        [message] = await self.receive(**parameters)
        return message

    async def come_back(self) -> "MessageTypeDef":
        """The one message, received again after the timeout of a second that it was received with."""
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


def contract(*, ours: str = "ours", **deviations: str) -> pytest.MarkDecorator:
    """Run a test on ours (with or without old handles), moto and ministack; `deviations` say why it fails on one."""
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
        for name in (ours, "moto", "ministack")
    ]
    return pytest.mark.parametrize("server", services, indirect=True)


HONOURED = "ours-honouring-old-handles"


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> str:
    """The name of ours, the URL of an emulator. Not async: it asks for fixtures of another loop."""
    if request.param == "moto":
        return str(request.getfixturevalue("moto_url"))
    if request.param == "ministack":
        return str(request.getfixturevalue("ministack"))
    return str(request.param)


@pytest_asyncio.fixture
async def service(server: str, open_sqs: OpenSqs) -> AsyncIterator[Service]:
    ours = None
    if not server.startswith("http"):
        ours = await open_sqs(stale="honoured" if server == HONOURED else "ignored")
    async with sqs_client(ours.url if ours else server, Keys.random()) as sqs:
        name = f"contract-{uuid.uuid4().hex}"
        dead_letter_url = (await sqs.create_queue(QueueName=f"{name}-dlq"))["QueueUrl"]
        told = await sqs.get_queue_attributes(QueueUrl=dead_letter_url, AttributeNames=["QueueArn"])
        policy = {"deadLetterTargetArn": told["Attributes"]["QueueArn"], "maxReceiveCount": MAX_RECEIVES}
        attributes: Any = {"VisibilityTimeout": "60", "RedrivePolicy": orjson.dumps(policy).decode()}
        url = (await sqs.create_queue(QueueName=name, Attributes=attributes))["QueueUrl"]
        yield Service(sqs, ours, name, url, dead_letter_url)


@contextmanager
def refused(*codes: str) -> Iterator[None]:
    """SQS answers with one of these codes."""
    with pytest.raises(ClientError) as error:
        yield
    assert error.value.response["Error"]["Code"] in codes


@contract()
async def test_a_queue_is_found_by_its_name_until_it_is_deleted(service: Service) -> None:
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
async def test_a_queue_is_created_once_more_only_as_it_was(service: Service) -> None:
    again = await service.sqs.create_queue(QueueName=service.name, Attributes={"VisibilityTimeout": "60"})
    assert again["QueueUrl"] == service.url
    with pytest.raises(service.sqs.exceptions.QueueNameExists):
        await service.sqs.create_queue(QueueName=service.name, Attributes={"VisibilityTimeout": "61"})


@contract()
async def test_attributes_have_defaults_and_can_be_changed(service: Service) -> None:
    async def told(*names: Any) -> Any:
        answer = await service.sqs.get_queue_attributes(QueueUrl=service.url, AttributeNames=names)
        return answer["Attributes"]

    asked = ("VisibilityTimeout", "DelaySeconds", "ReceiveMessageWaitTimeSeconds", "MessageRetentionPeriod")
    assert await told(*asked) == dict(zip(asked, ("60", "0", "0", "345600"), strict=True))
    await service.sqs.set_queue_attributes(QueueUrl=service.url, Attributes={"VisibilityTimeout": "90"})
    assert await told("VisibilityTimeout") == {"VisibilityTimeout": "90"}
    everything = await told("All")
    assert everything["VisibilityTimeout"] == "90"
    assert orjson.loads(everything["RedrivePolicy"])["maxReceiveCount"] == MAX_RECEIVES
    assert everything["QueueArn"].endswith(f":{service.name}")


@contract(moto="accepts them")
async def test_attributes_out_of_range_are_refused(service: Service) -> None:
    too_much: dict[Any, str] = {
        "VisibilityTimeout": "43201",
        "DelaySeconds": "901",
        "ReceiveMessageWaitTimeSeconds": "21",
        "MessageRetentionPeriod": "59",
        "MaximumMessageSize": "1048577",
    }
    for attribute, value in too_much.items():
        with refused("InvalidAttributeValue"):
            await service.sqs.set_queue_attributes(QueueUrl=service.url, Attributes={attribute: value})


@contract(moto="accepts it", ministack="accepts it")
async def test_an_unknown_attribute_is_refused(service: Service) -> None:
    with refused("InvalidAttributeName"):
        await service.sqs.set_queue_attributes(QueueUrl=service.url, Attributes={"Colour": "red"})  # type: ignore[dict-item]


@contract()
async def test_a_message_comes_as_it_was_sent(service: Service) -> None:
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
async def test_a_message_received_is_hidden_until_its_timeout_is_over(service: Service) -> None:
    await service.send("a")
    first = await service.receive_one(VisibilityTimeout=1)
    second = await service.come_back()
    assert second["MessageId"] == first["MessageId"]
    assert second["ReceiptHandle"] != first["ReceiptHandle"]
    assert second["Attributes"]["ApproximateReceiveCount"] == "2"
    for unchanged in ("SentTimestamp", "ApproximateFirstReceiveTimestamp"):
        assert second["Attributes"][unchanged] == first["Attributes"][unchanged]
    assert await service.receive() == [], "without another timeout that of the queue counts, which is long"
    assert await service.counts() == Counts(visible=0, in_flight=1)


@contract()
async def test_a_change_sets_the_timeout_from_now_on(service: Service) -> None:
    await service.send("longer", "left", "released")
    by_body = {each["Body"]: each for each in await service.receive(VisibilityTimeout=5)}
    await service.change(by_body["longer"], 60)
    await service.change(by_body["released"], 0)
    assert [each["Body"] for each in await service.receive()] == ["released"]
    service.pass_time(5)
    assert [each["Body"] for each in await service.receive(WaitTimeSeconds=20)] == ["left"]
    assert await service.counts() == Counts(visible=0, in_flight=3)


@contract(ministack="the second delete is ReceiptHandleIsInvalid")
async def test_a_deleted_message_never_comes_back_and_is_deleted_only_once(service: Service) -> None:
    await service.send("a")
    message = await service.receive_one(VisibilityTimeout=1)
    await service.delete(message)
    await service.delete(message)
    service.pass_time(10)
    assert await service.receive(WaitTimeSeconds=2 if service.ours is None else 0) == []
    assert await service.counts() == Counts(visible=0, in_flight=0)


@contract()
async def test_a_message_that_is_visible_again_can_still_be_deleted_by_who_had_it_last(service: Service) -> None:
    await service.send("a")
    message = await service.receive_one(VisibilityTimeout=0)
    await service.delete(message)
    assert await service.receive() == []


@contract(moto="ReceiptHandleIsInvalid", ministack="ReceiptHandleIsInvalid")
async def test_the_handle_of_a_deleted_message_changes_nothing(service: Service) -> None:
    await service.send("a")
    message = await service.receive_one()
    await service.delete(message)
    with refused("InvalidParameterValue"):
        await service.change(message, 60)


@contract(moto="it deletes the message", ministack="ReceiptHandleIsInvalid")
async def test_an_old_handle_deletes_nothing(service: Service) -> None:
    await service.send("a")
    old = await service.receive_one(VisibilityTimeout=1)
    new = await service.come_back()
    await service.delete(old)
    assert await service.counts() == Counts(visible=0, in_flight=1)
    await service.delete(new)
    assert await service.counts() == Counts(visible=0, in_flight=0)


@contract(moto="it changes the timeout", ministack="ReceiptHandleIsInvalid")
async def test_an_old_handle_changes_nothing(service: Service) -> None:
    await service.send("a")
    old = await service.receive_one(VisibilityTimeout=1)
    await service.come_back()
    with refused("InvalidParameterValue"):
        await service.change(old, 0)
    assert await service.counts() == Counts(visible=0, in_flight=1)


@contract(ours=HONOURED, ministack="ReceiptHandleIsInvalid")
async def test_or_an_old_handle_does_what_the_newest_can(service: Service) -> None:
    await service.send("a")
    old = await service.receive_one(VisibilityTimeout=1)
    await service.come_back()
    await service.change(old, 30)
    await service.delete(old)
    assert await service.counts() == Counts(visible=0, in_flight=0)


@contract(moto="hides it again", ministack="hides it again")
async def test_a_message_that_is_visible_again_is_not_in_flight(service: Service) -> None:
    await service.send("a")
    message = await service.receive_one(VisibilityTimeout=1)
    service.pass_time(1)

    async def visible() -> bool:
        return (await service.counts()).visible == 1

    await wait_until(visible, what="the timeout to be over")
    with pytest.raises(service.sqs.exceptions.MessageNotInflight):
        await service.change(message, 60)
    await service.receive_one()


@contract()
async def test_what_never_was_a_handle_is_refused(service: Service) -> None:
    with pytest.raises(service.sqs.exceptions.ReceiptHandleIsInvalid):
        await service.sqs.delete_message(QueueUrl=service.url, ReceiptHandle="rubbish")
    with pytest.raises(service.sqs.exceptions.ReceiptHandleIsInvalid):
        await service.sqs.change_message_visibility(QueueUrl=service.url, ReceiptHandle="rubbish", VisibilityTimeout=1)


@contract(ministack="no limit")
async def test_one_receive_lasts_for_12_hours_at_most(service: Service) -> None:
    await service.send("a")
    message = await service.receive_one()
    with refused("InvalidParameterValue"):
        await service.change(message, 43_200)
    await service.change(message, 43_100)


@contract()
async def test_a_message_received_too_often_goes_to_the_dead_letter_queue(service: Service) -> None:
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
async def test_a_dead_letter_tells_its_queue_and_keeps_its_count(service: Service) -> None:
    await service.send("a")
    while await service.receive(VisibilityTimeout=0):
        pass
    [dead] = await service.receive(service.dead_letter_url)
    assert dead["Attributes"]["DeadLetterQueueSourceArn"].endswith(f":{service.name}")
    assert dead["Attributes"]["ApproximateReceiveCount"] == str(MAX_RECEIVES + 1)


@contract()
async def test_a_poll_wakes_when_a_message_arrives(service: Service) -> None:
    async with asyncio.TaskGroup() as polling:
        polls = [polling.create_task(service.receive(WaitTimeSeconds=20, MaxNumberOfMessages=1)) for _ in range(3)]
        started_s = time.monotonic()
        await service.send("a", "b", "c")
    assert time.monotonic() - started_s < 15
    assert sorted(each["Body"] for poll in polls for each in poll.result()) == ["a", "b", "c"]


@contract()
async def test_a_poll_ends_with_nothing_after_its_time(service: Service) -> None:
    started_s = time.monotonic()
    assert await service.receive(WaitTimeSeconds=1) == []
    assert time.monotonic() - started_s > 0.9


@contract()
async def test_each_message_goes_to_one_of_many_who_ask_at_once(service: Service) -> None:
    await service.send(*"abcde")
    answers = await asyncio.gather(*(service.receive(MaxNumberOfMessages=1) for _ in range(10)))
    assert sorted(message["Body"] for answer in answers for message in answer) == list("abcde")


@contract()
async def test_a_receive_of_none_or_more_than_ten_is_refused(service: Service) -> None:
    for number in (0, 11):
        with refused("InvalidParameterValue"):
            await service.receive(MaxNumberOfMessages=number)


@contract(ministack="accepts it")
async def test_a_poll_of_more_than_20_s_is_refused(service: Service) -> None:
    await service.send("a")
    with refused("InvalidParameterValue"):
        await service.receive(WaitTimeSeconds=21)


@contract(ministack="accepts it")
async def test_a_timeout_of_more_than_12_hours_is_refused(service: Service) -> None:
    await service.send("a")
    with refused("InvalidParameterValue"):
        await service.receive(VisibilityTimeout=43_201)
    message = await service.receive_one()
    with refused("InvalidParameterValue"):
        await service.change(message, 43_201)


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
@contract()
async def test_a_body_may_have_a_mebibyte(service: Service) -> None:
    await service.send("x" * MIB)
    with refused("InvalidParameterValue"):
        await service.send("x" * (MIB + 1))


@contract(moto="accepts it")
async def test_a_body_may_not_be_empty(service: Service) -> None:
    with refused("MissingParameter", "InvalidParameterValue"):
        await service.send("")


@contract(moto="accepts it")
async def test_a_body_may_not_hold_what_xml_cannot(service: Service) -> None:
    with refused("InvalidMessageContents"):
        await service.send("\x00")


@contract(moto="accepts it", ministack="accepts it")
async def test_an_attribute_may_not_be_empty(service: Service) -> None:
    with refused("InvalidParameterValue"):
        await service.sqs.send_message(
            QueueUrl=service.url,
            MessageBody="a",
            MessageAttributes={"reason": {"DataType": "String", "StringValue": ""}},
        )


@contract()
async def test_a_delayed_message_comes_later(service: Service) -> None:
    await service.sqs.send_message(QueueUrl=service.url, MessageBody="a", DelaySeconds=5)
    delayed: Final = "ApproximateNumberOfMessagesDelayed"
    answer = await service.sqs.get_queue_attributes(QueueUrl=service.url, AttributeNames=[delayed])
    assert answer["Attributes"][delayed] == "1"
    assert await service.receive() == []
    service.pass_time(5)
    await service.receive_one(WaitTimeSeconds=20)


@contract()
async def test_a_purge_leaves_nothing(service: Service) -> None:
    await service.send("a", "b")
    await service.receive_one(MaxNumberOfMessages=1)
    await service.sqs.purge_queue(QueueUrl=service.url)
    assert await service.counts() == Counts(visible=0, in_flight=0)


@contract()
async def test_ten_are_sent_changed_and_deleted_in_one_call_each(service: Service) -> None:
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
async def test_a_batch_that_is_none_is_refused_as_a_whole(service: Service) -> None:
    none: list[tuple[list[str], str]] = [
        ([str(n) for n in range(11)], "TooManyEntriesInBatchRequest"),
        (["a", "a"], "BatchEntryIdsNotDistinct"),
        (["a b"], "InvalidBatchEntryId"),
        ([], "EmptyBatchRequest"),
    ]
    for ids, code in none:
        with refused(f"AWS.SimpleQueueService.{code}"):
            await service.sqs.send_message_batch(
                QueueUrl=service.url, Entries=[{"Id": each, "MessageBody": "a"} for each in ids]
            )
    assert await service.counts() == Counts(visible=0, in_flight=0)


@contract()
async def test_what_a_batch_cannot_do_it_tells_and_does_the_rest(service: Service) -> None:
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
