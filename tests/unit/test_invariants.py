"""The checker of I1-I8: it reports each broken invariant, and nothing else."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.evidence.evidence import Evidence
from tests.support.evidence.history import Call, History, Letter, Life
from tests.support.evidence.invariants import MEMORY_AT_MOST_BYTES, broken

SECRET = "planted-in-the-environment"  # noqa: S105 - made up
SEGMENT = b"speech"
NAME = "segment_00001-3fa9c2d1.flac"
KEY = f"a.wav/{NAME}"
MANIFEST = "a.wav/metadata.json"
JOB = {
    "job_id": "job-1",
    "source_bucket": "source",
    "source_key": "a.wav",
    "output_bucket": "output",
    "output_prefix": "a.wav/",
}
VISIBILITY_TIMEOUT_S = 30


class Story:
    """A history, in which each call takes a second, and the objects at its end."""

    def __init__(self, folder: Path) -> None:
        self.history = History()
        self.now_s = 0.0
        self.left_in_queue = 0
        self.objects: dict[str, bytes] = {}
        self._folder = folder

    def worker(self, name: str = "worker-1", **facts: Any) -> Life:
        log = self._folder / f"{name}.log"
        log.write_text('{"event": "worker_started"}\n')
        life = Life(name=name, log=log, scratch=self._folder, **facts)
        self.history.workers.append(life)
        return life

    def sent(self, message_id: str = "m", body: Any = JOB) -> None:
        self.history.sent[message_id] = orjson.dumps(body).decode()
        self.left_in_queue += 1

    def received(self, receipt: str = "r", message_id: str = "m", *, by: str = "worker-1") -> Call:
        message = {"MessageId": message_id, "ReceiptHandle": receipt, "Body": self.history.sent[message_id]}
        asked = {"VisibilityTimeout": VISIBILITY_TIMEOUT_S}
        return self._sqs("ReceiveMessage", by, asked, {"Messages": [message]})

    def heartbeat(self, receipt: str = "r", *, by: str = "worker-1") -> Call:
        entry = {"Id": "0", "ReceiptHandle": receipt, "VisibilityTimeout": VISIBILITY_TIMEOUT_S}
        return self._sqs("ChangeMessageVisibilityBatch", by, {"Entries": [entry]}, {"Successful": [{"Id": "0"}]})

    def released(self, receipt: str = "r", *, by: str = "worker-1") -> Call:
        return self._sqs("ChangeMessageVisibility", by, {"ReceiptHandle": receipt, "VisibilityTimeout": 0}, {})

    def deleted(self, receipt: str = "r", *, by: str = "worker-1") -> Call:
        self.left_in_queue -= 1
        return self._sqs("DeleteMessage", by, {"ReceiptHandle": receipt}, {})

    def dead_lettered(self, message_id: str = "m", *, by: str = "worker-1", **reason: str) -> Call:
        reason = {"code": "undecodable", "reason": "noise", "message_id": message_id} | reason
        body = self.history.sent[message_id]
        self.history.dead_letters.append(Letter("other", body, reason, 1))
        attributes = {name: {"StringValue": value} for name, value in reason.items()}
        return self._sqs(
            "SendMessage", by, {"MessageBody": body, "MessageAttributes": attributes}, {"MessageId": "other"}, "dead"
        )

    def put(self, key: str, body: bytes, *, by: str = "worker-1", bucket: str = "output", **facts: Any) -> Call:
        call = self._call("s3", "PutObject", by, bucket=bucket, key=key, **facts)
        call.request = body if call.is_of_manifest else b""
        call.request_sha256 = hashlib.sha256(body).hexdigest()
        if call.served and bucket == "output":
            self.objects[key] = body
        return call

    def committed(self, *, by: str = "worker-1", content: bytes = SEGMENT, **facts: Any) -> Call:
        return self.put(MANIFEST, manifest(content), by=by, **facts)

    def done(self, *, by: str = "worker-1") -> None:
        """A correct job from its receive to its delete."""
        self.received(by=by)
        self.put(KEY, SEGMENT, by=by)
        self.heartbeat(by=by)
        self.committed(by=by)
        self.deleted(by=by)

    def broken(self) -> list[str]:
        return broken(
            Evidence(
                history=self.history,
                source_bucket="source",
                output_bucket="output",
                queue="jobs",
                dead_letter_queue="dead",
                visibility_timeout_s=VISIBILITY_TIMEOUT_S,
                max_receive_count=5,
                secrets={"the secret key": SECRET},
                objects=self.objects,
                left_in_queue=self.left_in_queue,
            )
        )

    def _sqs(self, operation: str, by: str, arguments: Any, result: Any, queue: str = "jobs") -> Call:
        url = f"http://127.0.0.1/1/{queue}"
        answer = orjson.dumps(result)
        return self._call(
            "sqs",
            operation,
            by,
            request=orjson.dumps(arguments | {"QueueUrl": url}),
            served_answer=answer,
            answer=answer,
        )

    def _call(self, service: Any, operation: str, by: str, **facts: Any) -> Call:
        self.now_s += 1
        at_s = self.now_s
        times = {"started_s": at_s, "served_s": at_s + 0.1, "answered_s": at_s + 0.2, "ended_s": at_s + 0.3}
        call = Call(
            service=service,
            operation=operation,
            sender=by,
            **({"served_status": 200, "status": 200} | times | facts),
        )
        self.history.calls.append(call)
        return call


def manifest(content: bytes = SEGMENT, **facts: Any) -> bytes:
    segment = {"filename": NAME, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    made_from = {"job_id": "job-1", "source_bucket": "source", "source_key": "a.wav", "source_etag": "e"}
    return orjson.dumps(made_from | {"params_sha256": "p", "archive": None, "segments": [segment]} | facts)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    story = Story(tmp_path)
    story.worker()
    story.sent()
    return story


def _nothing_happens(story: Story) -> None:
    del story


def _done(story: Story) -> None:
    story.done()


def _released_and_done_by_another_worker(story: Story) -> None:
    story.worker("worker-2")
    story.received("first")
    story.released("first")
    story.done(by="worker-2")


def _dead_lettered(story: Story) -> None:
    story.received()
    story.dead_lettered()
    story.deleted()


def _taken_by_the_test(story: Story) -> None:
    story.history.taken.add("m")
    story.left_in_queue = 0


def _moved_by_sqs_after_five_receives(story: Story) -> None:
    for number in range(5):
        story.received(f"r{number}")
        story.released(f"r{number}")
    story.history.dead_letters.append(Letter("m", story.history.sent["m"], {}, 5))
    story.left_in_queue = 0


def _skipped_because_its_manifest_exists(story: Story) -> None:
    story.put(KEY, SEGMENT, by="")
    story.objects[MANIFEST] = manifest()
    story.received()
    story._call("s3", "GetObject", "worker-1", bucket="output", key=MANIFEST, answer=manifest())
    story.deleted()


def _lost_the_race_for_the_commit(story: Story) -> None:
    story.worker("worker-2")
    story.sent("again")
    story.received()
    story.received("r2", "again", by="worker-2")
    story.put(KEY, SEGMENT)
    story.put(KEY, SEGMENT, by="worker-2")
    story.committed()
    story.put(MANIFEST, manifest(), by="worker-2", served_status=412, status=412)
    story._call("s3", "GetObject", "worker-2", bucket="output", key=MANIFEST, answer=manifest())
    story.deleted()
    story.deleted("r2", by="worker-2")


def _killed_and_done_by_another_worker(story: Story) -> None:
    story.history.workers[0].killed = True
    story.history.workers[0].ended_s = 3.0
    story.worker("worker-2")
    story.received("first")
    story.put(KEY, SEGMENT)
    story.now_s += VISIBILITY_TIMEOUT_S
    story.done(by="worker-2")


def _committed_without_an_answer_then_read(story: Story) -> None:
    story.received()
    story.put(KEY, SEGMENT)
    story.committed(status=None, answered_s=None)
    story._call("s3", "GetObject", "worker-1", bucket="output", key=MANIFEST, answer=manifest())
    story.deleted()


def _killed_before_its_delete_was_answered(story: Story) -> None:
    story.done()
    delete = story.history.calls[-1]
    delete.was_passed_on, delete.served_status, delete.status = True, None, None
    story.left_in_queue = 1  # the server never got it; had it done so, none would be left


def _failure_records_and_the_probe(story: Story) -> None:
    story.put(".stt-async-probe", b"probe")
    story.done()
    for attempt in (b"first", b"second"):
        story.put("failures/job-1/1.json", attempt)


def _idle_with_its_log_open(story: Story) -> None:
    life = story.history.workers[0]
    life.open_at_start = life.open_when_idle = frozenset({str(life.log)})
    life.peak_memory_bytes = MEMORY_AT_MOST_BYTES


def _stopped_shortly_before_the_visibility_timeout(story: Story) -> None:
    story.received()
    story.history.workers[0].returncode = 0
    story.history.workers[0].ended_s = story.now_s + VISIBILITY_TIMEOUT_S - 10


def _replaced_by_other_parameters(story: Story) -> None:
    story.done()
    story.sent("m2", JOB | {"max_duration": 3})
    story.received("r2", "m2")
    story.put("a.wav/segment_00001-00000000.flac", b"shorter")
    segment = {
        "filename": "segment_00001-00000000.flac",
        "bytes": 7,
        "sha256": hashlib.sha256(b"shorter").hexdigest(),
    }
    story.put(MANIFEST, manifest(params_sha256="q", segments=[segment]))
    story.deleted("r2")


def _delivered_twice_at_once(story: Story) -> None:
    story.worker("worker-2")
    story.received("one")
    story.received("two", by="worker-2")
    story.put(KEY, SEGMENT)
    story.committed()
    story.deleted("one")
    story.put(KEY, SEGMENT, by="worker-2")
    story.committed(by="worker-2", served_status=412, status=412)
    story._call("s3", "GetObject", "worker-2", bucket="output", key=MANIFEST, answer=manifest())
    story.deleted("two", by="worker-2")
    story.left_in_queue = 0


@pytest.mark.parametrize(
    "scenario",
    [
        _nothing_happens,
        _done,
        _released_and_done_by_another_worker,
        _dead_lettered,
        _taken_by_the_test,
        _moved_by_sqs_after_five_receives,
        _skipped_because_its_manifest_exists,
        _lost_the_race_for_the_commit,
        _killed_and_done_by_another_worker,
        _committed_without_an_answer_then_read,
        _killed_before_its_delete_was_answered,
        _failure_records_and_the_probe,
        _idle_with_its_log_open,
        _stopped_shortly_before_the_visibility_timeout,
        _replaced_by_other_parameters,
        _delivered_twice_at_once,
    ],
)
def test_correct_history_has_no_report(story: Story, scenario: Callable[[Story], None]) -> None:
    scenario(story)
    assert story.broken() == []


def _vanished(story: Story) -> None:
    story.received()
    story.left_in_queue = 0


def _twice_in_the_queue(story: Story) -> None:
    story.left_in_queue = 2


def _manifest_vanished(story: Story) -> None:
    story.done()
    del story.objects[MANIFEST]
    story.history.calls = [call for call in story.history.calls if not call.is_of_manifest]


def _done_and_dead_lettered(story: Story) -> None:
    story.received()
    story.put(KEY, SEGMENT)
    story.committed()
    story.dead_lettered()
    story.deleted()


def _dead_lettered_without_a_reason(story: Story) -> None:
    story.received()
    story.dead_lettered(reason="")
    story.deleted()


def _moved_by_sqs_too_early(story: Story) -> None:
    story.received()
    story.released()
    story.history.dead_letters.append(Letter("m", story.history.sent["m"], {}, 1))
    story.left_in_queue = 0


def _deleted_before_the_commit(story: Story) -> None:
    story.received()
    story.put(KEY, SEGMENT)
    story.deleted()
    story.committed()


def _deleted_after_a_commit_that_failed(story: Story) -> None:
    story.received()
    story.put(KEY, SEGMENT)
    story.committed(status=503, error_code="SlowDown")
    story.deleted()


def _deleted_after_a_commit_without_an_answer(story: Story) -> None:
    story.received()
    story.put(KEY, SEGMENT)
    story.committed(status=None, answered_s=None)
    story.deleted()


def _deleted_while_the_commit_is_in_flight(story: Story) -> None:
    story.received()
    story.put(KEY, SEGMENT)
    story.committed(answered_s=100.0)
    story.deleted()


def _deleted_for_the_manifest_of_another_source(story: Story) -> None:
    story.received()
    other = manifest(source_key="b.wav")
    story.objects[MANIFEST] = other
    story._call("s3", "GetObject", "worker-1", bucket="output", key=MANIFEST, answer=other)
    story.deleted()


def _deleted_for_the_dead_letter_of_another(story: Story) -> None:
    story.sent("m2")
    story.received()
    story.received("r2", "m2")
    story.dead_lettered("m2")
    story.deleted()
    story.deleted("r2")


def _committed_when_another_worker_held_the_message(story: Story) -> None:
    story.worker("worker-2")
    story.received("old")
    story.put(KEY, SEGMENT)
    story.now_s += VISIBILITY_TIMEOUT_S
    story.received("new", by="worker-2")
    story.committed()


def _committed_after_the_visibility_timeout(story: Story) -> None:
    story.received()
    story.put(KEY, SEGMENT)
    story.now_s += VISIBILITY_TIMEOUT_S
    story.committed()


def _committed_after_the_release(story: Story) -> None:
    story.received()
    story.put(KEY, SEGMENT)
    story.released()
    story.committed()


def _deleted_what_another_worker_holds(story: Story) -> None:
    story.worker("worker-2")
    story.received("old")
    story.put(KEY, SEGMENT)
    story.committed()
    story.now_s += VISIBILITY_TIMEOUT_S
    story.received("new", by="worker-2")
    story.deleted("old")


def _lists_a_missing_object(story: Story) -> None:
    story.done()
    del story.objects[KEY]


def _lists_another_content(story: Story) -> None:
    story.done()
    story.objects[KEY] = b"sqeech"


def _lists_another_size(story: Story) -> None:
    story.done()
    story.objects[KEY] = SEGMENT + b"!"


def _committed_before_its_segments(story: Story) -> None:
    story.received()
    story.committed()
    story.put(KEY, SEGMENT)
    story.deleted()


def _member_elsewhere_in_the_tar(story: Story) -> None:
    tar = b"0123speech"
    member = {"filename": NAME, "bytes": 6, "sha256": hashlib.sha256(SEGMENT).hexdigest(), "tar_offset": 3}
    archive = {"filename": "segments.tar", "bytes": len(tar), "sha256": hashlib.sha256(tar).hexdigest()}
    story.received()
    story.put("a.wav/segments.tar", tar)
    story.put(MANIFEST, manifest(archive=archive, segments=[member]))
    story.deleted()


def _wrote_to_another_prefix(story: Story) -> None:
    story.received()
    story.put("b.wav/segment_00001-3fa9c2d1.flac", SEGMENT)


def _wrote_below_another_recording(story: Story) -> None:
    story.received()
    story.put(f"a.wav/b.wav/{NAME}", SEGMENT)


def _wrote_without_a_job(story: Story) -> None:
    story.put(KEY, SEGMENT)


def _wrote_into_another_bucket(story: Story) -> None:
    story.received()
    story.put(KEY, SEGMENT, bucket="another")


def _wrote_to_the_source(story: Story) -> None:
    story.put("a.wav", b"", by="enqueue", bucket="source", served_status=403, status=403)


def _wrote_to_minio(story: Story) -> None:
    story._call("minio", "PutObject", "", bucket="source", key="a.wav", method="PUT")


def _deleted_an_object(story: Story) -> None:
    story.received()
    story._call("s3", "DeleteObject", "worker-1", bucket="output", key=KEY, method="DELETE")


def _sent_a_head_to_the_source(story: Story) -> None:
    story._call("minio", "HeadObject", "", bucket="source", key="a.wav", method="HEAD")


def _left_a_file(story: Story) -> None:
    story.history.workers[0].left.append("/scratch/job-1/source")


def _left_a_message_hidden(story: Story) -> None:
    story.received()
    story.heartbeat()
    story.history.workers[0].returncode = 0
    story.history.workers[0].ended_s = story.now_s + 1


def _heartbeat_after_the_delete(story: Story) -> None:
    story.done()
    story.heartbeat()


def _heartbeat_after_the_release(story: Story) -> None:
    story.received()
    story.released()
    story.heartbeat()


def _keeps_a_file_open(story: Story) -> None:
    life = story.history.workers[0]
    life.open_at_start = frozenset({str(life.log)})
    life.open_when_idle = frozenset({str(life.log), "/scratch/job-1/source"})


def _exceeds_the_memory_bound(story: Story) -> None:
    story.history.workers[0].peak_memory_bytes = MEMORY_AT_MOST_BYTES + 1


def _logs_a_secret(story: Story) -> None:
    story.history.workers[0].log.write_text(f'{{"error": "refused {SECRET}"}}')


def _commits_a_secret(story: Story) -> None:
    story.received()
    story.put(KEY, SEGMENT)
    story.put(MANIFEST, manifest(metadata={"key": SECRET}))


def _sends_a_secret(story: Story) -> None:
    story.received()
    story.dead_lettered(reason=f"refused: {SECRET}")
    story.deleted()


def _names_an_object_after_a_secret(story: Story) -> None:
    story.received()
    story.put(f"a.wav/{SECRET}", SEGMENT)


def _wrote_two_contents_under_one_name(story: Story) -> None:
    story.done()
    story.sent("again")
    story.received("r2", "again")
    story.put(KEY, b"sqeech")
    story.objects[KEY] = SEGMENT


def _offered_other_segments(story: Story) -> None:
    story.done()
    story.sent("again")
    story.received("r2", "again")
    story.put("a.wav/segment_00001-00000000.flac", b"other")
    other = {"filename": "segment_00001-00000000.flac", "bytes": 5, "sha256": hashlib.sha256(b"other").hexdigest()}
    story.put(MANIFEST, manifest(segments=[other]), served_status=412, status=412)


@pytest.mark.parametrize(
    ("scenario", "numbers", "words"),
    [
        (_vanished, "I1", "1 of them must be left in the queue; it holds 0"),
        (_twice_in_the_queue, "I1", "it holds 2"),
        (_manifest_vanished, "I1 I2", "without a manifest and without a dead letter"),
        (_done_and_dead_lettered, "I1", "a dead letter and a manifest"),
        (_dead_lettered_without_a_reason, "I1", "without code or reason"),
        (_moved_by_sqs_too_early, "I1", "has no reason, after 1 receives"),
        (_deleted_before_the_commit, "I2", "worker-1 deleted message m"),
        (_deleted_after_a_commit_that_failed, "I2", "worker-1 deleted message m"),
        (_deleted_after_a_commit_without_an_answer, "I2", "worker-1 deleted message m"),
        (_deleted_while_the_commit_is_in_flight, "I2", "worker-1 deleted message m"),
        (_deleted_for_the_manifest_of_another_source, "I1 I2", "worker-1 deleted message m"),
        (_deleted_for_the_dead_letter_of_another, "I1 I2", "worker-1 deleted message m "),
        (_committed_when_another_worker_held_the_message, "I2", "without a lease"),
        (_committed_after_the_visibility_timeout, "I2", "without a lease"),
        (_committed_after_the_release, "I2", "without a lease"),
        (_deleted_what_another_worker_holds, "I2", "by an old receipt, while worker-2 held it"),
        (_lists_a_missing_object, "I3", "which does not exist"),
        (_lists_another_content, "I3", "another size or hash"),
        (_lists_another_size, "I3", "another size or hash"),
        (_committed_before_its_segments, "I3", f"before {NAME} was stored"),
        (_member_elsewhere_in_the_tar, "I3", "in the tar"),
        (_wrote_to_another_prefix, "I4", "outside the prefixes of its jobs"),
        (_wrote_below_another_recording, "I4", "outside the prefixes of its jobs"),
        (_wrote_without_a_job, "I4", "outside the prefixes of its jobs"),
        (_wrote_into_another_bucket, "I4", "outside the prefixes of its jobs"),
        (_wrote_to_the_source, "I4", "a write to the source"),
        (_wrote_to_minio, "I4", "a write to the source"),
        (_deleted_an_object, "I4", "outside the prefixes of its jobs"),
        (_sent_a_head_to_the_source, "I4", "a HEAD on the source"),
        (_left_a_file, "I5", "worker-1 left /scratch/job-1/source"),
        (_left_a_message_hidden, "I5", "hidden for another 29 s"),
        (_heartbeat_after_the_delete, "I5", "after it had settled it by DeleteMessage"),
        (_heartbeat_after_the_release, "I5", "after it had settled it by ChangeMessageVisibility"),
        (_keeps_a_file_open, "I6", "has /scratch/job-1/source open"),
        (_exceeds_the_memory_bound, "I6", "1024 MiB of memory"),
        (_logs_a_secret, "I7", "the secret key appears in worker-1.log"),
        (_commits_a_secret, "I7", "the secret key appears in"),
        (_sends_a_secret, "I7", "the secret key appears in the dead letter"),
        (_names_an_object_after_a_secret, "I7", "the secret key appears in the name of an object"),
        (_wrote_two_contents_under_one_name, "I8", "with 2 different contents"),
        (_offered_other_segments, "I8", "offered different segments"),
    ],
)
def test_broken_invariant_is_found(story: Story, scenario: Callable[[Story], None], numbers: str, words: str) -> None:
    scenario(story)
    reports = story.broken()
    assert {report.split()[0] for report in reports} == set(numbers.split()), reports
    assert any(words in report for report in reports), reports
    assert not any(SECRET in report for report in reports)
