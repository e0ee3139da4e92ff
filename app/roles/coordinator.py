"""The role `coordinator`: the engine of workflows, its tasks, its schedules and the triggers."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from agents.engine import Engine
from agents.engine_dispatch import Dispatcher
from agents.engine_partitions import keep_partitions
from agents.engine_terms import Graphs, Node, Terms
from agents.schedules import Timekeeper
from agents.stage import Stage
from app import metrics
from app.adapters.definitions_feed import DefinitionsFeed
from app.adapters.expressions import CelExpressions
from app.adapters.faust_app import App, Delivered, running
from app.adapters.tasks.build import new_executor
from app.domain.watchdog import Progress
from app.domain.workflow.turn import Limits
from app.http.health import Check
from app.ports import Definitions, TaskExecutor
from app.roles.context import Context, first_of, raise_crash, stopped
from app.roles.rounds import ask_when_near, catch_up, follow_assignment, new_lease
from app.roles.tables import StageTables, stage_tables
from app.roles.takeovers import Takeovers
from app.roles.triggers import run_triggers
from app.roles.worker import export_lag
from app.task_ends import Parts
from config.settings import Settings
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_STATE
from config.workflow import PROFILES
from tables.partition import TablePartition

STAGE = "workflow"
MAILBOX_INTERVAL_S = 1.0
# Of a row and of a record: keys, header, the frame of a batch.
ROW_OVERHEAD_BYTES = 4_096


async def run_coordinator(context: Context) -> None:
    """Run the engine and the triggers until stop; one that fails ends the process.

    Definitions are followed first: the engine opens no partition before it knows what is registered.
    """
    definitions = DefinitionsFeed(context.settings.kafka, context.bootstrap, context.settings.http.read_model)
    async with Parts() as parts:
        parts.create_task(definitions.run(context.stop), name="definitions")
        parts.create_task(run_engine(context, definitions), name="engine")
        parts.create_task(run_triggers(context, definitions), name="triggers")


async def run_engine(context: Context, definitions: Definitions, executor: TaskExecutor | None = None) -> None:
    """(1) catch up and join the group (2) restore and decide (3) on stop: drain, commit, leave (4) close.

    `executor` is that of this process, made from the settings when there is none.
    """
    workflow = context.settings.workflow
    lease = new_lease(context)
    expressions = CelExpressions()
    async with (
        context.producer(STAGE) as producer,
        stage_tables(context, producer, lease, WORKFLOW_COMMANDS, WORKFLOW_STATE) as kept,
    ):
        partitions = await producer.partitions(WORKFLOW_COMMANDS.name)
        tasks = executor or new_executor(
            context.settings,
            expressions,
            context.clock,
            context.producer_limits("tasks"),
            workflow.local_task_slots,
            context.tracing,
        )
        engines: dict[int, Engine] = {}
        stage = Stage(
            STAGE,
            lambda partition: _open(context, kept, definitions, partition, partitions),
            lambda tables: _begin(engines, tables, node, kept.takeovers),
            context.clock,
            lambda: 1.0,
            transactions=workflow.transactions_in_flight,
        )

        terms = _LiveTerms(context, stage)
        dispatcher = Dispatcher(tasks, producer, context.clock, terms, stage.fail)
        node = Node(
            terms=terms,
            definitions=definitions,
            graphs=Graphs(definitions),
            expressions=expressions,
            tasks=dispatcher,
            clock=context.clock,
            partitions=partitions,
            wake=stage.wake,
            tracing=context.tracing,
            make_entities=lambda get: Timekeeper(get, definitions, expressions, lambda: partitions),
        )
        app = context.faust_app(STAGE)
        app.add_agent(STAGE, WORKFLOW_COMMANDS.name, lambda stream: _feed(stream, stage))
        follow_assignment(app, WORKFLOW_COMMANDS.name, stage, lease, kept)
        _watch(context, app, stage)
        try:
            await first_of(asyncio.create_task(catch_up(context, app, kept), name="catch up"), stopped(context.stop))
            if context.stop.is_set():
                return
            async with running(app):
                await first_of(
                    stage.failed,
                    asyncio.create_task(raise_crash(app), name="engine crash"),
                    stopped(context.stop),
                    asyncio.create_task(lease.keep(), name="lease"),
                    asyncio.create_task(ask_when_near(app, kept), name="standbys near"),
                    asyncio.create_task(export_lag(app), name="lag"),
                    asyncio.create_task(_export_mailboxes(stage, engines), name="mailboxes"),
                )
        finally:
            context.health.unwatch("engine")
            await stage.close()
            await dispatcher.close()
            await tasks.close()


def terms_of(settings: Settings, partitions: int) -> Terms:
    """The bounds that settings mean for each of so many partitions on this node."""
    workflow = settings.workflow
    profile = PROFILES[workflow.profile]
    return Terms(
        limits=Limits(result_bytes=workflow.result_bytes, input_bytes=workflow.input_bytes),
        record_bytes=settings.producer.max_request_bytes - workflow.chunk_bytes - ROW_OVERHEAD_BYTES,
        transaction_commands=workflow.transaction_commands or profile.transaction_commands,
        local_tasks=workflow.local_tasks,
        local_backlog=workflow.local_backlog,
        cache_executions=max(100, workflow.cache_executions // max(1, partitions)),
        cache_bytes=max(1_048_576, workflow.cache_bytes // max(1, partitions)),
        passivate_after_s=workflow.passivate_after_s or profile.passivate_after_s,
        chunk_bytes=workflow.chunk_bytes,
        chunk_events=workflow.chunk_events or profile.chunk_events,
        retention_ms=round(workflow.retention_s * 1000),
        sweep_executions=workflow.sweep_executions,
        timer_lookahead_ms=round(workflow.timer_lookahead_s * 1000),
        timers_in_memory=workflow.timers_in_memory,
    )


class _LiveTerms:
    """The terms in force; made anew when the settings or the number of partitions here change."""

    def __init__(self, context: Context, stage: Stage) -> None:
        self._context = context
        self._stage = stage
        self._of: tuple[Settings, int] | None = None
        self._terms = Terms()

    def __call__(self) -> Terms:
        settings, partitions = self._context.current(), self._stage.count
        if self._of is None or self._of[0] is not settings or self._of[1] != partitions:
            self._of = (settings, partitions)
            self._terms = terms_of(settings, partitions)
        return self._terms


async def _open(
    context: Context, kept: StageTables, definitions: Definitions, partition: int, partitions: int
) -> TablePartition:
    """The tables, once every definition that an execution in them may be of is known.

    Raises `UserError` when they were made with another number of partitions.
    """
    await definitions.caught_up()
    tables = await kept.open(partition)
    try:
        await keep_partitions(tables, partitions, context.clock.now_ms())
    except BaseException:
        tables.close()
        raise
    return tables


def _begin(engines: dict[int, Engine], tables: TablePartition, node: Node, takeovers: Takeovers) -> Engine:
    engine = engines[tables.partition] = Engine(tables, node)
    takeovers.goes_on(tables.partition, engine.active)
    return engine


async def _feed(stream: Any, stage: Stage) -> None:
    async for event in stream.noack().events():
        stage.feed(Delivered(event))


def _watch(context: Context, app: App, stage: Stage) -> None:
    def joined() -> Check:
        partitions = ", ".join(map(str, stage.partitions)) or "none"
        return Check(app.has_joined and stage.ready, f"partitions {partitions}")

    context.health.add("engine", joined)
    context.health.add("engine restored", joined, "startup")
    # As for the transform: records wait while tables are restored.
    context.health.watch("engine", lambda: Progress(sum(app.lags().values()) if stage.ready else 0, stage.processed))


async def _export_mailboxes(stage: Stage, engines: MutableMapping[int, Engine]) -> None:
    while True:
        export_mailboxes(stage, engines)
        await asyncio.sleep(MAILBOX_INTERVAL_S)


def export_mailboxes(stage: Stage, engines: MutableMapping[int, Engine]) -> None:
    """Bring `workflow_mailbox_depth` up to date, and let go of the engines of partitions that went."""
    for partition, engine in list(engines.items()):
        waiting = 0 if engine.closed else stage.waiting(partition) + engine.waiting
        metrics.WORKFLOW_MAILBOX.labels(str(partition)).set(waiting)
        if engine.closed:
            del engines[partition]
