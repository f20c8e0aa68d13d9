"""A discrete-event simulation of a queue, a fleet that follows the template's rules, and a shared link to MinIO."""

import heapq
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from math import ceil

from tests.simulation.link import Download, Link
from tests.simulation.rules import TRACKING_PERIODS, Rules, evaluate
from tests.simulation.world import INSTANCE_HOUR_USD, MINUTE_S, Minute, Recording, Run, World

HORIZON_S = 14 * 86_400.0
"""The longest retention of SQS."""


@dataclass(slots=True, eq=False)
class _Instance:
    launched_s: float
    in_service: bool = False
    receives: bool = False
    ended: bool = False
    held: set[Recording] = field(default_factory=set)
    downloads: dict[Recording, Download] = field(default_factory=dict)
    to_download: deque[Recording] = field(default_factory=deque)
    splitting: int = 0
    to_split: deque[Recording] = field(default_factory=deque)
    idle_since_s: float = 0.0


class Simulation:
    """One simulated run.

    Args:
        rules: The template's rules.
        world: Everything else.
        arrivals: When each job is sent, in order.
        seed: Seed of the random interruptions.
    """

    def __init__(self, rules: Rules, world: World, arrivals: Sequence[tuple[float, Recording]], seed: int = 0) -> None:
        self._rules = rules
        self._world = world
        self._arrivals = deque(arrivals)
        self._random = random.Random(seed)  # noqa: S311 - repeatable
        self._run = Run()
        self._now_s = 0.0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._link = Link(world.link_mbps, world.connection_mbps)
        self._visible: deque[Recording] = deque()
        self._fleet: list[_Instance] = []
        self._desired = 0
        self._instance_s = 0.0
        self._above = 0

    def run(self) -> Run:
        """Run until every job is done and every instance has ended.

        Raises:
            TimeoutError: that takes more than 14 simulated days.
        """
        if self._arrivals:
            self._at(self._arrivals[0][0], self._arrive)
        self._at(0.0, self._minute)
        while self._timers:
            ends_s = self._link.next_end_s()
            if ends_s is not None and ends_s <= self._timers[0][0]:
                self._now_s = ends_s
                self._downloaded(*self._link.end(ends_s))
                continue
            self._now_s, _, event = heapq.heappop(self._timers)
            if self._now_s > HORIZON_S:
                raise TimeoutError(f"after 14 days {len(self._visible)} jobs wait for {len(self._fleet)} instances")
            event()
        return self._run

    def _at(self, at_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (at_s, next(self._order), event))

    # The queue

    def _arrive(self) -> None:
        while self._arrivals and self._arrivals[0][0] <= self._now_s:
            self._visible.append(self._arrivals.popleft()[1])
        if self._arrivals:
            self._at(self._arrivals[0][0], self._arrive)
        self._offer()

    def _offer(self) -> None:
        for instance in self._fleet:
            self._receive(instance)

    def _receive(self, instance: _Instance) -> None:
        while instance.receives and self._visible and len(instance.held) < self._world.slots:
            job = self._visible.popleft()
            instance.held.add(job)
            instance.to_download.append(job)
            self._download(instance)

    # A job

    def _download(self, instance: _Instance) -> None:
        while instance.to_download and len(instance.downloads) < self._world.downloads:
            job = instance.to_download.popleft()
            instance.downloads[job] = self._link.begin(self._now_s, job.megabits, (instance, job))

    def _downloaded(self, instance: _Instance, job: Recording) -> None:
        del instance.downloads[job]
        instance.to_split.append(job)
        self._download(instance)
        self._split(instance)

    def _split(self, instance: _Instance) -> None:
        while instance.to_split and instance.splitting < self._world.processes:
            job = instance.to_split.popleft()
            instance.splitting += 1
            took_s = job.seconds / self._world.split_speed
            self._at(self._now_s + took_s, partial(self._split_is_done, instance, job))

    def _split_is_done(self, instance: _Instance, job: Recording) -> None:
        instance.splitting -= 1
        self._at(self._now_s + self._world.upload_s, partial(self._commit, instance, job))
        if not instance.ended:
            self._split(instance)

    def _commit(self, instance: _Instance, job: Recording) -> None:
        if instance.ended:
            return
        instance.held.remove(job)
        self._run.done += 1
        self._receive(instance)
        if not instance.held:
            self._start_idle_timer(instance)

    # An instance

    def _launch(self) -> None:
        for _ in range(self._desired - len(self._fleet)):
            instance = _Instance(self._now_s)
            self._fleet.append(instance)
            self._at(self._now_s + self._world.boot_s, partial(self._serve, instance))

    def _serve(self, instance: _Instance) -> None:
        if instance.ended:
            return
        instance.in_service = instance.receives = True
        if self._world.interruptions_an_hour:
            lives_s = self._random.expovariate(self._world.interruptions_an_hour / 3600)
            self._at(self._now_s + lives_s, partial(self._notice, instance))
        self._receive(instance)
        if not instance.held:
            self._start_idle_timer(instance)

    def _start_idle_timer(self, instance: _Instance) -> None:
        instance.idle_since_s = self._now_s
        self._at(self._now_s + self._rules.idle_timeout_s, partial(self._end_if_idle, instance, self._now_s))

    def _end_if_idle(self, instance: _Instance, idle_since_s: float) -> None:
        if instance.ended or instance.held or instance.idle_since_s != idle_since_s:
            return
        self._end(instance)
        self._desired -= 1
        self._run.changes.append((self._now_s, "idle", self._desired))

    def _notice(self, instance: _Instance) -> None:
        instance.receives = False
        self._at(self._now_s + self._world.notice_s, partial(self._interrupt, instance))

    def _interrupt(self, instance: _Instance) -> None:
        if not instance.ended:
            self._run.interrupted += 1
            self._end(instance)
            self._launch()

    def _end(self, instance: _Instance) -> None:
        instance.ended, instance.receives = True, False
        self._fleet.remove(instance)
        self._instance_s += self._now_s - instance.launched_s
        for download in instance.downloads.values():
            self._link.cancel(self._now_s, download)
        self._run.released += len(instance.held)
        self._visible.extendleft(instance.held)
        self._offer()

    # The policies

    def _minute(self) -> None:
        inservice = sum(instance.in_service for instance in self._fleet)
        inflight = sum(len(instance.held) for instance in self._fleet)
        alive_s = sum(self._now_s - instance.launched_s for instance in self._fleet)
        usd = (self._instance_s + alive_s) / 3600 * INSTANCE_HOUR_USD
        self._run.minutes.append(Minute(self._now_s, len(self._visible), inflight, self._desired, inservice, usd))
        metrics = self._metrics()
        self._wake(evaluate(self._rules.wake, metrics))
        self._track(evaluate(self._rules.backlog, metrics), metrics)
        if self._arrivals or self._visible or self._fleet:
            self._at(self._now_s + MINUTE_S, self._minute)

    def _metrics(self) -> Mapping[str, float | None]:
        """Return the metrics that CloudWatch has by now; None for those that it does not have yet."""
        delay = ceil(self._world.metric_delay_s / MINUTE_S)
        known = self._run.minutes[-1 - delay] if len(self._run.minutes) > delay else None
        queue_known = known if self._now_s >= self._world.first_metric_delay_s else None
        return {
            "visible": None if queue_known is None else queue_known.visible,
            "inflight": None if queue_known is None else queue_known.inflight,
            "desired": None if known is None else known.desired,
            "inservice": None if known is None else known.inservice,
        }

    def _wake(self, value: float | None) -> None:
        if value is None or value <= self._rules.wake_threshold:
            return
        adjustment = self._rules.step(value - self._rules.wake_threshold)
        if self._rules.adjustment == "ExactCapacity":
            self._set_desired(adjustment, "step")
        else:  # instances that warm up count towards the adjustment, as an earlier alarm has added them
            warm = sum(self._now_s - instance.launched_s >= self._rules.warmup_s for instance in self._fleet)
            self._set_desired(max(self._desired, warm + adjustment), "step")

    def _track(self, value: float | None, metrics: Mapping[str, float | None]) -> None:
        inservice = metrics["inservice"]
        if value is None or not inservice:
            return
        self._above = self._above + 1 if value > self._rules.target else 0
        enough = ceil(inservice * value / self._rules.target)
        if self._above >= TRACKING_PERIODS:
            self._set_desired(max(self._desired, enough), "tracking")
        elif self._rules.scales_in and enough < self._desired:
            self._set_desired(enough, "tracking")

    def _set_desired(self, capacity: int, reason: str) -> None:
        capacity = min(capacity, self._rules.max_size)
        if capacity == self._desired:
            return
        self._desired = capacity
        self._run.changes.append((self._now_s, reason, capacity))
        if not self._rules.protected:
            for instance in self._fleet[: max(0, len(self._fleet) - capacity)]:
                self._run.busy_ended += bool(instance.held)
                self._end(instance)
        self._launch()
