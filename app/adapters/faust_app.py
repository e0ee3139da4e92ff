"""A Faust app on the batch-native transport, with the parts of Faust that are not wanted taken out.

What differs from stock Faust: no tables (ours are `tables/`), so recovery is only a seek; no web server
(ours is `app/http`); no leader topic; no autodiscovery; a crash of an agent stops the app.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import faust
from aiokafka.errors import IllegalGenerationError, KafkaError, UnknownMemberIdError, for_code
from aiokafka.protocol.group import HeartbeatRequest
from faust.agents import Agent
from faust.auth import Credentials, SASLCredentials, SSLCredentials
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.types import TP
from mode.utils.queues import FlowControlEvent

from app.adapters.assignor import Holdings, Seat, SeatingAssignor
from app.adapters.faust_stream import RangeStream
from app.adapters.transport import RecordBatch, TransportLimits

log = logging.getLogger(__name__)


class GentleFlowControl(FlowControlEvent):
    """Stock `resume` empties every queue even when the flow was never stopped, and so loses records."""

    def resume(self) -> None:
        """Let records in; queues are emptied only when the flow had been stopped."""
        if not self.is_active():
            super().resume()


class SeekOnly(Recovery):
    """Recovery of an app without Faust tables: seek, then go."""

    recovery_delay = 0.0

    async def _resume_streams(self, generation_id: int = 0) -> None:
        """(1) positions to the committed offsets (2) who takes the records is there (3) partitions and flow on.

        Faust calls this beside `on_partitions_assigned`: what flowed before the end of that would reach nobody, and the
        next batch would be taken for the first.
        """
        app = self.app
        consumer = app.consumer
        await app.on_rebalance_complete.send()
        if app.consumer_generation_id != generation_id:
            return
        assignment = consumer.assignment()
        if assignment:
            await self._wait(consumer.perform_seek(), timeout=app.conf.broker_request_timeout)
        await self._wait(app.may_flow.wait())
        if app.consumer_generation_id != generation_id:
            return
        if assignment:
            consumer.resume_partitions(assignment)
        self.completed.set()
        app.flow_control.resume()
        consumer.resume_flow()
        await app._fetcher.maybe_start()
        self.tables.on_actives_ready()
        self.tables.on_standbys_ready()
        app.on_rebalance_end()
        app.goes_on()


class NoTables(TableManager):
    """Faust's table manager for an app that has none: it starts without stock Faust's second of sleep."""

    @property
    def recovery(self) -> Recovery:
        """The seek that stands for recovery."""
        existing: Recovery | None = self.__dict__.get("_recovery")
        if existing is None:
            existing = self._recovery = SeekOnly(self.app, self, beacon=self.beacon, loop=self.loop)
        return existing

    async def on_start(self) -> None:
        """Register nothing, and say so at once."""
        if not self.should_stop:
            await self._update_channels()
            await self.recovery.start()


# See app.adapters.transport: their chatter goes under Faust's name.
for _service in (SeekOnly, NoTables):
    _service.logger = logging.getLogger("faust.tables")


class Delivered:
    """One event of a batched topic, as the loops in `agents` take it."""

    __slots__ = ("_event", "highwater", "partition", "records", "topic")

    def __init__(self, event: Any) -> None:
        batch: RecordBatch = event.value
        self._event = event
        self.topic = batch.topic
        self.partition = batch.partition
        self.records = batch.records
        self.highwater = batch.highwater

    def ack(self) -> None:
        """Everything in the batch is safe: its range may be committed."""
        self._event.ack()


class App(faust.App):
    """A Faust app whose topics may be batched; `transport_limits` bounds its consumer.

    `holdings` are the tables of its stage, `hand_back` what ends the work on partitions before a rebalance: what that
    leaves undone is redelivered, and nothing waits for it. While `may_flow` is clear no record flows; `goes_on` is
    called when they flow again after a rebalance.
    """

    def __init__(self, *args: Any, transport_limits: TransportLimits | None = None, **kwargs: Any) -> None:
        self.transport_limits = transport_limits or TransportLimits()
        self.holdings: Holdings | None = None
        self.hand_back: Callable[[set[TP]], Awaitable[None]] | None = None
        self.goes_on: Callable[[], None] = lambda: None
        self.may_flow = asyncio.Event()
        self.may_flow.set()
        super().__init__(*args, **kwargs)

    async def _consumer_wait_empty(self, consumer: Any, logger: Any) -> None:
        """Before the end what is begun is finished and committed, as before a rebalance; the rest is redelivered.

        Stock Faust waits for whatever was delivered, which behind a backlog is seconds of work.
        """
        gone = self.crash_reason is not None or consumer.abandoned
        if self.hand_back is None or not self.should_stop or gone:
            await super()._consumer_wait_empty(consumer, logger)
            return
        await self.hand_back(consumer.assignment())
        await consumer.commit_and_end_transactions()

    @property
    def flow_control(self) -> FlowControlEvent:
        """One flow control a process, that never empties a queue for nothing."""
        existing = self.__dict__.get("_gentle_flow_control")
        if existing is None:
            existing = self.__dict__["_gentle_flow_control"] = GentleFlowControl(loop=self.loop)
        return existing

    @property
    def has_joined(self) -> bool:
        """Whether this member has been given its partitions."""
        return bool(self.started and not self.rebalancing and self.consumer.member_id)

    @property
    def member_id(self) -> str:
        """This member's id in its group, empty before it has one. May be asked in any thread: it makes no client."""
        return "" if self._consumer is None else self._consumer.member_id

    @property
    def seat(self) -> Seat:
        """What the last rebalance gave this member beside its partitions."""
        given: Seat = self.assignor.seat
        return given

    def ask_for_round(self) -> None:
        """Have the group's leader seat its members anew; of a consumer that has ended, nothing."""
        client = self.consumer._thread
        coordinator = getattr(client._consumer, "_coordinator", None)
        if coordinator is not None:
            with contextlib.suppress(RuntimeError):  # its event loop is closed
                client.thread_loop.call_soon_threadsafe(coordinator.request_rejoin)

    def is_member(self, timeout_s: float) -> bool | None:
        """Whether the group still counts this member to its generation; None when that cannot be told in time.

        Blocks the loop that asks, while the consumer's own thread asks the broker.
        """
        client = self._consumer._thread if self._consumer is not None and not self.should_stop else None
        coordinator = getattr(client and client._consumer, "_coordinator", None)
        if client is None or coordinator is None:
            return None
        question = _is_member(coordinator, rebalancing=self.rebalancing)
        try:
            asking = asyncio.run_coroutine_threadsafe(question, client.thread_loop)
        except RuntimeError:  # its event loop is closed
            question.close()
            return None
        try:
            return asking.result(timeout_s)
        except (TimeoutError, concurrent.futures.CancelledError, KafkaError):
            asking.cancel()
            return None

    def lags(self) -> dict[TP, int]:
        """Records a partition that wait for this member; empty before it has joined."""
        return self.consumer.lags() if self.has_joined else {}

    def add_agent(
        self,
        name: str,
        topics: str | Sequence[str],
        body: Callable[[Any], Awaitable[None]],
        *,
        batched: bool = True,
    ) -> Agent:
        """Register an agent explicitly: `body(stream)` loops over `stream.noack().events()` and acknowledges itself.

        An exception in the body crashes the app: nothing it held was acknowledged, so all is redelivered.
        """
        value_type = RecordBatch if batched else bytes
        names = (topics,) if isinstance(topics, str) else tuple(topics)
        channel = self.topic(*names, value_type=value_type, key_type=bytes, internal=False, allow_empty=True)
        return self.agent(channel, name=name, concurrency=1)(body)

    def _create_directories(self) -> None:
        """Make none: Faust's are for its own tables, and the root file system of a container is read-only."""

    async def _on_agent_error(self, agent: Agent, exc: BaseException) -> None:
        log.error("agent %s failed: %r", agent.name, exc, exc_info=exc, extra={"action": "agent_failed"})
        await self.crash(exc)


App.logger = logging.getLogger("faust.app")


async def _is_member(coordinator: Any, *, rebalancing: bool) -> bool | None:
    """One heartbeat. A client that has heard it by itself has forgotten its member id, and joins anew.

    While it joins the next generation a living member may be without an id, too, and has nothing to lose yet.
    """
    generation, member = coordinator.generation, coordinator.member_id
    if not member:
        return None if rebalancing else False
    answer = await coordinator._send_req(HeartbeatRequest(coordinator.group_id, generation, member))
    error = for_code(answer.error_code)
    if error is IllegalGenerationError:
        # The next one, which it takes part in, may have begun before it was told so.
        return None if rebalancing or coordinator.generation != generation else False
    return error is not UnknownMemberIdError


def new_app(
    group: str,
    bootstrap_servers: str,
    *,
    limits: TransportLimits | None = None,
    session_timeout_ms: int = 10_000,
    heartbeat_interval_ms: int = 1_000,
    commit_interval_ms: int = 200,
    security: Mapping[str, Any] | None = None,
    **settings: Any,
) -> App:
    """Build an app for one consumer group; `bootstrap_servers` is a comma-separated list of host:port."""
    limits = limits or TransportLimits()
    session_s = session_timeout_ms / 1000
    return App(
        group,
        broker=[f"headrace://{server.strip()}" for server in bootstrap_servers.split(",")],
        env_prefix="HEADRACE_FAUST_",  # stock Faust lets plain BROKER_URL or WEB_PORT override what we set
        autodiscover=False,
        transport_limits=limits,
        TableManager=NoTables,
        PartitionAssignor=SeatingAssignor,
        store="memory://",
        value_serializer="raw",
        key_serializer="raw",
        web_enabled=False,
        web_tables_enabled=False,
        web_router_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        stream_wait_empty=True,
        stream_recovery_delay=0.0,
        stream_buffer_maxsize=4096,
        table_standby_replicas=0,
        broker_credentials=_credentials(security or {}),
        broker_client_id=f"{group}-{socket.gethostname()}-{os.getpid()}",  # which process, in the broker's words
        broker_session_timeout=session_s,
        broker_heartbeat_interval=heartbeat_interval_ms / 1000,
        broker_rebalance_timeout=max(session_s, 10.0),
        broker_request_timeout=max(session_s + 5.0, 30.0),
        # An idle member fetches nothing and would be expelled after the default 1,000 s.
        broker_max_poll_interval=86_400.0,
        broker_max_poll_records=limits.batch_records,
        broker_commit_interval=commit_interval_ms / 1000,
        broker_commit_livelock_soft_timeout=86_400.0,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=8 << 20,
        **{"Stream": RangeStream, **settings},
    )


def _credentials(security: Mapping[str, Any]) -> Credentials | None:
    """The connection options of aiokafka options in Faust's words."""
    context = security.get("ssl_context")
    if "sasl_mechanism" in security:
        return SASLCredentials(
            username=security["sasl_plain_username"],
            password=security["sasl_plain_password"],
            mechanism=security["sasl_mechanism"],
            ssl_context=context,
        )
    return SSLCredentials(context) if context is not None else None


@contextlib.asynccontextmanager
async def running(app: App) -> AsyncIterator[App]:
    """Run a Faust app inside this loop; a crash of it is raised at the end of the block."""
    app.finalize()
    await app.start()
    try:
        yield app
    except BaseException:
        # What failed will not finish its batches: they are redelivered, nobody needs to wait for them.
        app.consumer.abandoned = True
        raise
    finally:
        await app.stop()
    if app.crash_reason is not None:
        raise app.crash_reason


async def crashed(app: App) -> BaseException:
    """Wait for the app to crash and return why."""
    while app.crash_reason is None:
        await asyncio.wait([asyncio.ensure_future(app._crashed.wait())])
    return app.crash_reason
