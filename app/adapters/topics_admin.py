"""Declares the topics on the broker: creates what is missing and reports what differs."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    KafkaError,
    NodeNotReadyError,
    NoError,
    NotControllerError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)

from app.adapters.connection import security_options
from app.errors import BrokerUnavailable, EnvironmentError_
from config.kafka import KafkaSettings
from config.topics import TopicSpec

log = logging.getLogger(__name__)

_DEFAULTS = KafkaSettings()
_BACKOFF_FIRST_S = 0.05
_BACKOFF_MAX_S = 1.0
_PROBE_TIMEOUT_S = 5.0
# A topic is created by the controller and seen by every broker a moment later.
_PROPAGATION_S = 30.0
# aiokafka asks a random broker of its last metadata, which names a dead one until its session has ended.
_ATTEMPTS = 10

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One setting of an existing topic that is not as declared."""

    topic: str
    setting: str
    expected: str
    actual: str

    def __str__(self) -> str:
        return f"topic {self.topic}: {self.setting} is {self.actual}, declared is {self.expected}"


@dataclass(frozen=True, slots=True)
class TopicState:
    """One topic as it is on the broker."""

    name: str
    partitions: int
    replication_factor: int
    leaderless: int
    configs: Mapping[str, str] = field(default_factory=dict)


async def wait_for_broker(
    bootstrap: str, deadline_s: float, settings: KafkaSettings = _DEFAULTS, *, brokers: int = 1
) -> None:
    """Return when `brokers` brokers are known to the one that answers.

    Says so once in the log when it has to wait. Raises `BrokerUnavailable` after `deadline_s`.
    """
    started = time.monotonic()
    pause_s = _BACKOFF_FIRST_S
    said = False
    while True:
        if await _broker_count(bootstrap, settings) >= brokers:
            break
        waited_s = time.monotonic() - started
        if waited_s >= deadline_s:
            raise BrokerUnavailable(
                f"No Kafka broker answers at {bootstrap} after {deadline_s:g} s; start it, or set "
                "kafka.bootstrap_servers (KAFKA_BOOTSTRAP_SERVERS) to one that runs."
            )
        if not said and waited_s > _BACKOFF_MAX_S:
            said = True
            log.info(
                "No Kafka broker answers at %s yet; trying for %g s",
                bootstrap,
                deadline_s,
                extra={"action": "broker_awaited", "bootstrap": bootstrap},
            )
        await asyncio.sleep(min(pause_s, deadline_s - waited_s))
        pause_s = min(pause_s * 2, _BACKOFF_MAX_S)
    if said:
        log.info("Kafka answers", extra={"action": "broker_found", "bootstrap": bootstrap})


async def wait_for_coordinator(bootstrap: str, deadline_s: float, settings: KafkaSettings = _DEFAULTS) -> None:
    """Return when consumer groups can be joined: a new broker makes its offsets topic at the first question.

    Asked here, quietly, it does not greet every group with errors. Raises `BrokerUnavailable` after `deadline_s`.
    """
    deadline = time.monotonic() + deadline_s
    group = f"{settings.client_id}-warm-up"

    async def find(admin: AIOKafkaAdminClient) -> None:
        node = await admin.find_coordinator(group)
        await admin.list_consumer_group_offsets(group, node)

    pause_s = _BACKOFF_FIRST_S
    while True:
        try:
            await _ask_once(bootstrap, settings, find)
        except (KafkaError, OSError, TimeoutError) as error:
            if time.monotonic() >= deadline:
                raise BrokerUnavailable(f"Kafka at {bootstrap} has no group coordinator: {error}.") from error
        else:
            return
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _BACKOFF_MAX_S)


async def ensure_topics(
    bootstrap: str, specs: Sequence[TopicSpec], settings: KafkaSettings = _DEFAULTS
) -> list[Mismatch]:
    """Create the missing topics and return what differs in those that exist; nothing that exists is changed.

    Raises `BrokerUnavailable`, or `EnvironmentError_` when the broker refuses to create a topic.
    """
    names = [spec.name for spec in specs]

    async def work(admin: AIOKafkaAdminClient) -> list[TopicState]:
        existing = {state.name for state in await _states(admin, names)}
        missing = [spec for spec in specs if spec.name not in existing]
        if missing:
            await _create(admin, missing, settings)
            await _await_leaders(admin, [spec.name for spec in missing])
        states = await _with_configs(admin, names)
        deadline = time.monotonic() + settings.request_timeout_ms / 1000
        while len(states) < len(names) and time.monotonic() < deadline:
            # Another broker than the one that led the creation may hear of it a moment later.
            await asyncio.sleep(_BACKOFF_FIRST_S)
            states = await _with_configs(admin, names)
        return states

    found = {state.name: state for state in await _ask(bootstrap, settings, work)}
    if unseen := [name for name in names if name not in found]:
        raise BrokerUnavailable(
            f"The brokers at {bootstrap} created {', '.join(unseen)} but do not all know of it after "
            f"{settings.request_timeout_ms / 1000:g} s; see whether each of them runs."
        )
    return [difference for spec in specs for difference in compare(spec, found[spec.name], settings)]


def compare(spec: TopicSpec, state: TopicState, settings: KafkaSettings) -> list[Mismatch]:
    """What of a topic is not as declared. Retention counts only where old records are deleted at all."""
    differences = []
    expected_partitions = spec.partitions or settings.partitions
    if state.partitions != expected_partitions:
        differences.append(Mismatch(spec.name, "partitions", str(expected_partitions), str(state.partitions)))
    for name, expected in topic_configs(spec).items():
        actual = state.configs.get(name, "")
        if name == "cleanup.policy" and set(actual.split(",")) == set(expected.split(",")):
            continue
        if name == "retention.ms" and "delete" not in spec.cleanup:
            continue
        if actual != expected:
            differences.append(Mismatch(spec.name, name, expected, actual))
    return differences


def topic_configs(spec: TopicSpec) -> dict[str, str]:
    """The broker-side settings a topic is created with."""
    return {"cleanup.policy": spec.cleanup, "retention.ms": str(spec.retention_ms), **spec.extra}


async def describe_topics(
    bootstrap: str, names: Collection[str] | None = None, settings: KafkaSettings = _DEFAULTS
) -> list[TopicState]:
    """The topics as they are, by name; those in `names` that do not exist are left out. None: all but internal ones."""
    states = await _ask(bootstrap, settings, lambda admin: _with_configs(admin, names))
    return sorted(states, key=lambda state: state.name)


async def delete_topics(bootstrap: str, names: Sequence[str], settings: KafkaSettings = _DEFAULTS) -> None:
    """Delete topics with all their records; those that do not exist are left out."""
    answer = await _ask(bootstrap, settings, lambda admin: admin.delete_topics(list(names)))
    for name, code in answer.topic_error_codes:
        if code and for_code(code) is not UnknownTopicOrPartitionError:
            raise EnvironmentError_(f"The broker does not delete topic {name}: {for_code(code).description}.")


async def committed_offsets(
    bootstrap: str, group: str, settings: KafkaSettings = _DEFAULTS
) -> dict[str, dict[int, int]]:
    """The offsets that a consumer group has committed: topic, partition, next offset to read."""
    found: dict[str, dict[int, int]] = {}
    for (topic, partition), committed in (
        await _ask(bootstrap, settings, lambda admin: admin.list_consumer_group_offsets(group))
    ).items():
        if committed.offset >= 0:
            found.setdefault(topic, {})[partition] = committed.offset
    return found


async def has_members(bootstrap: str, group: str, settings: KafkaSettings = _DEFAULTS) -> bool:
    """Whether a consumer group has any members, dead ones included that nobody noticed yet."""

    async def count(admin: AIOKafkaAdminClient) -> int:
        found = 0
        for answer in await admin.describe_consumer_groups([group]):
            for code, _, _, _, _, members, *_ in answer.groups:
                if code:
                    raise for_code(code)(group)
                found += len(members)
        return found

    return await _ask(bootstrap, settings, count) > 0


async def cluster_id(bootstrap: str, settings: KafkaSettings = _DEFAULTS) -> str:
    """What the cluster calls itself, drawn when its storage was formatted. Raises `BrokerUnavailable`."""
    described = await _ask(bootstrap, settings, lambda admin: admin.describe_cluster())
    return str(described["cluster_id"])


async def partition_leader(bootstrap: str, topic: str, partition: int) -> int:
    """The node that leads a partition; -1 when none does."""
    for described in await _ask(bootstrap, _DEFAULTS, lambda admin: admin.describe_topics([topic])):
        for one in described["partitions"]:
            if one["partition"] == partition:
                return int(one["leader"])
    return -1


async def _ask(
    bootstrap: str,
    settings: KafkaSettings,
    work: Callable[[AIOKafkaAdminClient], Awaitable[T]],
    attempts: int = _ATTEMPTS,
) -> T:
    """Do `work`, which may be repeated, with a started admin client; its errors leave as `BrokerUnavailable`."""
    pause_s = _BACKOFF_FIRST_S
    for attempt in range(1, attempts + 1):
        try:
            return await _ask_once(bootstrap, settings, work)
        except (KafkaError, OSError, TimeoutError) as error:
            if attempt == attempts or not isinstance(error, NodeNotReadyError | NotControllerError):
                raise BrokerUnavailable(f"No Kafka broker answers at {bootstrap}: {error}.") from error
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _BACKOFF_MAX_S)
    raise AssertionError("the last attempt returns or raises")


async def _ask_once(bootstrap: str, settings: KafkaSettings, work: Callable[[AIOKafkaAdminClient], Awaitable[T]]) -> T:
    client = AIOKafkaAdminClient(
        bootstrap_servers=bootstrap,
        client_id=f"{settings.client_id}-admin",
        request_timeout_ms=settings.request_timeout_ms,
        retry_backoff_ms=settings.retry_backoff_ms,
        **security_options(settings),
    )
    try:
        await client.start()
        return await work(client)
    finally:
        await client.close()


async def _broker_count(bootstrap: str, settings: KafkaSettings) -> int:
    """How many brokers the cluster has; 0 when none answers. Connects bare first: aiokafka logs each failure."""
    if not await _connects(bootstrap):
        return 0
    try:
        cluster = await _ask(bootstrap, settings, lambda admin: admin.describe_cluster(), attempts=1)
        return len(cluster["brokers"])
    except BrokerUnavailable:
        return 0


async def _connects(bootstrap: str) -> bool:
    for server in bootstrap.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except (OSError, TimeoutError):
            continue
        writer.close()
        with contextlib.suppress(OSError):  # it answered; how it says goodbye does not matter
            await writer.wait_closed()
        return True
    return False


async def _create(admin: AIOKafkaAdminClient, specs: Sequence[TopicSpec], settings: KafkaSettings) -> None:
    topics = [
        NewTopic(
            spec.name,
            spec.partitions or settings.partitions,
            settings.replication_factor or -1,
            # -1 is "the broker's own default", which aiokafka takes only together with an assignment.
            replica_assignments=None if settings.replication_factor else {},
            topic_configs=topic_configs(spec),
        )
        for spec in specs
    ]
    answer = await admin.create_topics(topics, timeout_ms=settings.request_timeout_ms)
    for name, code, *message in answer.topic_errors:
        if code and for_code(code) is not TopicAlreadyExistsError:  # another process was quicker
            reason = (message[0] if message else None) or for_code(code).description
            raise EnvironmentError_(f"The broker does not create topic {name}: {reason}", topic=name)
    log.info("Topics created", extra={"action": "topics_created", "topics": [spec.name for spec in specs]})


async def _await_leaders(admin: AIOKafkaAdminClient, names: Collection[str]) -> None:
    give_up = time.monotonic() + _PROPAGATION_S
    while True:
        states = await _states(admin, None)
        led = {state.name for state in states if state.partitions and not state.leaderless}
        if led.issuperset(names):
            return
        if time.monotonic() > give_up:
            raise BrokerUnavailable(f"Topics have no leader: {', '.join(sorted(set(names) - led))}.")
        await asyncio.sleep(_BACKOFF_FIRST_S)


async def _states(admin: AIOKafkaAdminClient, names: Collection[str] | None) -> list[TopicState]:
    states = []
    for described in await admin.describe_topics(None):  # naming an absent topic would be an error
        partitions = described["partitions"]
        if described["error_code"] or (described["is_internal"] if names is None else described["topic"] not in names):
            continue
        states.append(
            TopicState(
                name=described["topic"],
                partitions=len(partitions),
                replication_factor=min((len(one["replicas"]) for one in partitions), default=0),
                leaderless=sum(1 for one in partitions if one["leader"] < 0),
            )
        )
    return states


async def _with_configs(admin: AIOKafkaAdminClient, names: Collection[str] | None) -> list[TopicState]:
    """The topics with their settings. Each question goes to another broker: a topic one of them has not heard of yet
    is left out, as one that does not exist.
    """
    states = await _states(admin, names)
    if not states:
        return []
    asked = [ConfigResource(ConfigResourceType.TOPIC, state.name) for state in states]
    configs: dict[str, dict[str, str]] = {}
    for answer in await admin.describe_configs(asked):
        for resource in answer.to_object()["resources"]:
            error = for_code(resource["error_code"])
            if error is UnknownTopicOrPartitionError:
                continue
            if error is not NoError:
                raise error(resource["error_message"] or error.description)
            entries: list[dict[str, Any]] = resource["config_entries"]
            configs[resource["resource_name"]] = {one["config_names"]: one["config_value"] or "" for one in entries}
    return [
        TopicState(state.name, state.partitions, state.replication_factor, state.leaderless, configs[state.name])
        for state in states
        if state.name in configs
    ]
