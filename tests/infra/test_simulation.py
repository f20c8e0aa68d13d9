import copy
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulation.__main__ import CORPUS, corpus, simulate
from tests.simulation.fleet import Simulation
from tests.simulation.link import Link
from tests.simulation.rules import Rules, evaluate
from tests.simulation.world import Recording, Run, World
from tests.support.recordings import ROOT
from tests.support.stack.cloudformation import load, resolve
from tests.support.stack.template import ESSENTIAL

RULES = Rules.of(resolve(load(), ESSENTIAL))
CALM = World(link_mbps=300, interruptions_an_hour=0)


def _recordings(number: int, seconds: float = 1800) -> list[Recording]:
    return [Recording(seconds, seconds * 0.064) for _ in range(number)]


def _run(rules: Rules, world: World, recordings: list[Recording]) -> Run:
    return Simulation(rules, world, [(0.0, each) for each in recordings]).run()


def _first_in_service_s(run: Run) -> float:
    return next(minute.at_s for minute in run.minutes if minute.inservice)


@pytest.mark.parametrize("known_after_s", [60, 900])
def test_fleet_starts_from_zero_within_a_minute_of_the_metrics(known_after_s: float) -> None:
    world = World(link_mbps=300, interruptions_an_hour=0, first_metric_delay_s=known_after_s)

    run = _run(RULES, world, _recordings(1))

    at_s, reason, desired = run.changes[0]
    assert (reason, desired) == ("step", 1)
    assert at_s <= known_after_s + 60
    assert _first_in_service_s(run) <= at_s + world.boot_s + 60
    assert run.done == 1


@given(
    st.lists(st.tuples(st.integers(0, 6 * 3600), st.integers(1, 150), st.integers(5, 4 * 3600)), max_size=4),
    st.sampled_from([0.0, 0.2, 3.0]),
    st.sampled_from([60.0, 180.0]),
    st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_all_jobs_end_no_busy_instance_is_ended_and_the_fleet_returns_to_zero(
    batches: list[tuple[int, int, int]], interruptions_an_hour: float, metric_delay_s: float, seed: int
) -> None:
    arrivals = [(float(at_s), each) for at_s, n, seconds in sorted(batches) for each in _recordings(n, seconds)]
    world = World(link_mbps=300, interruptions_an_hour=interruptions_an_hour, metric_delay_s=metric_delay_s)

    run = Simulation(RULES, world, arrivals, seed).run()

    assert run.done == len(arrivals)
    assert run.busy_ended == 0
    assert (run.minutes[-1].visible, run.minutes[-1].desired, run.minutes[-1].inservice) == (0, 0, 0)
    desired = [0, *[to for _, _, to in run.changes]]
    assert max(desired) <= RULES.max_size
    for before, (_, reason, after) in zip(desired, run.changes, strict=False):
        assert after > before or reason == "idle", f"{reason} set {after} instances after {before}"


def _with(template: dict[str, Any], name: str, **properties: Any) -> dict[str, Any]:
    changed = copy.deepcopy(template)
    changed["Resources"][name]["Properties"] |= properties
    return changed


def test_simulation_detects_a_policy_that_ends_busy_instances(template: dict[str, Any]) -> None:
    tracking = copy.deepcopy(template["Resources"]["ByBacklog"]["Properties"]["TargetTrackingConfiguration"])
    tracking["DisableScaleIn"] = False
    unprotected = _with(template, "SplitGroup", NewInstancesProtectedFromScaleIn=False)
    unprotected = _with(unprotected, "ByBacklog", TargetTrackingConfiguration=tracking)

    run = _run(Rules.of(resolve(unprotected, ESSENTIAL)), CALM, _recordings(700, 3300))

    assert run.busy_ended > 0


def test_simulation_detects_a_step_from_zero_that_shrinks_the_fleet(template: dict[str, Any]) -> None:
    exact = _with(template, "FromZero", AdjustmentType="ExactCapacity")
    every_minute = copy.deepcopy(exact["Resources"]["FromZeroAlarm"]["Properties"]["Metrics"])
    every_minute[0]["Expression"] = "FILL(visible, 0)"
    exact = _with(exact, "FromZeroAlarm", Metrics=every_minute)

    run = _run(Rules.of(resolve(exact, ESSENTIAL)), CALM, _recordings(900))

    changes = zip(run.changes[1:], run.changes, strict=False)
    assert next(reason for (_, reason, to), (_, _, before) in changes if to < before) == "step"


def test_spot_interruptions_cost_time_but_no_job() -> None:
    calm = _run(RULES, CALM, _recordings(300, 6000))
    rough = _run(RULES, World(link_mbps=300, interruptions_an_hour=20), _recordings(300, 6000))

    assert calm.interrupted == calm.released == 0
    assert rough.interrupted > 0
    assert rough.released > 0
    assert rough.done == calm.done == 300
    assert rough.minutes[-1].at_s > calm.minutes[-1].at_s


def test_a_small_backlog_starts_a_small_fleet() -> None:
    for number, largest in ((1, 1), (99, 1), (250, 4), (5_000, RULES.max_size)):
        run = _run(RULES, CALM, _recordings(number))
        assert max(desired for _, _, desired in run.changes) <= largest
        assert run.done == number


def test_simulation_takes_and_checks_template_parameters() -> None:
    fleets = [
        max(desired for _, _, desired in simulate(parameters, _recordings(3_000)).changes)
        for parameters in ({"SourceLinkMbps": "100"}, {"SourceLinkMbps": "300"})
    ]

    assert fleets == [3, 8]
    with pytest.raises(ValueError, match="BacklogPerInstance must be"):
        simulate({"BacklogPerInstance": "3"}, _recordings(1))


def test_whole_corpus_takes_the_time_of_the_link_and_simulates_in_seconds() -> None:
    recordings = corpus(list(CORPUS))
    started_s = time.process_time()

    run = simulate({"SourceLinkMbps": "300"}, recordings)

    assert time.process_time() - started_s < 30
    assert run.done == len(recordings) == 132_205
    link_s = sum(each.megabits for each in recordings) / 300
    assert link_s < run.minutes[-1].at_s < 1.1 * link_s + 3600
    # Five to ten dollars of Spot by docs/cost.md, and the time in which instances wait for the link.
    assert 5 < run.minutes[-1].usd < 20
    assert all(before.usd <= after.usd for before, after in zip(run.minutes, run.minutes[1:], strict=False))


def test_command_prints_backlog_instances_and_cost() -> None:
    command = [sys.executable, "-m", "tests.simulation", "amdo", "--parameter", "SourceLinkMbps=100"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()

    assert printed[0].split() == ["hour", "waiting", "in", "flight", "desired", "in", "service", "US$"]
    assert printed[1].split()[:5] == ["0.0", "290", "0", "0", "0"]
    assert printed[-2].split()[1:5] == ["0", "0", "0", "0"]
    assert printed[-1].startswith("290 done")


def test_downloads_share_the_link_up_to_the_limit_of_a_connection() -> None:
    link = Link(link_mbps=10, connection_mbps=6)
    link.begin(0, 60, "long")
    assert link.next_end_s() == pytest.approx(10), "a single download has the rate of a connection"

    link.begin(2, 10, "short")  # 48 and 10 are left, at 5 Mbit/s each
    assert link.next_end_s() == pytest.approx(4)
    assert link.end(4) == "short"
    assert link.next_end_s() == pytest.approx(4 + 38 / 6)


def test_cancelled_download_leaves_its_share_to_the_others() -> None:
    link = Link(link_mbps=10, connection_mbps=10)
    cancelled = link.begin(0, 10, "cancelled")
    link.begin(0, 20, "other")

    link.cancel(1, cancelled)

    assert link.next_end_s() == pytest.approx(1 + 15 / 10)
    assert link.end(2.5) == "other"
    assert link.next_end_s() is None


def test_idle_instance_ends_despite_rounding_of_times() -> None:
    # It becomes idle at 3989.6472857142858 s, and 300 s later it has been idle for 299.99999999999955 s.
    run = Simulation(RULES, CALM, [(3741.0, Recording(1282, 1282 * 0.064))]).run()

    assert run.minutes[-1].inservice == 0


def test_expression_without_its_metric_has_no_value() -> None:
    assert evaluate(RULES.wake, {"desired": None, "visible": 5}) is None, "unknown is not zero"
    assert evaluate(RULES.wake, {"desired": 0, "visible": None}) == 0
    assert evaluate(RULES.wake, {"desired": 0, "visible": 5}) == 5
    assert evaluate(RULES.wake, {"desired": 1, "visible": 5}) == 0
