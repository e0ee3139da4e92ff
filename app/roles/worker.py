"""The role `worker`: the transform stage with its tables, the sinks, and the task queues."""

import asyncio
from collections.abc import AsyncIterator, Callable, Container
from typing import Any, TypeVar

from agents.lag import LagBoard
from agents.sink import DEAD_LETTER_KEEP_BYTES, Gathering, SinkState, sink
from agents.stage import Stage
from agents.transform import Terms, Transform
from app import metrics
from app.adapters.device_registry import DeviceRegistry
from app.adapters.faust_app import App, Delivered, running
from app.adapters.sinks import build
from app.adapters.sinks.rows import rows_of
from app.adapters.transport import TransportLimits
from app.domain.backoff import BackoffPolicy
from app.domain.dedupe import DedupeSpec
from app.domain.reading import Limits
from app.domain.watchdog import Progress
from app.domain.window import RollupSpec, Rung
from app.http.health import Check
from app.roles.context import Context, first_of, raise_crash, stopped
from app.roles.queues import run_queues
from app.roles.rounds import ask_when_near, catch_up, follow_assignment, new_lease
from app.roles.sink_watch import SinkWatch
from app.roles.tables import stage_tables
from app.rules import compile_section
from app.task_ends import Parts
from config.settings import Settings
from config.sinks import SinkSettings
from config.topics import DEVICE_TELEMETRY, TRANSFORM_STATE

T = TypeVar("T")

LAG_INTERVAL_S = 1.0
LOCK_PATIENCE_S = 15.0
LOCK_RETRY_S = 0.05
# A kept key and kept headers in base64, the detail, and the fields' names.
LETTER_OVERHEAD_BYTES = 40_000


async def run_worker(context: Context) -> None:
    """Run the transform stage, the task queues and every sink until stop; one that fails ends the process."""
    async with Parts() as parts:
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
    """(1) catch up and join the group (2) restore and decide (3) on stop: drain, commit, leave (4) close the tables.

    A strict transform knows every device before (1).
    """
    registry = DeviceRegistry(context.settings.kafka, context.bootstrap, context.settings.http.read_model)
    terms = LiveTerms(context.current, registry)
    lease = new_lease(context)
    async with (
        context.producer("transform") as producer,
        stage_tables(context, producer, lease, DEVICE_TELEMETRY, TRANSFORM_STATE) as tables,
    ):
        stage = Stage(
            "transform",
            tables.open,
            lambda opened: Transform(opened, terms, context.clock.now_ms()),
            context.clock,
            lambda: tick_s(context.current()),
        )
        app = context.faust_app("transform")
        app.add_agent("transform", DEVICE_TELEMETRY.name, lambda stream: _feed(stream, stage))
        follow_assignment(app, DEVICE_TELEMETRY.name, stage, lease, tables)
        _watch(context, app, stage)
        knowing = asyncio.create_task(_keep_registry(context, registry), name="device registry")
        try:
            if context.current().transform.strict_registry:
                whole = asyncio.create_task(registry.complete(), name="device registry complete")
                await first_of(whole, stopped(context.stop), asyncio.shield(knowing))
            await first_of(asyncio.create_task(catch_up(context, app, tables), name="catch up"), stopped(context.stop))
            if context.stop.is_set():
                return
            async with running(app):
                await first_of(
                    stage.failed,
                    asyncio.create_task(raise_crash(app), name="transform crash"),
                    stopped(context.stop),
                    asyncio.create_task(lease.keep(), name="lease"),
                    asyncio.create_task(export_lag(app), name="lag"),
                    asyncio.create_task(ask_when_near(app, tables), name="standbys near"),
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
        destination = SinkWatch(
            build(target, clock=context.clock, kafka=context.producer_limits("sink")),
            context.clock,
            retry_s=target.retry_max_ms / 1000,
            flush_s=target.flush_interval_ms / 1000,
        )

        async def body(stream: Any) -> None:
            await sink(
                _batches(stream, destination),
                sink=destination,
                publisher=producer,
                to_rows=rows_of(target.topics, min_window_ms=target.min_window_ms),
                policy=BackoffPolicy(target.retry_first_ms, target.retry_max_ms),
                clock=context.clock,
                on_state=destination.on_state,
                keep_bytes=min(DEAD_LETTER_KEEP_BYTES, keepable(context.settings.producer.max_request_bytes)),
                gathering=Gathering(target.batch_size, target.batch_bytes, target.flush_interval_ms),
            )

        app.add_agent(f"sink-{target.name}", target.topics, body)
        name = f"sink {target.name}"
        context.health.add(name, lambda: _sink_check(app, destination.state))
        context.health.watch(name, lambda: destination.progress(sum(app.lags().values())))
        lagging = asyncio.create_task(export_lag(app, target.name), name=f"{name} lag")
        try:
            async with running(app):
                crashing = asyncio.create_task(raise_crash(app), name=f"{name} crash")
                await first_of(crashing, stopped(context.stop), lagging)
        finally:
            context.health.unwatch(name)
            await destination.close()


def _sink_check(app: App, state: SinkState) -> Check:
    """A sink that retries keeps the process ready: it blocks only itself, and its lag shows it."""
    lag = sum(app.lags().values())
    detail = f"{state.phase}, lag {lag}" + (f", attempt {state.attempt}: {state.cause}" if state.cause else "")
    return Check(app.has_joined, detail)


async def _batches(stream: Any, watch: SinkWatch) -> AsyncIterator[Delivered]:
    async for event in stream.noack().events():
        watch.took()
        yield Delivered(event)
