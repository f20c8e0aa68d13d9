"""What bin/deploy decides: parameters, sizes, what a stack's events mean, and what is left when nobody goes on."""

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
from stt_async.fleet.worker_logs import parse_span_s
from stt_async.retry import Retry

ESSENTIAL = {"ArtifactBucket": "releases-of-ours", "ArtifactSha256": "0" * 64}


class Service:
    """A client that answers as it is told: by operation, one answer after the other, the last one again and again."""

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

    def made(self) -> list[str]:
        return [operation for operation, _ in self.calls]


def account(*, cloudformation: Service | None = None, autoscaling: Service | None = None) -> AwsAccount:
    nothing: Any = Service()
    return AwsAccount(
        region="us-east-1",
        cloudformation=cloudformation or nothing,
        autoscaling=autoscaling or nothing,
        cloudwatch=nothing,
        logs=nothing,
        s3=nothing,
        sqs=nothing,
        retry=Retry(timeout_s=0, max_wait_s=0),
    )


def refused(code: str, message: str = "no", status: int = 400) -> ClientError:
    said: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(said, "CreateChangeSet")


@pytest.fixture(scope="module")
def template() -> Template:
    return read_template(PATH)


class TestTemplate:
    def test_the_stack_s_own_fits_into_a_call_and_needs_two_parameters(self, template: Template) -> None:
        assert len(template.body.encode()) <= 51_200
        with pytest.raises(SettingsError, match="ArtifactBucket has no value: --set ArtifactBucket="):
            template.values({}, {})
        assert template.values({}, ESSENTIAL).keys() == template.parameters.keys()

    def test_given_wins_over_previous_and_that_over_the_default(self, template: Template) -> None:
        previous = ESSENTIAL | {"SourceLinkMbps": "50", "VolumeGiB": "60", "GoneFromTheTemplate": "x"}
        values = template.values(previous, {"VolumeGiB": "80"})
        assert (values["SourceLinkMbps"], values["VolumeGiB"], values["SegmentFormat"]) == ("50", "80", "flac")
        assert "GoneFromTheTemplate" not in values

    @pytest.mark.parametrize(
        ("name", "value", "told"),
        [
            ("SourceLink", "100", "did you mean SourceLinkMbps"),
            ("Zzz", "1", "there are AlarmEmail, ArtifactBucket"),
            ("VolumeGiB", "many", "VolumeGiB must be 20 to 500 GiB (it is 'many')"),
            ("VolumeGiB", "501", "VolumeGiB must be 20 to 500 GiB"),
            ("LogRetentionDays", "8", "must be one of 7, 14, 30"),
            ("SubnetIds", "subnet-0a1b2c3d,x", "SubnetIds must be subnet ids"),
        ],
    )
    def test_a_wrong_parameter_is_named(self, template: Template, name: str, value: str, told: str) -> None:
        with pytest.raises(SettingsError) as caught:
            template.check({name: value})
        assert told in str(caught.value)

    def test_all_that_is_wrong_is_told_at_once(self, template: Template) -> None:
        with pytest.raises(SettingsError) as caught:
            template.check({"SegmentFormat": "mp3", "VolumeGiB": "1", "SubnetIds": "subnet-0a1b2c3d,subnet-1a1b2c3d"})
        assert str(caught.value).count("\n") == 1

    @pytest.mark.parametrize("text", ["", "a: [", "[1, 2]", "just words"], ids=repr)
    def test_what_is_no_template_is_refused(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "template.yaml"
        file.write_text(text)
        with pytest.raises(SettingsError, match=r"template\.yaml is no CloudFormation template"):
            read_template(file)

    def test_one_that_is_not_there_or_too_long_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="cannot read the template"):
            read_template(tmp_path / "none.yaml")
        long = tmp_path / "long.json"
        long.write_text('{"Parameters": {}, "Description": "' + "x" * 51_200 + '"}')
        with pytest.raises(SettingsError, match="CloudFormation takes 51200"):
            read_template(long)


def test_words_are_parameters() -> None:
    assert parse_parameters(["A=1", "B=", "C=x=y"]) == {"A": "1", "B": "", "C": "x=y"}
    for words in (["A"], ["=1"], ["A=1", "A=2"]):
        with pytest.raises(SettingsError, match="--set"):
            parse_parameters(words)


def test_spans_of_time() -> None:
    assert [parse_span_s(text) for text in ("90s", "15m", "2h", "3d")] == [90, 900, 7200, 259_200]
    for text in ("", "15", "m", "-1m", "1.5h", "1w"):
        with pytest.raises(SettingsError, match="no span of time"):
            parse_span_s(text)


class TestScaling:
    @given(
        desired=st.integers(0, 8),
        count=st.integers(0, 8),
        states=st.lists(st.sampled_from(["Pending", "InService", "Terminating:Wait"]), max_size=12),
    )
    def test_the_group_comes_to_the_size_and_never_below_none(
        self, desired: int, count: int, states: list[str]
    ) -> None:
        instances = [Instance(f"i-{n}", state, is_current=True) for n, state in enumerate(states)]
        plan = groups.scaling(FleetGroup("split", desired, 8, instances, []), count)

        staying, wants = len(plan.group.staying), plan.desired
        for number, _ in enumerate(plan.ends):
            staying -= 1
            if number >= plan.surplus:
                wants -= 1
                assert wants >= 0, "AWS refuses this one"
            assert staying >= wants, "the group would start another in its place"

        assert wants == count
        assert staying == min(count, len(plan.group.staying))

    def test_what_would_be_missed_least_ends_first(self) -> None:
        instances = [
            Instance("i-old", "InService", is_current=False),
            Instance("i-busy", "InService", is_current=True),
            Instance("i-boots", "Pending", is_current=True),
            Instance("i-gone", "Terminating:Wait", is_current=False),
        ]
        plan = groups.scaling(FleetGroup("split", 3, 8, instances, []), 1)
        assert [each.instance_id for each in plan.ends] == ["i-old", "i-boots"]

    def test_more_than_the_link_can_feed_is_refused(self) -> None:
        with pytest.raises(SettingsError, match="may have 3 instances, not 4"):
            groups.scaling(FleetGroup("split", 0, 3, [], []), 4)

    async def test_one_that_ended_itself_meanwhile_is_no_failure(self) -> None:
        gone = {"AutoScalingGroups": [{"DesiredCapacity": 0, "MaxSize": 8, "Instances": []}]}
        service = Service(
            terminate_instance_in_auto_scaling_group=[refused("ValidationError", "Instance Id not found")],
            describe_auto_scaling_groups=[gone],
        )
        group = FleetGroup("split", 1, 8, [Instance("i-0", "InService", is_current=True)], [])

        await groups.scale(account(autoscaling=service), groups.scaling(group, 0))

        assert service.made() == ["terminate_instance_in_auto_scaling_group", "describe_auto_scaling_groups"]


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "raised"),
        [
            (refused("ValidationError"), RejectedError),
            (refused("AccessDenied", status=403), DependencyError),
            (refused("Throttling"), TransientError),
            (refused("InternalFailure", status=500), TransientError),
        ],
        ids=lambda value: getattr(value, "__name__", str(value)),
    )
    async def test_only_what_would_be_rejected_again_is_a_wrong_word(
        self, error: ClientError, raised: type[Exception]
    ) -> None:
        service = Service(create_change_set=[error])
        with pytest.raises(raised):
            await account(cloudformation=service).call(service.create_change_set, StackName="x")


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

    async def test_the_first_failure_of_its_own_is_the_reason(self) -> None:
        before = event(0, "stt-async", "REVIEW_IN_PROGRESS")
        happened = [
            event(1, "stt-async", "CREATE_IN_PROGRESS", "User Initiated"),
            event(2, "Logs", "CREATE_FAILED", "Resource creation cancelled"),
            event(3, "SplitQueue", "CREATE_FAILED", "QueueAlreadyExists"),
            event(4, "SplitRole", "CREATE_FAILED", "limit exceeded"),
            event(5, "stt-async", "ROLLBACK_COMPLETE"),
        ]
        service = Service(
            describe_stack_events=[{"StackEvents": [before]}, {"StackEvents": [*happened[::-1], before]}],
            describe_stacks=[described("ROLLBACK_COMPLETE")],
        )
        heard: list[stacks.Event] = []

        with pytest.raises(stacks.StackError) as caught:
            await stacks.execute(account(cloudformation=service), self.PROPOSAL, heard.append)

        assert str(caught.value) == (
            "stack stt-async is ROLLBACK_COMPLETE: SplitQueue (AWS::SQS::Queue): QueueAlreadyExists"
        )
        assert [each.logical_id for each in heard] == ["stt-async", "Logs", "SplitQueue", "SplitRole", "stt-async"]

    async def test_events_are_told_once_and_the_end_is_awaited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stacks, "POLL_INTERVAL_S", 0.0)
        first, second = event(1, "SplitQueue", "CREATE_IN_PROGRESS"), event(2, "SplitQueue", "CREATE_COMPLETE")
        service = Service(
            describe_stack_events=[
                {"StackEvents": []},
                {"StackEvents": []},
                {"StackEvents": [first]},
                {"StackEvents": [second, first]},
            ],
            # At first it still shows what it was before.
            describe_stacks=[described(each) for each in ("UPDATE_COMPLETE", "CREATE_IN_PROGRESS", "CREATE_COMPLETE")],
        )
        heard: list[stacks.Event] = []

        stack = await stacks.execute(account(cloudformation=service), self.PROPOSAL, heard.append)

        assert stack.status == "CREATE_COMPLETE"
        assert [each.status for each in heard] == ["CREATE_IN_PROGRESS", "CREATE_COMPLETE"]


class TestProposal:
    MADE: dict[str, Any] = {"Status": "CREATE_COMPLETE", "ExecutionStatus": "AVAILABLE", "Changes": []}  # noqa: RUF012

    def service(self, status: str, *answers: dict[str, Any]) -> Service:
        return Service(
            create_change_set=[{"Id": "a-change-set", "StackId": STACK_ID}],
            describe_change_set=list(answers),
            describe_stacks=[described(status)],
        )

    async def propose(self, service: Service, template: Template, kind: stacks.Kind) -> stacks.Proposal | None:
        async with stacks.proposed(account(cloudformation=service), "stt-async", kind, template, ESSENTIAL) as proposal:
            return proposal

    async def test_declined_it_takes_the_stack_with_it_that_is_not_there_yet(self, template: Template) -> None:
        service = self.service("REVIEW_IN_PROGRESS", self.MADE)
        assert await self.propose(service, template, "CREATE") is not None
        assert service.made()[-1] == "delete_stack"

    async def test_declined_it_leaves_the_stack_that_is_there(self, template: Template) -> None:
        service = self.service("UPDATE_COMPLETE", self.MADE)
        assert await self.propose(service, template, "UPDATE") is not None
        assert service.made()[-1] == "delete_change_set"
        assert "delete_stack" not in service.made()

    async def test_executed_it_is_left_alone(self, template: Template) -> None:
        executed = {**self.MADE, "ExecutionStatus": "EXECUTE_IN_PROGRESS"}
        service = self.service("REVIEW_IN_PROGRESS", self.MADE, executed)
        assert await self.propose(service, template, "CREATE") is not None
        assert not {"delete_stack", "delete_change_set"} & set(service.made())

    async def test_no_changes_are_no_failure(self, template: Template) -> None:
        nothing = {
            "Status": "FAILED",
            "ExecutionStatus": "UNAVAILABLE",
            "StatusReason": "The submitted information didn't contain changes.",
        }
        service = self.service("UPDATE_COMPLETE", nothing)
        assert await self.propose(service, template, "UPDATE") is None
        assert service.made()[-1] == "delete_change_set"

    async def test_another_reason_is_one(self, template: Template) -> None:
        failed = {"Status": "FAILED", "ExecutionStatus": "UNAVAILABLE", "StatusReason": "Circular dependency"}
        with pytest.raises(stacks.StackError, match="Circular dependency"):
            await self.propose(self.service("UPDATE_COMPLETE", failed), template, "UPDATE")
