"""The invariants I1-I8, which hold under all faults, over the history of a site and its final state.

They are checked for every site at the end of its test. No test disables one: what a test does, such as killing a worker
or taking messages, is part of the history.

I1  Each job sent ends as one of: its manifest, its dead letter with a reason, its message still in the queue.
I2  A message is deleted only after its manifest or its dead letter is durable; a worker that lost its lease does not
    commit the job, and does not delete a message that another worker holds.
I3  The objects of a manifest exist, with their sizes and hashes, and were stored before it.
I4  Workers write only below the prefixes of their jobs, below `failures/`, and the probe. The source gets no write and
    no HEAD.
I5  A worker that ended leaves no process, no file and no hidden message; heartbeats end before delete and release.
I6  An idle worker has no more open files than at its start; its memory is bounded.
I7  No secret appears in a log, a manifest, a dead letter, a message, or the name of an object.
I8  Objects written twice under one name are equal; manifests of the same source and parameters list the same segments.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain, pairwise
from math import inf
from typing import Any

import orjson

from stt_async.manifest import MANIFEST_NAME
from tests.support.evidence.evidence import Evidence, prefix_of, reason_of
from tests.support.evidence.history import Call, Letter, Life
from tests.support.evidence.ledger import SLACK_S, Delivery, Ledger

HIDDEN_AT_MOST_S = 20.0
MEMORY_AT_MOST_BYTES = 1024**3
"""Of a worker without its children: up to 8 parts of 8 MiB are in flight at once (`bucket.PARTS_IN_FLIGHT`)."""

_FAILURES = "failures/"
_PROBE = ".stt-async-probe"
_WRITES = ("Put", "Upload", "Create", "Complete", "Copy", "Delete")


def broken(evidence: Evidence) -> list[str]:
    """Return a sentence for each broken invariant, which starts with its number."""
    return list(
        chain(
            _every_job_ends_once(evidence),
            _nothing_is_deleted_before_it_is_durable(evidence),
            _lost_leases_end_the_work(evidence),
            _manifests_list_existing_objects(evidence),
            _writes_stay_in_their_prefixes(evidence),
            _workers_leave_nothing(evidence),
            _heartbeats_end_first(evidence),
            _idle_workers_close_their_files(evidence),
            _secrets_stay_secret(evidence),
            _one_name_is_one_content(evidence),
            _the_same_job_gives_the_same_segments(evidence),
        )
    )


def _every_job_ends_once(evidence: Evidence) -> Iterator[str]:
    ledger = evidence.ledger
    letters = {letter.origin: letter for letter in evidence.history.dead_letters}
    by_worker = {str(reason_of(call).get("message_id")) for call in evidence.dead_letter_sends}
    moved = letters.keys() - by_worker
    for message_id in ledger.deleted() - ledger.taken:
        body = ledger.bodies.get(message_id, "")
        commits = evidence.committed.get(message_id, [])
        if message_id in letters and commits:
            yield f"I1 broken: message {message_id} ({body}) has a dead letter and a manifest: {commits[0]}"
        if message_id not in letters and not commits and not _has_manifest(evidence, message_id):
            yield f"I1 broken: message {message_id} ({body}) was deleted without a manifest and without a dead letter"
    settled = ledger.taken | moved
    at_least = len(ledger.bodies.keys() - ledger.maybe_deleted() - settled)
    at_most = len(ledger.bodies.keys() - ledger.deleted() - settled)
    if not at_least <= evidence.left_in_queue <= at_most:
        yield (
            f"I1 broken: {len(ledger.bodies)} messages were sent, and {at_least} to {at_most} of them must be left in "
            f"the queue; it holds {evidence.left_in_queue}"
        )
    for message_id in moved:
        receives = len(ledger.of_message(message_id))
        if 0 < receives < evidence.max_receive_count and not letters[message_id].attributes.get("reason"):
            yield f"I1 broken: the dead letter of message {message_id} has no reason, after {receives} receives"
    for call in evidence.dead_letter_sends:
        if not reason_of(call).get("reason") or not reason_of(call).get("code"):
            yield f"I1 broken: a dead letter without code or reason: {call}"


def _nothing_is_deleted_before_it_is_durable(evidence: Evidence) -> Iterator[str]:
    ledger = evidence.ledger
    for delivery in ledger.deliveries:
        for delete in delivery.deletes:
            if not _had_durable_end(evidence, delivery, delete):
                yield (
                    f"I2 broken: {delete.sender} deleted message {delivery.message_id} ({delivery.body}) before it "
                    "had the answer that the manifest or the dead letter is stored"
                )


def _lost_leases_end_the_work(evidence: Evidence) -> Iterator[str]:
    ledger = evidence.ledger
    for commit in evidence.commits:
        if commit.sender not in evidence.workers:
            continue
        held = ledger.held_for(commit.sender, prefix_of(commit), commit.started_s)
        if not any(_is_held(ledger, delivery, commit.started_s) for delivery in held):
            yield f"I2 broken: {commit.sender} committed {commit.key} without a lease on a message of this job"
    for delivery in ledger.deliveries:
        for delete in delivery.deletes:
            others = ledger.successors(delivery, delete.started_s)
            if any(other.is_open(delete.started_s) for other in others):
                yield (
                    f"I2 broken: {delete.sender} deleted message {delivery.message_id} by an old receipt, while "
                    f"{others[-1].holder} held it"
                )


def _manifests_list_existing_objects(evidence: Evidence) -> Iterator[str]:
    for commit in evidence.commits:
        manifest = orjson.loads(commit.request)
        for name, size, sha256 in _listed(manifest):
            key = prefix_of(commit) + name
            if evidence.written_s.get(key, inf) > commit.started_s:
                yield f"I3 broken: {commit.sender} committed {commit.key} before {name} was stored"
            if evidence.objects.get(commit.key) != commit.request:
                continue  # another manifest replaced it
            content = evidence.objects.get(key)
            if content is None:
                yield f"I3 broken: {commit.key} lists {name}, which does not exist"
            elif (len(content), _sha256(content)) != (size, sha256):
                yield f"I3 broken: {name}, listed by {commit.key}, has another size or hash than listed"
            else:
                yield from _broken_members(commit.key, manifest, content)


def _writes_stay_in_their_prefixes(evidence: Evidence) -> Iterator[str]:
    for call in evidence.history.calls:
        if call.service != "minio" and not (call.service == "s3" and call.sender):
            continue  # a call of the test
        if call.method == "HEAD" and (call.service == "minio" or call.bucket == evidence.source_bucket):
            yield f"I4 broken: a HEAD on the source: {call}"
        if not call.operation.startswith(_WRITES):
            continue
        if call.bucket == evidence.source_bucket or call.service == "minio":
            yield f"I4 broken: a write to the source: {call}"
        elif call.sender in evidence.workers and not _may_write(evidence, call):
            yield f"I4 broken: a write outside the prefixes of its jobs: {call}"


def _workers_leave_nothing(evidence: Evidence) -> Iterator[str]:
    for life in evidence.history.workers:
        for left in life.left:
            yield f"I5 broken: {life.name} left {left}"
        for delivery in evidence.ledger.deliveries:
            hidden_s = _hidden_s(evidence, life, delivery)
            if hidden_s > HIDDEN_AT_MOST_S:
                yield (
                    f"I5 broken: {life.name} ended and left message {delivery.message_id} ({delivery.body}) hidden "
                    f"for another {hidden_s:.0f} s"
                )


def _heartbeats_end_first(evidence: Evidence) -> Iterator[str]:
    for delivery in evidence.ledger.deliveries:
        settled = delivery.settled_by
        for change in delivery.changes:
            if settled is not None and delivery.is_heartbeat(change) and change.started_s > settled.started_s:
                yield (
                    f"I5 broken: {change.sender} sent a heartbeat for message {delivery.message_id} after it had "
                    f"settled it by {settled.operation}"
                )


def _idle_workers_close_their_files(evidence: Evidence) -> Iterator[str]:
    for life in evidence.history.workers:
        for file in sorted((life.open_when_idle or frozenset()) - life.open_at_start):
            yield f"I6 broken: {life.name} is idle and has {file} open, which was not open at its start"
        if life.peak_memory_bytes is not None and life.peak_memory_bytes > MEMORY_AT_MOST_BYTES:
            yield f"I6 broken: {life.name} took {life.peak_memory_bytes / 1024**2:.0f} MiB of memory"


def _secrets_stay_secret(evidence: Evidence) -> Iterator[str]:
    logs = [life.log for life in evidence.history.workers if life.log.is_file()]
    places: list[tuple[str, bytes]] = [(log.name, log.read_bytes()) for log in logs]
    # The names of these places must not contain the secret themselves.
    places += [("the name of an object", key.encode()) for key in evidence.objects]
    places += [("an object of JSON", body) for key, body in evidence.objects.items() if key.endswith(".json")]
    places += [(f"the dead letter {letter.message_id}", _text(letter)) for letter in evidence.history.dead_letters]
    for call in evidence.history.calls:
        if call.sender and call.service in {"sqs", "s3"}:
            made = f"{call.operation} by {call.sender}"
            places += [(f"the body of a {made}", call.request), (f"the address of a {made}", call.target.encode())]
    for name, secret in evidence.secrets.items():
        for place in dict.fromkeys(place for place, content in places if secret.encode() in content):
            yield f"I7 broken: {name} appears in {place}"


def _one_name_is_one_content(evidence: Evidence) -> Iterator[str]:
    written: dict[tuple[str, str], set[str]] = defaultdict(set)
    for call in evidence.history.of("s3", "PutObject") + evidence.history.of("s3", "UploadPart"):
        may_differ = call.is_of_manifest or call.key.startswith(_FAILURES)
        if call.bucket == evidence.output_bucket and call.served and not may_differ:
            written[call.key, call.query.get("partNumber", "")].add(call.request_sha256)
    for (key, _), hashes in written.items():
        if len(hashes) > 1:
            yield f"I8 broken: {key} was written with {len(hashes)} different contents"


def _the_same_job_gives_the_same_segments(evidence: Evidence) -> Iterator[str]:
    offered: dict[tuple[str, ...], list[Call]] = defaultdict(list)
    for call in evidence.offers:
        manifest = orjson.loads(call.request)
        made_from = (manifest["source_bucket"], manifest["source_key"], str(manifest["source_etag"]))
        offered[call.key, *made_from, manifest["params_sha256"]].append(call)
    for (key, *_), calls in offered.items():
        for before, after in pairwise(calls):
            if list(_listed(orjson.loads(before.request))) != list(_listed(orjson.loads(after.request))):
                yield f"I8 broken: {before.sender} and {after.sender} offered different segments as {key}"


def _hidden_s(evidence: Evidence, life: Life, delivery: Delivery) -> float:
    """How long after its exit a worker hides a message that it received and did not settle."""
    if delivery.holder != life.name or not delivery.receive.succeeded or delivery.settled_by is not None:
        return 0.0
    if not life.exited or life.ended_s is None or evidence.ledger.superseded(delivery, life.ended_s):
        return 0.0
    return delivery.hidden_until_s() - life.ended_s


def _has_manifest(evidence: Evidence, message_id: str) -> bool:
    job = next((delivery.job for delivery in evidence.ledger.of_message(message_id)), None)
    return job is not None and _is_manifest_of(job.source, evidence.objects.get(job.prefix + MANIFEST_NAME, b""))


def _had_durable_end(evidence: Evidence, delivery: Delivery, delete: Call) -> bool:
    """Whether the worker had an answer about the stored manifest or dead letter, since it received the message."""
    job = delivery.job
    answers = evidence.durable_ends[delete.sender, delivery.message_id].copy()
    if job is not None:
        of_manifest = evidence.durable_ends[delete.sender, job.prefix + MANIFEST_NAME]
        answers = answers + [
            c for c in of_manifest if c.operation == "PutObject" or _is_manifest_of(job.source, c.answer)
        ]
    return any(
        call.started_s >= delivery.receive.started_s
        and call.answered_s is not None
        and call.answered_s <= delete.started_s
        for call in answers
    )


def _is_manifest_of(source: str, data: bytes) -> bool:
    try:
        facts: Any = orjson.loads(data)
        return bool(f"{facts['source_bucket']}/{facts['source_key']}" == source)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return False


def _is_held(ledger: Ledger, delivery: Delivery, at_s: float) -> bool:
    if any(other.is_open(at_s) for other in ledger.successors(delivery, at_s)):
        return False
    return at_s <= delivery.hidden_until_s(at_s) + SLACK_S


def _broken_members(key: str, manifest: Any, content: bytes) -> Iterator[str]:
    """Check the segments in a tar by the offsets of its manifest."""
    if manifest["archive"] is None:
        return
    for segment in manifest["segments"]:
        offset = segment["tar_offset"]
        if _sha256(content[offset : offset + segment["bytes"]]) != segment["sha256"]:
            yield f"I3 broken: {segment['filename']} is not at its offset in the tar, by {key}"


def _listed(manifest: Any) -> Iterator[tuple[str, int, str]]:
    """Yield name, size and hash of each object of a manifest."""
    objects = manifest["segments"] if manifest["archive"] is None else [manifest["archive"]]
    for each in objects:
        yield each["filename"], each["bytes"], each["sha256"]


def _may_write(evidence: Evidence, call: Call) -> bool:
    if call.bucket != evidence.output_bucket or call.operation.startswith("Delete"):
        return False
    folder, slash, _ = call.key.rpartition("/")
    return call.key.startswith((_FAILURES, _PROBE)) or folder + slash in evidence.ledger.prefixes(call.sender)


def _text(letter: Letter) -> bytes:
    return "\n".join([letter.body, *letter.attributes.values()]).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
