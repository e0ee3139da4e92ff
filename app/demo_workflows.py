"""The workflows that `headrace up` shows: registered where unknown, and the one that fails on purpose started."""

from collections.abc import Mapping
from contextlib import aclosing, suppress
from importlib.resources import files
from typing import Any, Final

import orjson

from app.adapters.connection import security_options
from app.adapters.producer import BatchProducer, ProducerLimits
from app.adapters.topic_reader import TopicReader
from app.definition_wire import Definition, id_of_key, registration, version_of
from app.definitions.text import read_text
from app.domain.workflow.commands import Start
from app.domain.workflow.placement import partition_of
from app.ports import Clock, OutRecord
from app.workflow_wire import encode_command
from config.kafka import KafkaSettings
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_DEFINITIONS

FAILING: Final = "demo-needs-retry"
"""Fails at its first attempt; `headrace executions retry` puts it right."""
ON_SIGNALS: Final = "demo-signal-report"
"""Succeeds on the signals of live telemetry."""
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


def definition_of(workflow: str) -> Definition:
    """A demonstration as it comes with the product."""
    content = files("config").joinpath("workflows", f"{workflow}.yaml").read_bytes()
    document: Mapping[str, Any] = read_text(content).data
    return Definition(document["id"], version_of(document), document)


async def show_workflows(kafka: KafkaSettings, clock: Clock) -> str:
    """Register what is not registered, start the one that fails; its execution's id.

    A demonstration that somebody has changed and registered again stays as it is. Raises `HeadraceError`.
    """
    known = await _latest(TopicReader(kafka))
    now_ms = clock.now_ms()
    records: list[OutRecord] = []
    for workflow in (FAILING, ON_SIGNALS):
        if workflow not in known:
            definition = definition_of(workflow)
            known[workflow] = definition.version
            records += registration(definition, now_ms)
    limits = ProducerLimits(
        kafka.bootstrap_servers, client_id=f"{kafka.client_id}-demo", security=security_options(kafka)
    )
    async with BatchProducer(limits) as producer:
        await producer.publish(records)
        execution_id = f"{FAILING}-{_short(now_ms // 1000)}"
        partition = partition_of(execution_id, await producer.partitions(WORKFLOW_COMMANDS.name))
        start = Start(
            execution_id=execution_id,
            workflow=FAILING,
            version=known[FAILING],
            input={},
            at_ms=now_ms,
            trigger={"kind": "cli", "by": "headrace up"},
        )
        value = encode_command(start)
        await producer.publish(
            [OutRecord(WORKFLOW_COMMANDS.name, execution_id.encode(), value, now_ms, partition=partition)]
        )
    return execution_id


async def _latest(reader: TopicReader) -> dict[str, str]:
    """The latest version of every workflow that is registered."""
    found: dict[str, str] = {}
    topic = WORKFLOW_DEFINITIONS.name
    async with aclosing(reader.read(topic, await reader.begins(topic), await reader.ends(topic))) as batches:
        async for batch in batches:
            for record in batch:
                where = id_of_key((record.key or b"").decode(errors="replace"))
                if where is not None and where[0] == "latest" and record.value is not None:
                    # Whoever reads the registry passes over, and says, what cannot be read.
                    with suppress(ValueError, KeyError, TypeError):
                        found[where[1]] = str(orjson.loads(record.value)["version"])
    return found


def _short(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits
