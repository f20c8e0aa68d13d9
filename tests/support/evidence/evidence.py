"""The evidence for the invariants: the history of a site, its final state, and views of both."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from stt_async.manifest import MANIFEST_NAME
from tests.support.evidence.history import Call, History
from tests.support.evidence.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The history of a site and its final state."""

    history: History
    source_bucket: str
    output_bucket: str
    queue: str
    dead_letter_queue: str
    visibility_timeout_s: int
    max_receive_count: int
    secrets: Mapping[str, str]
    """Secrets, by a name for people."""
    objects: Mapping[str, bytes]
    """All objects of the output bucket, by key."""
    left_in_queue: int
    """Messages in the split queue, visible or in flight."""

    @cached_property
    def ledger(self) -> Ledger:
        """The deliveries of each message."""
        return Ledger(self.history, queue=self.queue, visibility_timeout_s=self.visibility_timeout_s)

    @cached_property
    def workers(self) -> set[str]:
        """The names of the workers."""
        return {life.name for life in self.history.workers}

    @cached_property
    def offers(self) -> list[Call]:
        """All attempts to commit a manifest of this program."""
        puts = self.history.of("s3", "PutObject")
        return [call for call in puts if call.is_of_manifest and b'"params_sha256"' in call.request]

    @cached_property
    def commits(self) -> list[Call]:
        """The attempts that the server accepted."""
        return [call for call in self.offers if call.served]

    @cached_property
    def dead_letter_sends(self) -> list[Call]:
        """The dead letters that workers sent."""
        return [call for call in self.history.of("sqs", "SendMessage") if call.queue == self.dead_letter_queue]

    @cached_property
    def written_s(self) -> dict[str, float]:
        """When each object was first stored, by key."""
        first: dict[str, float] = {}
        for operation in ("PutObject", "CompleteMultipartUpload"):
            for call in self.history.of("s3", operation):
                if call.served and call.served_s is not None:
                    first[call.key] = min(call.served_s, first.get(call.key, call.served_s))
        return first

    @cached_property
    def durable_ends(self) -> dict[tuple[str, str], list[Call]]:
        """The answers that prove a durable end, by their receiver, and key of the manifest or id of the message."""
        found: dict[tuple[str, str], list[Call]] = defaultdict(list)
        for call in self.history.of("s3", "PutObject") + self.history.of("s3", "GetObject"):
            if call.is_of_manifest and call.succeeded:
                found[call.sender, call.key].append(call)
        for call in self.dead_letter_sends:
            if call.succeeded:
                found[call.sender, reason_of(call).get("message_id", "")].append(call)
        return found

    @cached_property
    def committed(self) -> dict[str, list[Call]]:
        """The commits by workers that held a message, by its id."""
        found: dict[str, list[Call]] = defaultdict(list)
        for commit in self.commits:
            for delivery in self.ledger.held_for(commit.sender, prefix_of(commit), commit.started_s):
                found[delivery.message_id].append(commit)
        return found


def prefix_of(commit: Call) -> str:
    """The output prefix of a manifest's commit."""
    return commit.key.removesuffix(MANIFEST_NAME)


def reason_of(dead_letter: Call) -> dict[str, str]:
    """The attributes of a dead letter."""
    attributes = dead_letter.arguments.get("MessageAttributes", {})
    return {name: str(value.get("StringValue", "")) for name, value in attributes.items()}
