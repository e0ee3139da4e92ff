"""The role `worker`: the transform stage with its tables, the sinks, and the task queues."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from pathlib import Path
from typing import Any, TypeVar

from agents.lag import LagBoard
from agents.sink import DEAD_LETTER_KEEP_BYTES, Gathering, SinkState, sink
from agents.stage import Stage
from agents.transform import Terms, Transform
from app import metrics
from app.adapters.changelog_reader import KafkaChangelogReader
from app.adapters.connection import security_options
from app.adapters.device_registry import DeviceRegistry
from app.adapters.faust_app import App, Delivered, running
from app.adapters.lease import Lease
from app.adapters.producer import BatchProducer
from app.adapters.rocks import RocksFolder, RocksLimits
from app.adapters.sinks import build
from app.adapters.sinks.rows import rows_of
from app.adapters.transport import TransportLimits
from app.domain.backoff import BackoffPolicy
from app.domain.dedupe import DedupeSpec
from app.domain.reading import Limits
from app.domain.watchdog import Progress
from app.domain.window import RollupSpec, Rung
from app.errors import EnvironmentError_
from app.http.health import Check
from app.ports import Clock
from app.roles.context import Context, first_of, raise_crash, stopped
from app.roles.queues import run_queues
from app.rules import compile_section
from config.settings import Settings
from config.sinks import SinkSettings
from config.topics import DEVICE_TELEMETRY, TRANSFORM_STATE, TopicSpec
from tables.partition import SingleTrip, TablePartition
from tables.restore import Place, open_partition

T = TypeVar("T")

LAG_INTERVAL_S = 1.0
LOCK_PATIENCE_S = 15.0
LOCK_RETRY_S = 0.05
# A kept key and kept headers in base64, the detail, and the fields' names.
LETTER_OVERHEAD_BYTES = 40_000


async def run_worker(context: Context) -> None:
    """Run the transform stage, the task queues and every sink until stop; one that fails ends the process."""
    async with asyncio.TaskGroup() as parts:
        parts.create_task(run_transform(context), name="transform")
        parts.create_task(run_queues(context), name="task queues")
        for target in context.settings.sinks.targets:
            if target.enabled:
                parts.create_task(run_sink(context, target), name=f"sink {target.name}")


# ---- transform ----


def terms_of(settings: Settings, registry: Container[str] | None = None) -> Terms:
    """The terms that settings mean; `registry` holds the devices that a strict transform accepts.

    Raises `ConfigError` for an expression that does not compile.
    """
    transform, rollup = settings.transform, settings.rollup
    return Terms(
        limits=Limits(
            # A late sample is written again, with more fields: it must fit into one request.
            max_value_bytes=min(transform.max_value_bytes, settings.producer.max_request_bytes // 2),
            max_future_ms=transform.max_future_ms,
            max_metrics=transform.max_metrics,
            max_name_length=transform.max_name_length,
            max_abs_value=transform.max_abs_value,
            known_devices=registry if transform.strict_registry else None,
        ),
        spec=RollupSpec(
            rungs=tuple(Rung(rung.size_ms, rung.advance_ms, rung.emit) for rung in rollup.ladder),
            grace_ms=rollup.grace_ms,
            idle_timeout_ms=rollup.idle_timeout_ms,
            emit=rollup.emit,
            dedupe=DedupeSpec(
                transform.dedupe_sessions, transform.dedupe_missing_ranges, transform.reorder_horizon_seqs
            ),
        ),
        rules=compile_section(settings.signals),
        dead_letter_keep_bytes=min(transform.dead_letter_keep_bytes, keepable(settings.producer.max_request_bytes)),
        cache_devices=max(1, transform.state_cache_devices // settings.kafka.partitions),
        signals_enabled=settings.signals.enabled,
        silence_tick_ms=settings.signals.tick_interval_ms,
    )


def keepable(request_bytes: int) -> int:
    """Bytes of a refused value whose dead letter, in base64 and with all else it tells, fits into one request."""
    return max(0, (request_bytes - LETTER_OVERHEAD_BYTES) // 4 * 3)


def tick_s(settings: Settings) -> float:
    """Between two ticks: whichever is looked for more often, idle devices or silent ones."""
    return min(settings.rollup.idle_tick_ms, settings.signals.tick_interval_ms) / 1000


class LiveTerms:
    """The terms in force: made again only when the settings were replaced."""

    def __init__(self, current: Callable[[], Settings], registry: Container[str] | None = None) -> None:
        self._current = current
        self._registry = registry
        self._settings = current()
        self._terms = terms_of(self._settings, registry)

    def __call__(self) -> Terms:
        """The terms now."""
        settings = self._current()
        if settings is not self._settings:
            self._terms = terms_of(settings, self._registry)
            self._settings = settings
        return self._terms


async def run_transform(context: Context) -> None:
    """(1) join the group (2) restore and decide (3) on stop: drain, commit, leave (4) close the tables.

    A strict transform knows every device before (1).
    """
    kafka = context.settings.kafka
    registry = DeviceRegistry(kafka, context.bootstrap, context.settings.http.read_model)
    terms = LiveTerms(context.current, registry)
    lease = Lease(context.clock, kafka.session_timeout_ms / 1000)
    async with context.producer("transform") as producer:
        stage = Stage(
            "transform",
            lambda partition: open_tables(context, producer, lease, TRANSFORM_STATE, partition),
            lambda tables: Transform(tables, terms, context.clock.now_ms()),
            context.clock,
            lambda: tick_s(context.current()),
        )
        app = context.faust_app("transform")
        app.add_agent("transform", DEVICE_TELEMETRY.name, lambda stream: _feed(stream, stage))
        follow_assignment(app, DEVICE_TELEMETRY.name, stage, lease)
        _watch(context, app, stage)
        knowing = asyncio.create_task(_keep_registry(context, registry), name="device registry")
        try:
            if context.current().transform.strict_registry:
                whole = asyncio.create_task(registry.complete(), name="device registry complete")
                await first_of(whole, stopped(context.stop), asyncio.shield(knowing))
            async with running(app):
                await first_of(
                    stage.failed,
                    asyncio.create_task(raise_crash(app), name="transform crash"),
                    stopped(context.stop),
                    asyncio.create_task(lease.keep(), name="lease"),
                    asyncio.create_task(export_lag(app), name="lag"),
                    knowing,
                )
        finally:
            context.health.unwatch("transform")
            knowing.cancel()
            await asyncio.gather(knowing, return_exceptions=True)
            await stage.close()


async def _keep_registry(context: Context, registry: DeviceRegistry) -> None:
    """Follow the device metadata from the first time on that the settings are strict."""
    wanted = asyncio.Event()

    def look(settings: Settings) -> None:
        if settings.transform.strict_registry:
            wanted.set()

    leave = context.subscribe(lambda _, new: look(new))
    try:
        look(context.current())
        await wanted.wait()
        await registry.run(context.stop)
        await context.stop.wait()
    finally:
        leave()


async def _feed(stream: Any, stage: Stage) -> None:
    async for event in stream.noack().events():
        stage.feed(Delivered(event))


async def open_tables(
    context: Context,
    producer: BatchProducer,
    lease: Lease,
    changelog: TopicSpec,
    partition: int,
    *,
    single_trip: bool = False,
) -> TablePartition:
    """Open, restore and take over one partition of the tables of a stage, `<stage>.state` its changelog.

    `single_trip` is for the sake of latency: outputs are written twice (docs/decisions/0011).
    """
    stage = changelog.name.partition(".")[0]
    tables = context.settings.tables
    folder = RocksFolder(
        RocksLimits(
            block_cache_bytes=tables.block_cache_bytes,
            write_buffer_bytes=tables.write_buffer_bytes,
            max_open_files=tables.max_open_files,
            sync_writes=tables.sync_writes,
        )
    )
    reader = KafkaChangelogReader(
        context.bootstrap, tables.restore_batch_records, **security_options(context.settings.kafka)
    )
    place = Place(Path(tables.directory) / stage / str(partition), changelog.name, partition)
    written = context.settings.producer
    # Without idempotence a batch may overtake the one before it that was refused.
    one_trip = SingleTrip(min(SingleTrip().bytes, written.max_request_bytes // 2)) if written.idempotence else None
    opened, restored = await _insist(
        lambda: open_partition(
            place,
            folder,
            reader,
            producer,
            lease.held,
            context.clock.now_ms,
            single_trip=one_trip if single_trip else None,
        ),
        context.clock,
    )
    metrics.TABLE_RESTORED.labels(stage).inc(restored.records)
    metrics.TABLE_RESTORE_SECONDS.labels(stage).observe(restored.seconds)
    return opened


async def _insist(opening: Callable[[], Awaitable[T]], clock: Clock) -> T:
    """A process on this machine that gives a partition up needs a moment to let go of its folder."""
    patience_s = clock.monotonic_s() + LOCK_PATIENCE_S
    while True:
        try:
            return await opening()
        except EnvironmentError_ as error:
            if not error.facts.get("locked") or clock.monotonic_s() >= patience_s:
                raise
        await asyncio.sleep(LOCK_RETRY_S)


def follow_assignment(app: App, topic: str, stage: Stage, lease: Lease) -> None:
    """Open and close the stage's partitions as the group assigns them."""
    last_generation = [-1]

    async def on_assigned(_: Any, assigned: Any, **__: Any) -> None:
        generation = app.consumer_generation_id
        kept = generation == last_generation[0] + 1 and lease.held()
        last_generation[0] = generation
        lease.renew()
        await stage.assigned([tp.partition for tp in assigned if tp.topic == topic], kept=kept)

    async def on_revoked(_: Any, revoked: Any, **__: Any) -> None:
        await stage.revoked([tp.partition for tp in revoked if tp.topic == topic])

    app.on_partitions_assigned.connect(on_assigned, weak=False)
    app.on_partitions_revoked.connect(on_revoked, weak=False)


def _watch(context: Context, app: App, stage: Stage) -> None:
    def joined() -> Check:
        partitions = ", ".join(map(str, stage.partitions)) or "none"
        return Check(app.has_joined and stage.ready, f"partitions {partitions}")

    context.health.add("transform", joined)
    context.health.add("transform restored", joined, "startup")
    # Records wait while tables are restored, which may take long and is not a stall: killed, it would begin again.
    context.health.watch("transform", lambda: Progress(sum(app.lags().values()) if stage.ready else 0, stage.processed))


async def export_lag(app: App, sink: str | None = None) -> None:
    """Keep `stream_lag_records`, and of a sink `sink_lag_records`, up to date."""
    try:
        while True:
            lags = {(tp.topic, tp.partition): lag for tp, lag in app.lags().items()}
            _board.show(app.conf.id, lags)
            if sink is not None:
                metrics.SINK_LAG.labels(sink).set(sum(lags.values()))
            await asyncio.sleep(LAG_INTERVAL_S)
    finally:
        _board.show(app.conf.id, {})


_board = LagBoard()


# ---- sinks ----


async def run_sink(context: Context, target: SinkSettings) -> None:
    """Run one sink in a consumer group of its own, so that it holds up nothing but itself."""
    async with context.producer(f"sink-{target.name}") as producer:
        app = context.faust_app(
            f"sink-{target.name}", TransportLimits(outstanding_records=max(2 * target.batch_size, 5_000))
        )
        destination = build(target, clock=context.clock, kafka=context.producer_limits("sink"))
        states: list[SinkState] = [SinkState(target.name, "opening")]

        async def body(stream: Any) -> None:
            await sink(
                _batches(stream),
                sink=destination,
                publisher=producer,
                to_rows=rows_of(target.topics, min_window_ms=target.min_window_ms),
                policy=BackoffPolicy(target.retry_first_ms, target.retry_max_ms),
                clock=context.clock,
                on_state=lambda state: states.__setitem__(0, state),
                keep_bytes=min(DEAD_LETTER_KEEP_BYTES, keepable(context.settings.producer.max_request_bytes)),
                gathering=Gathering(target.batch_size, target.batch_bytes, target.flush_interval_ms),
            )

        app.add_agent(f"sink-{target.name}", target.topics, body)
        name = f"sink {target.name}"
        context.health.add(name, lambda: _sink_check(app, states[0]))
        lagging = asyncio.create_task(export_lag(app, target.name), name=f"{name} lag")
        try:
            async with running(app):
                crashing = asyncio.create_task(raise_crash(app), name=f"{name} crash")
                await first_of(crashing, stopped(context.stop), lagging)
        finally:
            await destination.close()


def _sink_check(app: App, state: SinkState) -> Check:
    """A sink that retries keeps the process ready: it blocks only itself, and its lag shows it."""
    lag = sum(app.lags().values())
    detail = f"{state.phase}, lag {lag}" + (f", attempt {state.attempt}: {state.cause}" if state.cause else "")
    return Check(app.has_joined, detail)


async def _batches(stream: Any) -> AsyncIterator[Delivered]:
    async for event in stream.noack().events():
        yield Delivered(event)
