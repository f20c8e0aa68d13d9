"""The calls to SQS, and the meaning of its answers."""

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from stt_async.errors import ClassifiedError, DependencyError, LeaseLostError, PermanentError, TransientError
from stt_async.retry import Retry
from stt_async.services.queue import Depth, JobQueue, _attribute, is_lost, open_queue
from tests.unit.fakes import message

RETRY = Retry(timeout_s=30.0, max_wait_s=0.001)


class Sqs:
    """A client that records calls, and answers each with the next answer for its operation."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = answers
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        async def call(**arguments: Any) -> Any:
            self.calls.append((operation, arguments))
            answer = self.answers[operation].pop(0) if operation in self.answers else {}
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call

    def called(self, operation: str) -> list[dict[str, Any]]:
        return [arguments for name, arguments in self.calls if name == operation]


def refusal(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "because"}}, "Any")


def queue(client: Any) -> JobQueue:
    return JobQueue(client, url="q", dead_letter_url="dlq", max_receive_count=5, retry=RETRY)


async def test_receive_requests_and_parses_messages() -> None:
    sqs = Sqs(
        receive_message=[
            {
                "Messages": [
                    {
                        "MessageId": "1",
                        "ReceiptHandle": "h",
                        "Body": "b",
                        "Attributes": {
                            "ApproximateReceiveCount": "3",
                            "SentTimestamp": "1763800000000",
                            "ApproximateFirstReceiveTimestamp": "1763800061250",
                        },
                    }
                ]
            }
        ]
    )
    [received] = await queue(sqs).receive(most=4, wait_time_s=20, visibility_timeout_s=300)
    assert (received.message_id, received.receipt_handle, received.body, received.receive_count) == ("1", "h", "b", 3)
    assert received.queue_wait_s == 61.25
    assert "h'" not in repr(received)
    [asked] = sqs.called("receive_message")
    assert asked["MaxNumberOfMessages"] == 4
    assert {"SentTimestamp", "ApproximateFirstReceiveTimestamp"} < set(asked["MessageSystemAttributeNames"])
    assert (asked["WaitTimeSeconds"], asked["VisibilityTimeout"]) == (20, 300)


async def test_receive_requests_ten_at_most_and_accepts_an_empty_answer() -> None:
    sqs = Sqs()
    assert await queue(sqs).receive(most=50, wait_time_s=0, visibility_timeout_s=300) == []
    assert sqs.called("receive_message")[0]["MaxNumberOfMessages"] == 10


async def test_failed_receive_is_raised_at_once() -> None:
    sqs = Sqs(receive_message=[refusal("InternalError"), {}])
    with pytest.raises(TransientError):
        await queue(sqs).receive(most=1, wait_time_s=0, visibility_timeout_s=300)
    assert len(sqs.calls) == 1


async def test_extend_returns_the_codes_of_refused_messages() -> None:
    failed = {"Id": "1", "Code": "MessageNotInflight", "SenderFault": True}
    sqs = Sqs(change_message_visibility_batch=[{"Successful": [{"Id": "0"}], "Failed": [failed]}])
    assert await queue(sqs).extend([message("a"), message("b")], 300) == {"handle-b": "MessageNotInflight"}
    entries = sqs.calls[0][1]["Entries"]
    assert [(e["ReceiptHandle"], e["VisibilityTimeout"]) for e in entries] == [("handle-a", 300), ("handle-b", 300)]


@pytest.mark.parametrize(
    ("code", "lost"),
    [
        ("MessageNotInflight", True),
        ("AWS.SimpleQueueService.MessageNotInflight", True),
        ("ReceiptHandleIsInvalid", True),
        ("InvalidParameterValue", True),
        ("InternalError", False),
        ("RequestThrottled", False),
        ("AccessDenied", False),
        ("unreachable", False),
    ],
)
async def test_codes_of_a_lost_message_raise_lease_lost(code: str, *, lost: bool) -> None:
    assert is_lost(code) is lost
    if lost:
        sqs = Sqs(delete_message=[refusal(code)], change_message_visibility=[refusal(code)])
        with pytest.raises(LeaseLostError, match=code):
            await queue(sqs).delete(message("a"))
        with pytest.raises(LeaseLostError, match=code):
            await queue(sqs).release(message("a"), after_s=0)
        assert len(sqs.calls) == 2


async def test_transient_failure_of_a_settling_call_is_retried() -> None:
    sqs = Sqs(delete_message=[refusal("InternalError"), {}], change_message_visibility=[refusal("InternalError"), {}])
    await queue(sqs).delete(message("a"))
    await queue(sqs).release(message("a"), after_s=7)
    assert len(sqs.called("delete_message")) == 2
    assert sqs.called("change_message_visibility")[1] == {
        "QueueUrl": "q",
        "ReceiptHandle": "handle-a",
        "VisibilityTimeout": 7,
    }


async def test_dead_letter_is_sent_before_its_message_is_deleted() -> None:
    sqs = Sqs()
    await queue(sqs).dead_letter(message("a", receive_count=2), PermanentError("undecodable", "no\x00audio"))
    assert [operation for operation, _ in sqs.calls] == ["send_message", "delete_message"]
    [sent] = sqs.called("send_message")
    assert (sent["QueueUrl"], sent["MessageBody"]) == ("dlq", "a")
    assert {name: value["StringValue"] for name, value in sent["MessageAttributes"].items()} == {
        "failure": "permanent",
        "code": "undecodable",
        "reason": "no\N{REPLACEMENT CHARACTER}audio",
        "receive_count": "2",
        "message_id": "a",
    }


async def test_failed_dead_letter_deletes_nothing() -> None:
    sqs = Sqs(send_message=[refusal("AccessDenied")])
    with pytest.raises(DependencyError):
        await queue(sqs).dead_letter(message("a"), PermanentError("undecodable", "no audio"))
    assert not sqs.called("delete_message")


async def test_attributes_are_never_empty() -> None:
    sqs = Sqs()
    await queue(sqs).dead_letter(message("a"), TransientError("", ""))
    values = [value["StringValue"] for value in sqs.calls[0][1]["MessageAttributes"].values()]
    assert all(values)


@given(st.text(st.characters()))
def test_attribute_holds_only_characters_that_sqs_accepts(text: str) -> None:
    cleaned = _attribute(text)
    assert 1 <= len(cleaned) <= 1000
    for character in cleaned:
        number = ord(character)
        assert character in "\t\n\r" or 0x20 <= number <= 0xD7FF or 0xE000 <= number <= 0xFFFD or number >= 0x10000
    cleaned.encode()


@pytest.mark.parametrize("text", ["amdo/བཀྲ་ཤིས།.mp3 does not exist", "two\nlines", "x" * 1000])
def test_attribute_keeps_printable_text(text: str) -> None:
    assert _attribute(text) == text


async def test_only_refused_messages_of_a_batch_are_sent_again() -> None:
    sqs = Sqs(
        send_message_batch=[
            {"Failed": [{"Id": "0", "Code": "InternalError"}, {"Id": "2", "Code": "InternalError"}]},
            {"Failed": [{"Id": "1", "Code": "InternalError"}]},
            {"Successful": [{"Id": "0"}]},
        ]
    )
    await queue(sqs).send(["a", "b", "c"])
    sent = [[entry["MessageBody"] for entry in call["Entries"]] for call in sqs.called("send_message_batch")]
    assert sent == [["a", "b", "c"], ["a", "c"], ["c"]]


def attributes(visible: int, in_flight: int, delayed: int) -> dict[str, dict[str, str]]:
    return {
        "Attributes": {
            "ApproximateNumberOfMessages": str(visible),
            "ApproximateNumberOfMessagesNotVisible": str(in_flight),
            "ApproximateNumberOfMessagesDelayed": str(delayed),
        }
    }


async def test_each_depth_is_of_its_own_queue() -> None:
    sqs = Sqs(get_queue_attributes=[attributes(1, 2, 3), attributes(4, 0, 0)])
    assert await queue(sqs).depth() == Depth(visible=1, in_flight=2, delayed=3)
    assert await queue(sqs).dead_letter_depth() == Depth(visible=4, in_flight=0, delayed=0)
    assert [call["QueueUrl"] for call in sqs.called("get_queue_attributes")] == ["q", "dlq"]


@pytest.mark.parametrize(
    ("counts", "empty"), [((0, 0, 0), True), ((1, 0, 0), False), ((0, 1, 0), False), ((0, 0, 1), False)]
)
def test_empty_means_no_message_at_all(counts: tuple[int, int, int], *, empty: bool) -> None:
    assert Depth(*counts).empty is empty


POLICY = {
    "Attributes": {"RedrivePolicy": '{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:1:dead","maxReceiveCount":"5"}'}
}


@pytest.mark.parametrize("name", ["jobs", "https://sqs.us-east-1.amazonaws.com/1/jobs"])
async def test_queue_is_found_by_name_or_url_with_its_dead_letter_queue(name: str) -> None:
    urls = [{"QueueUrl": "https://sqs/1/jobs"}, {"QueueUrl": "https://sqs/1/dead"}][-1 if "/" in name else 0 :]
    found = await open_queue(Sqs(get_queue_url=urls, get_queue_attributes=[POLICY]), name, RETRY)  # type: ignore[arg-type]
    assert found.url.endswith("/1/jobs")
    assert (found.dead_letter_url, found.max_receive_count) == ("https://sqs/1/dead", 5)


@pytest.mark.parametrize(
    "answer", [{}, {"Attributes": {}}, refusal("AWS.SimpleQueueService.NonExistentQueue")], ids=str
)
async def test_unusable_queue_is_named_in_the_error(answer: object) -> None:
    sqs: Any = Sqs(get_queue_attributes=[answer])
    with pytest.raises(ClassifiedError, match="1/jobs") as caught:
        await open_queue(sqs, "https://sqs/1/jobs", RETRY)
    assert isinstance(caught.value, DependencyError)
