"""What is held against the invariants: the history of a site, what it holds at the end, and both in good order."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from stt_async.manifest import MANIFEST_NAME
from tests.support.evidence.history import Call, History
from tests.support.evidence.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is held against the invariants: the history of a site, and what it holds at the end."""

    history: History
    source_bucket: str
    output_bucket: str
    queue: str
    dead_letter_queue: str
    visibility_timeout_s: int
    max_receive_count: int
    secrets: Mapping[str, str]
    """What must stay secret, by a name for people."""
    objects: Mapping[str, bytes]
    """All of the output bucket, by key."""
    left_in_queue: int
    """Messages that wait in the split queue or are hidden there."""

    @cached_property
    def ledger(self) -> Ledger:
        """What became of each message."""
        return Ledger(self.history, queue=self.queue, visibility_timeout_s=self.visibility_timeout_s)

    @cached_property
    def workers(self) -> set[str]:
        """Their names."""
        return {life.name for life in self.history.workers}

    @cached_property
    def offers(self) -> list[Call]:
        """The manifests of ours that anybody tried to commit."""
        puts = self.history.of("s3", "PutObject")
        return [call for call in puts if call.is_of_manifest and b'"params_sha256"' in call.request]

    @cached_property
    def commits(self) -> list[Call]:
        """Those that the server took."""
        return [call for call in self.offers if call.served]

    @cached_property
    def dead_letter_sends(self) -> list[Call]:
        """What workers sent to the dead-letter queue."""
        return [call for call in self.history.of("sqs", "SendMessage") if call.queue == self.dead_letter_queue]

    @cached_property
    def written_s(self) -> dict[str, float]:
        """When each object was first there, by key."""
        first: dict[str, float] = {}
        for operation in ("PutObject", "CompleteMultipartUpload"):
            for call in self.history.of("s3", operation):
                if call.served and call.served_s is not None:
                    first[call.key] = min(call.served_s, first.get(call.key, call.served_s))
        return first

    @cached_property
    def told(self) -> dict[tuple[str, str], list[Call]]:
        """What makes an end durable, by who was told of it, and key of the manifest or id of the message."""
        found: dict[tuple[str, str], list[Call]] = defaultdict(list)
        for call in self.history.of("s3", "PutObject") + self.history.of("s3", "GetObject"):
            if call.is_of_manifest and call.succeeded:
                found[call.sender, call.key].append(call)
        for call in self.dead_letter_sends:
            if call.succeeded:
                found[call.sender, told_reason(call).get("message_id", "")].append(call)
        return found

    @cached_property
    def committed(self) -> dict[str, list[Call]]:
        """The manifests that were committed by who held a message then, by its id."""
        found: dict[str, list[Call]] = defaultdict(list)
        for commit in self.commits:
            for delivery in self.ledger.held_for(commit.sender, prefix_of(commit), commit.started_s):
                found[delivery.message_id].append(commit)
        return found


def prefix_of(commit: Call) -> str:
    """The output prefix of the manifest that a call is about."""
    return commit.key.removesuffix(MANIFEST_NAME)


def told_reason(dead_letter: Call) -> dict[str, str]:
    """The attributes with which a message went to the dead-letter queue."""
    attributes = dead_letter.arguments.get("MessageAttributes", {})
    return {name: str(value.get("StringValue", "")) for name, value in attributes.items()}
