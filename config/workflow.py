"""Settings of the workflow engine."""

from dataclasses import dataclass
from typing import Final, Literal

from config.section import Section, setting

Profile = Literal["high-throughput", "low-latency"]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a profile stands for, where the settings say nothing else."""

    passivate_after_s: float
    chunk_events: int
    transaction_commands: int


# The tuning table of the reference: passivation after 2 h or 30 min, history cut at 200 or 50 events.
PROFILES: Final[dict[Profile, Tuning]] = {
    "high-throughput": Tuning(passivate_after_s=7_200, chunk_events=200, transaction_commands=500),
    "low-latency": Tuning(passivate_after_s=1_800, chunk_events=50, transaction_commands=100),
}


class WorkflowSettings(Section):
    """How executions are decided, kept and given to executors."""

    profile: Profile = setting(
        "high-throughput",
        description="What passivate_after_s, chunk_events and transaction_commands are where they are not set:"
        " high-throughput 7200, 200, 500; low-latency 1800, 50, 100. Partitions are kafka.partitions under both.",
    )
    local_tasks: bool = setting(
        default=True,
        description="Carry out tasks of the queue `default` in the coordinator itself; off, all of them go to"
        " workflow.tasks.default and are carried out by workers.",
    )
    local_task_slots: int = setting(
        512, ge=1, le=10_000, unit="tasks", description="Tasks that one coordinator carries out at once."
    )
    local_backlog: int = setting(
        4_000,
        ge=1,
        le=10_000_000,
        unit="tasks",
        description="Tasks that may wait for a slot before new commands are taken slowly instead of at once.",
    )
    cache_executions: int = setting(
        20_000,
        ge=1,
        le=10_000_000,
        unit="executions",
        description="Live executions kept decoded in memory, one coordinator; the others are read when something"
        " happens to them.",
    )
    cache_bytes: int = setting(
        268_435_456,
        ge=1_048_576,
        le=1 << 40,
        unit="bytes",
        description="Histories, as JSON, whose executions are kept decoded in memory, one coordinator; decoded they"
        " take a few times as much.",
    )
    passivate_after_s: float | None = setting(
        None,
        gt=0,
        le=31_536_000,
        unit="s",
        description="An execution to which nothing happens for so long leaves the memory; null: as the profile says.",
    )
    chunk_bytes: int = setting(
        8_192,
        ge=1_024,
        le=524_288,
        unit="bytes",
        description="History of a live execution that is written anew with each of its decisions; more is sealed.",
    )
    chunk_events: int | None = setting(
        None,
        ge=1,
        le=100_000,
        unit="events",
        description="Events after which the history is sealed even if it is short; null: as the profile says.",
    )
    transaction_commands: int | None = setting(
        None,
        ge=1,
        le=100_000,
        unit="commands",
        description="Commands decided in one transaction of a partition; null: as the profile says.",
    )
    transactions_in_flight: int = setting(
        2,
        ge=1,
        le=64,
        unit="transactions",
        description="Transactions of a partition on their way to the broker; commands that come meanwhile wait and"
        " are decided together.",
    )
    input_bytes: int = setting(
        524_288, ge=1, le=8 << 20, unit="bytes", description="Largest input of an execution, as JSON."
    )
    result_bytes: int = setting(
        524_288, ge=1, le=8 << 20, unit="bytes", description="Largest result of a task, as JSON."
    )
    retention_s: float = setting(
        86_400.0,
        gt=0,
        le=3_153_600_000,
        unit="s",
        description="How long an execution that has ended can be retried, and its id is known as used.",
    )
    sweep_executions: int = setting(
        500,
        ge=1,
        le=100_000,
        unit="executions",
        description="Ended executions looked at in one step of the search for those past retention_s.",
    )
    timer_lookahead_s: float = setting(
        60.0, gt=0, le=86_400, unit="s", description="Timers due within this are kept in memory, the others on disk."
    )
    timers_in_memory: int = setting(
        10_000, ge=1, le=10_000_000, unit="timers", description="Most timers of a partition read into memory at once."
    )
