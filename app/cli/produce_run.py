"""The run of `headrace produce`: one producer, the fleet or a replay on it, and what is shown meanwhile."""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, TextIO, cast

from agents.generate import GenerateLimits, commands, fleet_of, generate
from agents.generate import limits_of as fleet_limits
from agents.ledger import Books
from agents.replay import limits_of as replay_limits
from agents.replay import replay
from app import log, metrics
from app.adapters.clock import SystemClock
from app.adapters.csv_replay import Recording
from app.adapters.producer import BatchProducer
from app.adapters.reload import Reloader
from app.adapters.topic_reader import TopicReader
from app.adapters.topics_admin import ensure_topics, wait_for_broker
from app.domain.ledger import Ledger
from app.errors import BrokerUnavailable, EnvironmentError_, HeadraceError
from app.http.health import HealthRegistry
from app.lifecycle import exit_now, on_stop_signals
from app.roles.context import Context, first_of
from app.roles.spooled import Spooled, spooled
from app.supervisor_screen import AboveLive, Screen, ledger_line, quantile
from config.live import LiveSettings
from config.load import Loaded
from config.topics import DEVICE_COMMANDS, DEVICE_TELEMETRY, TELEMETRY_TOPICS

logger = logging.getLogger(__name__)

RETRY_S = 1.0
LIVE_LINE_S = 0.5
PLAIN_LINE_S = 5.0


class Job(NamedTuple):
    """What to produce; `recording` None is the fleet, `seconds` None until a signal, `metrics_port` None no port."""

    loaded: Loaded
    recording: Recording | None
    seconds: float | None
    metrics_port: int | None
    as_json: bool


@dataclass(slots=True)
class _Run:
    """One run under way."""

    job: Job
    live: LiveSettings
    context: Context
    books: Books
    screen: Screen
    replayed_whole: bool = True


async def run(job: Job) -> int:
    """Produce until the end of the recording, the given time or a signal; the exit code.

    (1) wait for the broker and declare the topics; (2) produce; (3) on stop the last samples, (4) every
    acknowledgement, (5) the ledger.
    """
    stop = asyncio.Event()
    on_stop_signals(stop, lambda: exit_now(130))
    live = LiveSettings(job.loaded)
    screen = Screen(sys.stderr if job.as_json else sys.stdout)
    settings = job.loaded.settings
    stream = cast(TextIO, AboveLive(screen)) if screen.is_terminal else sys.stderr
    log.configure(settings.log, role="produce", stream=stream)
    health = HealthRegistry(frozenset({"producer"}), log.release())
    context = Context(settings, lambda: live.current, health, stop, SystemClock(), live.subscribe)
    one = _Run(job, live, context, Books(DEVICE_TELEMETRY.name), screen)
    if not await _prepared(context, screen):  # 1
        return 130
    try:
        async with AsyncExitStack() as beside:
            if job.metrics_port is not None:
                await beside.enter_async_context(_metrics_served(job.metrics_port, one))
            await _produce(one)  # 2, 3, 4
    finally:
        screen.close()
        code = _last_words(one)  # 5
    return code


async def _prepared(context: Context, screen: Screen) -> bool:
    """Whether the broker answers and has the topics; False when the stop came first."""
    kafka = context.settings.kafka

    async def prepare() -> None:
        await wait_for_broker(context.bootstrap, kafka.startup_timeout_s, kafka)
        for mismatch in await ensure_topics(context.bootstrap, TELEMETRY_TOPICS, kafka):
            screen.line(f"{mismatch}; it is used as it is")

    preparing = asyncio.create_task(prepare(), name="prepare")
    stopping = asyncio.create_task(context.stop.wait(), name="stop")
    await first_of(preparing, stopping)
    return not preparing.cancelled()


async def _produce(one: _Run) -> None:
    """Numbered as `run`."""
    context = one.context
    async with (
        context.producer("produce", one.books.delivered) as producer,
        _spooled(one, producer) as way,
    ):
        showing = asyncio.create_task(_show(one, producer), name="rate line")
        reloading = asyncio.create_task(Reloader(one.live).run(), name="reload")
        if one.job.seconds is not None:
            asyncio.get_running_loop().call_later(one.job.seconds, context.stop.set)
        try:
            work = _fleet(one, way) if one.job.recording is None else _recorded(one, producer)  # 2, 3
            await first_of(asyncio.create_task(work, name="produce"), *way.failures())
            await way.settled()  # 4
        finally:
            for task in (showing, reloading):
                task.cancel()
            await asyncio.gather(showing, reloading, return_exceptions=True)


@asynccontextmanager
async def _spooled(one: _Run, producer: BatchProducer) -> AsyncIterator[Spooled]:
    """With a spool for the fleet, while no other process has its folder; a recording waits for the broker instead."""
    if one.job.recording is not None:
        yield Spooled(producer, one.books, None)
        return
    async with AsyncExitStack() as stack:
        try:
            way = await stack.enter_async_context(spooled(one.context, producer, one.books, "produce"))
        except EnvironmentError_ as error:
            if not error.facts.get("locked"):
                raise
            logger.warning("%s Readings wait in memory only.", error, extra={"action": "spool_unused"})
            way = Spooled(producer, one.books, None)
        yield way


def _fleet(one: _Run, way: Spooled) -> Coroutine[Any, Any, None]:
    context = one.context
    fleet = fleet_of(context.settings.device)

    def limits() -> GenerateLimits:
        now = context.current()
        return fleet_limits(now.device, with_headers=now.producer.cloudevents_headers)

    async def both() -> None:
        await first_of(
            asyncio.create_task(
                generate(fleet, way.sender, context.clock, one.books, limits, context.stop), name="fleet"
            ),
            asyncio.create_task(
                commands(_orders(context), fleet=fleet, clock=context.clock, publisher=way.producer), name="commands"
            ),
        )

    one.screen.line(f"{len(fleet.devices):,} devices to {context.bootstrap}; Ctrl-C stops in order.")
    return both()


async def _orders(context: Context) -> AsyncIterator[list[Any]]:
    """Commands from now on, outside any group: a fleet at a prompt takes none away from one that runs elsewhere."""
    reader = TopicReader(context.settings.kafka)
    while True:
        try:
            async with aclosing(reader.follow(DEVICE_COMMANDS.name)) as batches:
                async for batch in batches:
                    yield list(batch)
        except BrokerUnavailable as error:
            logger.warning("%s Trying on.", error, extra={"action": "broker_unavailable"})
            await asyncio.sleep(RETRY_S)


async def _recorded(one: _Run, producer: BatchProducer) -> None:
    recording, context = one.job.recording, one.context
    assert recording is not None, "asked for only then"
    names = ", ".join(path.name for path in recording.files)
    one.screen.line(f"Replaying {names} to {context.bootstrap}; Ctrl-C stops in order.")
    settings = context.settings
    limits = replay_limits(settings.replay, with_headers=settings.producer.cloudevents_headers)
    done = await replay(recording, producer, context.clock, one.books, limits, context.stop)
    one.replayed_whole = done.finished
    whole = "to the end" if done.finished else "stopped before the end"
    one.screen.line(
        f"Replayed {whole}: {done.samples:,} samples, {done.dead_letters:,} dead letters, {done.truths:,} labels"
    )


# ---- what is shown ----


async def _show(one: _Run, producer: BatchProducer) -> None:
    """A live line on a terminal, one more plain line every few seconds elsewhere."""
    pause_s = LIVE_LINE_S if one.screen.is_terminal else PLAIN_LINE_S
    clock = one.context.clock
    before_s, before = clock.monotonic_s(), one.books.ledger
    counts = metrics.SEND_DURATION.counts
    while True:
        await asyncio.sleep(pause_s)
        now_s, now = clock.monotonic_s(), one.books.ledger
        p95_s = quantile(_cumulated(counts, counts := metrics.SEND_DURATION.counts), 0.95)
        one.screen.status(rate_line(before, now, now_s - before_s, producer.buffered_records, p95_s))
        before_s, before = now_s, now


def _cumulated(before: tuple[int, ...], now: tuple[int, ...]) -> Mapping[float, float]:
    bounds = (*metrics.LATENCY_BUCKETS_S, float("inf"))
    return dict(zip(bounds, accumulate(b - a for a, b in zip(before, now, strict=True)), strict=True))


def rate_line(before: Ledger, now: Ledger, seconds: float, waiting: int, p95_s: float | None) -> str:
    """What happened between two moments and since the start."""
    rate = (now.acknowledged - before.acknowledged) / max(seconds, 1e-9)
    p95 = "–" if p95_s is None else f"{p95_s * 1000:.0f} ms"
    line = (
        f"{rate:,.0f} msgs/s sent · p95 {p95} · {now.acknowledged:,} of {now.generated:,} acknowledged"
        f" · {waiting:,} waiting"
    )
    dropped = sum(now.dropped.values())
    letters = f" · {now.spooled:,} on disk" if now.spooled else ""
    letters += f" · {now.dead_lettered:,} dead letters" if now.dead_lettered else ""
    return line + letters + (f" · {dropped:,} dropped" if dropped else "")


def _last_words(one: _Run) -> int:
    ledger = one.books.ledger
    outcomes = {"acknowledged": ledger.acknowledged, "dead_lettered": ledger.dead_lettered}
    outcomes |= {"spooled": ledger.spooled} if ledger.spooled or ledger.recovered else {}
    outcomes |= {f"dropped_{reason}": count for reason, count in sorted(ledger.dropped.items())}
    document = {
        "generated": ledger.generated,
        **({"recovered": ledger.recovered} if ledger.recovered else {}),
        "outcomes": outcomes,
        "in_flight": ledger.in_flight,
        "balanced": one.books.balances(0) and ledger.in_flight == 0,
    }
    if one.job.as_json:
        print(json.dumps(document, indent=2))
    else:
        print(ledger_line(document))
    return 0 if document["balanced"] and not _lost(one, ledger) else HeadraceError.exit_code


def _lost(one: _Run, ledger: Ledger) -> int:
    """Records dropped, but for those that the settings drop and the one row in hand when a replay is stopped."""
    dropped = dict(ledger.dropped)
    if one.context.current().device.when_full == "drop":
        dropped.pop("buffer_full", None)
    if not one.replayed_whole and dropped.get("stopped") == 1:
        del dropped["stopped"]
    return sum(dropped.values())


@asynccontextmanager
async def _metrics_served(port: int, one: _Run) -> AsyncIterator[None]:
    from app.http.config import document  # noqa: PLC0415 - wanted only with --metrics-port
    from app.http.ops import ops_app  # noqa: PLC0415 - as above
    from app.http.server import HttpServer, bind  # noqa: PLC0415 - as above
    from app.http.view import LocalView  # noqa: PLC0415 - as above

    view = LocalView(one.context.health, metrics.REGISTRY, lambda: document(one.context.current()))
    listening = bind("127.0.0.1", port, "--metrics-port", "--metrics-port")
    server = HttpServer(ops_app(view, ("metrics",)), listening)
    await server.start()
    one.screen.line(f"Metrics at {server.url}/metrics")
    try:
        yield
    finally:
        await server.stop(2.0)
