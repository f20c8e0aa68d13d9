"""Inputs of a simulation that the template does not decide, and its results."""

from dataclasses import dataclass, field

MINUTE_S = 60.0

INSTANCE_HOUR_USD = 0.045 + 0.005 + 40 * 0.08 / 730
"""Spot price of two vCPUs, a public address, 40 GB of gp3: us-east-1."""


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """The recording of a job."""

    seconds: float
    megabits: float


@dataclass(frozen=True, kw_only=True)
class World:
    """Link, worker, delays and interruptions."""

    link_mbps: float
    connection_mbps: float = 3.5
    downloads: int = 12
    processes: int = 2
    split_speed: float = 400.0
    """Hours of audio that a process splits in an hour. 670 on a whole core (docs/engine.md); a vCPU is half of one."""
    upload_s: float = 3.0
    boot_s: float = 120.0
    metric_delay_s: float = MINUTE_S
    first_metric_delay_s: float = MINUTE_S
    """Of a queue that was idle before: up to 15 minutes."""
    interruptions_an_hour: float = 0.05
    """Spot interruptions per instance."""
    notice_s: float = 100.0
    """From the notice to the end of the drain: EC2 gives 120 s, of which the worker reserves 20."""

    @property
    def slots(self) -> int:
        """Jobs that an instance holds, by the worker's default."""
        return 2 * self.processes + self.downloads


@dataclass(frozen=True, slots=True)
class Minute:
    """The state at one minute."""

    at_s: float
    visible: int
    inflight: int
    desired: int
    inservice: int
    usd: float


@dataclass(slots=True)
class Run:
    """The results."""

    minutes: list[Minute] = field(default_factory=list)
    changes: list[tuple[float, str, int]] = field(default_factory=list)
    """Changes of the desired capacity: time, reason, new value."""
    done: int = 0
    released: int = 0
    interrupted: int = 0
    busy_ended: int = 0
    """Instances that a policy ended while they held jobs."""
