"""The decisions of bin/deploy: parameters, group sizes, stack events, and the cleanup of change sets."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from stt_async.errors import DependencyError, SettingsError, TransientError
from stt_async.fleet import group as groups
from stt_async.fleet import stack as stacks
from stt_async.fleet.account import AwsAccount, RejectedError
from stt_async.fleet.group import FleetGroup, Instance
from stt_async.fleet.template import PATH, Template, parse_parameters, read_template
from stt_async.retry import Retry

ESSENTIAL = {"ArtifactBucket": "releases", "ArtifactSha256": "0" * 64}


class FakeClient:
    """A client of an AWS service with prepared answers: for each operation in order, then the last one repeatedly."""

    def __init__(self, **answers: list[Any]) -> None:
        self._answers = answers
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, operation: str) -> Callable[..., Awaitable[Any]]:
        async def call(**arguments: Any) -> Any:
            self.calls.append((operation, arguments))
            answers = self._answers.get(operation, [{}])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call

    @property
    def operations(self) -> list[str]:
        return [operation for operation, _ in self.calls]


def account(client: Any) -> AwsAccount:
    return AwsAccount("us-east-1", client, client, client, client, client, Retry(timeout_s=0, max_wait_s=0))


def client_error(code: str, message: str = "no", status: int = 400) -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "CreateChangeSet")


@pytest.fixture(scope="module")
def template() -> Template:
    return read_template(PATH)


class TestTemplate:
    def test_shipped_template_fits_into_a_call_and_needs_two_parameters(self, template: Template) -> None:
        assert len(template.body.encode()) <= 51_200
        with pytest.raises(SettingsError, match="ArtifactBucket has no value: --set ArtifactBucket="):
            template.values({}, {})
        assert template.values({}, ESSENTIAL).keys() == template.parameters.keys()

    def test_given_value_precedes_previous_one_and_default(self, template: Template) -> None:
        previous = ESSENTIAL | {"SourceLinkMbps": "50", "VolumeGiB": "60", "NotInThisTemplate": "x"}
        values = template.values(previous, {"VolumeGiB": "80"})
        assert (values["SourceLinkMbps"], values["VolumeGiB"], values["SegmentFormat"]) == ("50", "80", "flac")
        assert "NotInThisTemplate" not in values

    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("SourceLink", "100", "did you mean SourceLinkMbps"),
            ("Zzz", "1", "no parameter Zzz: it has AlarmEmail, ArtifactBucket"),
            ("VolumeGiB", "many", "VolumeGiB must be 20 to 500 GiB (it is 'many')"),
            ("VolumeGiB", "501", "VolumeGiB must be 20 to 500 GiB"),
            ("LogRetentionDays", "8", "must be one of 7, 14, 30"),
            ("SubnetIds", "subnet-0a1b2c3d,x", "SubnetIds must be subnet ids"),
        ],
    )
    def test_wrong_parameter_is_named(self, template: Template, name: str, value: str, reason: str) -> None:
        with pytest.raises(SettingsError) as caught:
            template.check({name: value})
        assert reason in str(caught.value)

    def test_all_wrong_parameters_are_reported_at_once(self, template: Template) -> None:
        with pytest.raises(SettingsError) as caught:
            template.check({"SegmentFormat": "mp3", "VolumeGiB": "1", "SubnetIds": "subnet-0a1b2c3d,subnet-1a1b2c3d"})
        assert str(caught.value).count("\n") == 1

    @pytest.mark.parametrize("text", ["", "a: [", "[1, 2]", "just words"], ids=repr)
    def test_file_that_is_not_a_template_is_rejected(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "template.yaml"
        file.write_text(text)
        with pytest.raises(SettingsError, match=r"template\.yaml is not a CloudFormation template"):
            read_template(file)

    def test_missing_or_too_large_template_is_rejected(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="cannot read the template"):
            read_template(tmp_path / "none.yaml")
        long = tmp_path / "long.json"
        long.write_text('{"Parameters": {}, "Description": "' + "x" * 51_200 + '"}')
        with pytest.raises(SettingsError, match="CloudFormation accepts at most 51200"):
            read_template(long)


def test_parameters_are_parsed_from_the_command_line() -> None:
    assert parse_parameters(["A=1", "B=", "C=x=y"]) == {"A": "1", "B": "", "C": "x=y"}
    for words in (["A"], ["=1"], ["A=1", "A=2"]):
        with pytest.raises(SettingsError, match="--set"):
            parse_parameters(words)


class TestScaling:
    @given(
        desired=st.integers(0, 8),
        count=st.integers(0, 8),
        states=st.lists(st.sampled_from(["Pending", "InService", "Terminating:Wait"]), max_size=12),
    )
    def test_group_reaches_the_size_and_desired_capacity_is_never_negative(
        self, desired: int, count: int, states: list[str]
    ) -> None:
        instances = [Instance(f"i-{n}", state, is_current=True) for n, state in enumerate(states)]
        plan = groups.scaling(FleetGroup("split", desired, 8, instances, []), count)

        staying, capacity = len(plan.group.staying), plan.desired
        for number, _ in enumerate(plan.ends):
            staying -= 1
            if number >= plan.surplus:
                capacity -= 1
                assert capacity >= 0, "AWS rejects this termination"
            assert staying >= capacity, "the group would start another instance"

        assert capacity == count
        assert staying == min(count, len(plan.group.staying))

    def test_outdated_and_booting_instances_end_first(self) -> None:
        instances = [
            Instance("i-old", "InService", is_current=False),
            Instance("i-busy", "InService", is_current=True),
            Instance("i-boots", "Pending", is_current=True),
            Instance("i-gone", "Terminating:Wait", is_current=False),
        ]
        plan = groups.scaling(FleetGroup("split", 3, 8, instances, []), 1)
        assert [each.instance_id for each in plan.ends] == ["i-old", "i-boots"]

    def test_count_above_the_maximum_is_rejected(self) -> None:
        with pytest.raises(SettingsError, match="may have 3 instances, not 4"):
            groups.scaling(FleetGroup("split", 0, 3, [], []), 4)

    async def test_instance_that_meanwhile_ended_itself_is_ignored(self) -> None:
        client = FakeClient(
            terminate_instance_in_auto_scaling_group=[client_error("ValidationError", "Instance Id not found")],
            describe_auto_scaling_groups=[
                {"AutoScalingGroups": [{"DesiredCapacity": 0, "MaxSize": 8, "Instances": []}]}
            ],
        )
        group = FleetGroup("split", 1, 8, [Instance("i-0", "InService", is_current=True)], [])

        await groups.scale(account(client), groups.scaling(group, 0))

        assert client.operations == ["terminate_instance_in_auto_scaling_group", "describe_auto_scaling_groups"]


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "raised"),
        [
            (client_error("ValidationError"), RejectedError),
            (client_error("AccessDenied", status=403), DependencyError),
            (client_error("Throttling"), TransientError),
            (client_error("InternalFailure", status=500), TransientError),
        ],
        ids=lambda value: getattr(value, "__name__", str(value)),
    )
    async def test_only_an_error_that_would_recur_is_a_rejection(
        self, error: ClientError, raised: type[Exception]
    ) -> None:
        client = FakeClient(create_change_set=[error])
        with pytest.raises(raised):
            await account(client).call(client.create_change_set, StackName="x")


STACK_ID = "arn:aws:cloudformation:us-east-1:123456789012:stack/stt-async/1"


def described(status: str) -> dict[str, Any]:
    return {"Stacks": [{"StackName": "stt-async", "StackId": STACK_ID, "StackStatus": status}]}


def event(number: int, logical_id: str, status: str, reason: str = "") -> dict[str, Any]:
    return {
        "EventId": str(number),
        "StackId": STACK_ID,
        "LogicalResourceId": logical_id,
        "PhysicalResourceId": STACK_ID if logical_id == "stt-async" else logical_id,
        "ResourceType": "AWS::SQS::Queue",
        "ResourceStatus": status,
        "ResourceStatusReason": reason,
    }


class TestExecution:
    PROPOSAL = stacks.Proposal("CREATE", STACK_ID, "a-change-set", [])

    async def test_error_names_the_first_resource_that_itself_failed(self) -> None:
        before = event(0, "stt-async", "REVIEW_IN_PROGRESS")
        after = [
            event(1, "stt-async", "CREATE_IN_PROGRESS", "User Initiated"),
            event(2, "Logs", "CREATE_FAILED", "Resource creation cancelled"),
            event(3, "SplitQueue", "CREATE_FAILED", "QueueAlreadyExists"),
            event(4, "SplitRole", "CREATE_FAILED", "limit exceeded"),
            event(5, "stt-async", "ROLLBACK_COMPLETE"),
        ]
        client = FakeClient(
            describe_stack_events=[{"StackEvents": [before]}, {"StackEvents": [*after[::-1], before]}],
            describe_stacks=[described("ROLLBACK_COMPLETE")],
        )
        events: list[stacks.Event] = []

        with pytest.raises(stacks.StackError) as caught:
            await stacks.execute(account(client), self.PROPOSAL, events.append)

        assert str(caught.value) == (
            "stack stt-async is ROLLBACK_COMPLETE: SplitQueue (AWS::SQS::Queue): QueueAlreadyExists"
        )
        assert [each.logical_id for each in events] == ["stt-async", "Logs", "SplitQueue", "SplitRole", "stt-async"]

    async def test_events_are_reported_once_until_the_final_status(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stacks, "POLL_INTERVAL_S", 0.0)
        first, second = event(1, "SplitQueue", "CREATE_IN_PROGRESS"), event(2, "SplitQueue", "CREATE_COMPLETE")
        client = FakeClient(
            describe_stack_events=[{"StackEvents": each} for each in ([], [], [first], [second, first])],
            # At first the stack still has its earlier status.
            describe_stacks=[described(each) for each in ("UPDATE_COMPLETE", "CREATE_IN_PROGRESS", "CREATE_COMPLETE")],
        )
        events: list[stacks.Event] = []

        stack = await stacks.execute(account(client), self.PROPOSAL, events.append)

        assert stack.status == "CREATE_COMPLETE"
        assert [each.status for each in events] == ["CREATE_IN_PROGRESS", "CREATE_COMPLETE"]


class TestProposal:
    READY: dict[str, Any] = {"Status": "CREATE_COMPLETE", "ExecutionStatus": "AVAILABLE"}  # noqa: RUF012 - a constant
    FAILED: dict[str, Any] = {"Status": "FAILED", "ExecutionStatus": "UNAVAILABLE"}  # noqa: RUF012 - a constant

    def client(self, stack_status: str, *change_sets: dict[str, Any]) -> FakeClient:
        return FakeClient(
            create_change_set=[{"Id": "a-change-set", "StackId": STACK_ID}],
            describe_change_set=list(change_sets),
            describe_stacks=[described(stack_status)],
        )

    async def propose(self, client: FakeClient, template: Template, kind: stacks.Kind) -> stacks.Proposal | None:
        async with stacks.proposed(account(client), "stt-async", kind, template, ESSENTIAL) as proposal:
            return proposal

    async def test_declined_create_deletes_the_stack_made_for_its_change_set(self, template: Template) -> None:
        client = self.client("REVIEW_IN_PROGRESS", self.READY)
        assert await self.propose(client, template, "CREATE") is not None
        assert client.operations[-1] == "delete_stack"

    async def test_declined_update_deletes_only_the_change_set(self, template: Template) -> None:
        client = self.client("UPDATE_COMPLETE", self.READY)
        assert await self.propose(client, template, "UPDATE") is not None
        assert client.operations[-1] == "delete_change_set"
        assert "delete_stack" not in client.operations

    async def test_executed_change_set_is_not_deleted(self, template: Template) -> None:
        executed = self.READY | {"ExecutionStatus": "EXECUTE_IN_PROGRESS"}
        client = self.client("REVIEW_IN_PROGRESS", self.READY, executed)
        assert await self.propose(client, template, "CREATE") is not None
        assert not {"delete_stack", "delete_change_set"} & set(client.operations)

    async def test_change_set_without_changes_is_no_proposal(self, template: Template) -> None:
        reason = {"StatusReason": "The submitted information didn't contain changes."}
        client = self.client("UPDATE_COMPLETE", self.FAILED | reason)
        assert await self.propose(client, template, "UPDATE") is None
        assert client.operations[-1] == "delete_change_set"

    async def test_change_set_that_fails_for_another_reason_raises(self, template: Template) -> None:
        client = self.client("UPDATE_COMPLETE", self.FAILED | {"StatusReason": "Circular dependency"})
        with pytest.raises(stacks.StackError, match="Circular dependency"):
            await self.propose(client, template, "UPDATE")
