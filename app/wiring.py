"""The composition root: settings in, running roles out; no logic."""

import asyncio
import contextlib
import importlib
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from app.adapters.beats import Seats
from app.adapters.clock import SystemClock
from app.adapters.reload import Reloader
from app.adapters.topics_admin import ensure_topics, wait_for_broker, wait_for_coordinator
from app.errors import BrokerUnavailable, HeadraceError, UserError
from app.http.health import HealthRegistry
from app.http.view import SUPERVISOR_URL
from app.ports import Tracing
from app.roles.context import Context
from app.task_ends import Parts
from config.live import LiveSettings
from config.settings import Settings
from config.topics import (
    ALL_TOPICS,
    DEVICE_TELEMETRY,
    TRANSFORM_STATE,
    WORKFLOW_COMMANDS,
    WORKFLOW_EVENTS,
    WORKFLOW_STATE,
    workflow_tasks,
)

if TYPE_CHECKING:
    from app.http.gateway import Gateway

log = logging.getLogger(__name__)

_RUN = {
    "producer": ("producer", "run_producer"),
    "worker": ("worker", "run_worker"),
    "coordinator": ("coordinator", "run_coordinator"),
}

_TRACED = frozenset({"api-gateway", "coordinator", "worker"})

# Topics that must be cut alike, and what to do when they are not.
_COPARTITIONED = (
    ((DEVICE_TELEMETRY, TRANSFORM_STATE), f"delete {TRANSFORM_STATE.name} (it is built anew)"),
    ((WORKFLOW_COMMANDS, WORKFLOW_EVENTS, WORKFLOW_STATE), "delete those that hold nothing yet"),
)


async def run_roles(
    settings: Settings,
    roles: frozenset[str],
    health: HealthRegistry,
    stop: asyncio.Event,
    live: LiveSettings | None = None,
    seats: Seats | None = None,
) -> None:
    """Run `roles` until `stop` is set and everything is drained; raises when one of them fails.

    (1) the API answers at once, also without a broker; (2) the broker is waited for; (3) topics are
    created or checked; (4) the roles run side by side.
    """
    try:
        await _run(settings, roles, health, stop, live, seats or Seats())
    except BaseExceptionGroup as group:
        raise _cause(group) from group


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended a group of tasks: ours before a stranger's, the first before the others."""
    leaves: list[BaseException] = []
    waiting: list[BaseException] = [group]
    while waiting:
        error = waiting.pop(0)
        if isinstance(error, BaseExceptionGroup):
            waiting.extend(error.exceptions)
        else:
            leaves.append(error)
    return next((leaf for leaf in leaves if isinstance(leaf, HeadraceError)), leaves[0])


async def _run(
    settings: Settings,
    roles: frozenset[str],
    health: HealthRegistry,
    stop: asyncio.Event,
    live: LiveSettings | None,
    seats: Seats,
) -> None:
    """With traces, where the settings say where to."""
    async with _tracing(settings, roles) as tracing:
        context = Context(settings, lambda: settings, health, stop, SystemClock(), tracing=tracing, seats=seats)
        await _run_all(context, roles, live)


async def _run_all(context: Context, roles: frozenset[str], live: LiveSettings | None) -> None:
    """Numbered as `run_roles`."""
    if live is not None:
        context = replace(context, current=lambda: live.current, subscribe=live.subscribe)
        live.subscribe(lambda _old, _new: None, check=_compiles)
    gateway = await _open_gateway(context) if "api-gateway" in roles else None  # (1)
    async with Parts() as running:
        reloading = running.create_task(Reloader(live).run(), name="reload") if live is not None else None
        try:
            if await _await_broker(context):  # (2)
                await _prepare_topics(context)  # (3)
                async with Parts() as parts:  # (4)
                    if gateway is not None:
                        parts.create_task(_role("gateway").run_gateway(context, gateway), name="api-gateway")
                    for role in sorted(roles & _RUN.keys()):
                        module, function = _RUN[role]
                        parts.create_task(getattr(_role(module), function)(context), name=role)
            elif gateway is not None:
                await gateway.close()
        finally:
            if reloading is not None:
                reloading.cancel()


@contextlib.asynccontextmanager
async def _tracing(settings: Settings, roles: frozenset[str]) -> AsyncIterator[Tracing | None]:
    """Where spans go; what waits then is exported at the end. Without an endpoint nothing of it is imported."""
    if settings.tracing.endpoint is None or not roles & _TRACED:
        yield None
        return
    tracing = importlib.import_module("app.adapters.tracing").OtlpTracing(settings.tracing, roles)
    try:
        yield tracing
    finally:
        await asyncio.to_thread(tracing.close)


async def _open_gateway(context: Context) -> "Gateway":
    opened: Gateway = await _role("gateway").open_gateway(context)
    return opened


def _role(name: str) -> Any:
    """A role's module, imported when the role is wanted: FastAPI and CEL cost a producer 0.4 s of start."""
    return importlib.import_module(f"app.roles.{name}")


def _compiles(settings: Settings) -> None:
    """Rules hold expressions that no settings model can judge."""
    importlib.import_module("app.rules").compile_section(settings.signals)


async def _await_broker(context: Context) -> bool:
    """Wait for Kafka for as long as it takes; False when stop came first."""
    stopping = asyncio.create_task(context.stop.wait(), name="stop")
    try:
        while not context.stop.is_set():
            waiting = asyncio.create_task(
                wait_for_broker(context.bootstrap, context.settings.kafka.startup_timeout_s, context.settings.kafka)
            )
            await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                return False
            error = waiting.exception()
            if error is None:
                return True
            if not isinstance(error, BrokerUnavailable):
                raise error
            log.warning("%s Trying on.", error, extra={"action": "broker_unavailable"})
        return False
    finally:
        stopping.cancel()


async def _prepare_topics(context: Context) -> None:
    """Create what is missing, report what differs, and refuse tables that are not cut like their input."""
    kafka = context.settings.kafka
    queues = (workflow_tasks(queue) for queue in context.settings.tasks.queues)
    wanted = {spec.name: spec for spec in (*ALL_TOPICS, *queues)}
    mismatches = await ensure_topics(context.bootstrap, list(wanted.values()), kafka)
    # Under a supervisor that has said it already, once for all of its children.
    level = logging.DEBUG if os.environ.get(SUPERVISOR_URL) else logging.WARNING
    for mismatch in mismatches:
        log.log(level, "%s", mismatch, extra={"action": "topic_mismatch"})
    await wait_for_coordinator(context.bootstrap, kafka.startup_timeout_s, kafka)
    actual = {m.topic: m.actual for m in mismatches if m.setting == "partitions"}
    for specs, remedy in _COPARTITIONED:
        counts = {spec.name: actual.get(spec.name, str(kafka.partitions)) for spec in specs}
        if len(set(counts.values())) > 1:
            raise UserError(
                "The tables must have as many partitions as their input, but "
                + " and ".join(f"{name} has {count}" for name, count in counts.items())
                + f": {remedy}, or set kafka.partitions to match."
            )
