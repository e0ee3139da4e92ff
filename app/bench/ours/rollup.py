"""Our rollup: the transform stage itself with its tables, one rung of ten seconds and no signal rules.

The stage, its tables, changelog, deduplication and validation are those of the service; only the topics
are the run's own, the ladder has the one rung of the comparison, and every partition is here.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mode.loop

mode.loop.use("uvloop")

from agents.stage import Logic, Stage  # noqa: E402 - the event loop is chosen first
from agents.transform import Terms, Transform  # noqa: E402
from app.adapters import collector, topics_admin  # noqa: E402
from app.adapters.cel import compile_cel  # noqa: E402
from app.adapters.changelog_reader import KafkaChangelogReader  # noqa: E402
from app.adapters.clock import SystemClock  # noqa: E402
from app.adapters.faust_app import App, Delivered, new_app, running  # noqa: E402
from app.adapters.lease import Lease  # noqa: E402
from app.adapters.producer import BatchProducer, ProducerLimits  # noqa: E402
from app.adapters.rocks import RocksFolder, RocksLimits  # noqa: E402
from app.domain.reading import Limits  # noqa: E402
from app.domain.signals import compile_rules  # noqa: E402
from app.domain.window import RollupSpec, Rung  # noqa: E402
from app.ports import InRecord, OutRecord  # noqa: E402
from app.roles.context import first_of, raise_crash  # noqa: E402
from app.roles.rounds import follow_assignment  # noqa: E402
from config.kafka import KafkaSettings  # noqa: E402
from config.topics import DEVICE_ROLLUPS, TRANSFORM_STATE, TopicSpec  # noqa: E402
from config.transform import TransformSettings  # noqa: E402
from tables.partition import Changes, SingleTrip, TablePartition  # noqa: E402
from tables.restore import Place, open_partition  # noqa: E402

HOUR_MS = 3_600_000
TICK_S = 0.5


class RunsProducer(BatchProducer):
    """The producer with rollups on the run's own topic. Late, dead and signal records have none: they fail the run."""

    def __init__(self, limits: ProducerLimits, output: str) -> None:
        super().__init__(limits)
        self._output = output

    async def publish(self, records: Sequence[OutRecord]) -> None:
        output = self._output
        await super().publish([r._replace(topic=output) if r.topic == DEVICE_ROLLUPS.name else r for r in records])


class Counted:
    """The stage's logic, which says when a fifth of the input has been read."""

    def __init__(self, logic: Logic, progress: list[int], mark_at: int) -> None:
        self._logic = logic
        self._progress = progress
        self._mark_at = mark_at

    def take(self, records: Sequence[InRecord], now_ms: int, *, behind: bool) -> Changes:
        changes = self._logic.take(records, now_ms, behind=behind)
        before = self._progress[0]
        self._progress[0] = before + len(records)
        if before < self._mark_at <= self._progress[0]:
            print(json.dumps({"event": "mark", "at_ms": time.time() * 1000}), flush=True)
        return changes

    def tick(self, now_ms: int) -> Changes | None:
        return self._logic.tick(now_ms)


def terms(window_ms: int) -> Terms:
    """The service's defaults, but for the one rung without grace that all sides compute."""
    defaults = TransformSettings()
    return Terms(
        limits=Limits(),
        spec=RollupSpec(rungs=(Rung(window_ms),), grace_ms=0, idle_timeout_ms=HOUR_MS, emit="on_final"),
        rules=compile_rules((), compile_cel),
        dead_letter_keep_bytes=defaults.dead_letter_keep_bytes,
        cache_devices=defaults.state_cache_devices,
    )


def new_stage(spec: dict[str, Any], producer: BatchProducer, lease: Lease) -> Stage:
    reader = KafkaChangelogReader(spec["bootstrap"])
    clock, folder, by, progress = SystemClock(), RocksFolder(RocksLimits()), terms(spec["window_ms"]), [0]

    async def opened(partition: int) -> TablePartition:
        place = Place(Path("state") / str(partition), changelog_of(spec), partition)
        # As the product: app/roles/tables.py.
        trip = SingleTrip(producer.limits.record_bytes // 2)
        tables, _ = await open_partition(place, folder, reader, producer, lease.held, clock.now_ms, single_trip=trip)
        return tables

    def logic(tables: TablePartition) -> Logic:
        return Counted(Transform(tables, lambda: by, clock.now_ms()), progress, spec["mark_at_records"])

    return Stage("transform", opened, logic, clock, lambda: TICK_S)


def changelog_of(spec: dict[str, Any]) -> str:
    return f"{spec['group']}-state"


def build(spec: dict[str, Any], stage: Stage, lease: Lease) -> App:
    app = new_app(spec["group"], spec["bootstrap"])

    async def rollup(stream: Any) -> None:
        async for event in stream.noack().events():
            stage.feed(Delivered(event))

    app.add_agent("rollup", spec["input"], rollup)
    follow_assignment(app, spec["input"], stage, lease)
    return app


async def run(spec: dict[str, Any]) -> None:
    state = TRANSFORM_STATE
    changelog = TopicSpec(
        changelog_of(spec), state.key, state.schema, state.cleanup, state.retention_ms, spec["partitions"], state.extra
    )
    await topics_admin.ensure_topics(spec["bootstrap"], [changelog], KafkaSettings())
    collector.widen()  # as every process of the service does
    limits = ProducerLimits(spec["bootstrap"], batch_records=4_000, buffer_records=200_000)
    async with RunsProducer(limits, spec["output"]) as producer:
        lease = Lease(SystemClock(), KafkaSettings().session_timeout_ms / 1000)
        stage = new_stage(spec, producer, lease)
        app = build(spec, stage, lease)
        try:
            async with running(app):
                print(json.dumps({"event": "ready"}), flush=True)
                crashing = asyncio.create_task(raise_crash(app), name="crash")
                keeping = asyncio.create_task(lease.keep(), name="lease")
                await first_of(stage.failed, crashing, keeping)
        finally:
            await stage.close()


if __name__ == "__main__":
    asyncio.run(run(json.loads(Path(sys.argv[-1]).read_text())))
