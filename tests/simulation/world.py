"""What the template does not decide, and what comes of a run."""

from dataclasses import dataclass, field

MINUTE_S = 60.0

INSTANCE_HOUR_USD = 0.045 + 0.005 + 40 * 0.08 / 730
"""Spot price of two vCPUs, a public address, 40 GB of gp3: us-east-1."""


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """What a job is about."""

    seconds: float
    megabits: float


@dataclass(frozen=True, kw_only=True)
class World:
    """What the template does not decide."""

    link_mbps: float
    connection_mbps: float = 3.5
    downloads: int = 12
    processes: int = 2
    split_speed: float = 400.0
    """Times real time, of one process; 670 on a core of its own (docs/engine.md), and a vCPU is half of one."""
    upload_s: float = 3.0
    boot_s: float = 120.0
    metric_delay_s: float = MINUTE_S
    first_metric_delay_s: float = MINUTE_S
    """Of a queue that nobody used before: up to 15 minutes."""
    interruptions_an_hour: float = 0.05
    """Of one instance."""
    notice_s: float = 100.0
    """EC2 gives 120 s, of which the worker keeps 20."""

    @property
    def slots(self) -> int:
        """Jobs that an instance holds, as the worker's own default."""
        return 2 * self.processes + self.downloads


@dataclass(frozen=True, slots=True)
class Minute:
    """How things stood."""

    at_s: float
    visible: int
    inflight: int
    desired: int
    inservice: int
    usd: float


@dataclass(slots=True)
class Run:
    """What came of it."""

    minutes: list[Minute] = field(default_factory=list)
    changes: list[tuple[float, str, int]] = field(default_factory=list)
    """When the desired capacity changed, by what, and to what."""
    done: int = 0
    given_back: int = 0
    interrupted: int = 0
    busy_ended: int = 0
    """Instances that a policy ended while they held jobs."""
