"""Laws of where executions live, on a real broker: what comes elsewhere is refused, another cut of the topics too."""

import time
from pathlib import Path

import orjson
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from app.adapters.producer import BatchProducer, ProducerLimits
from app.adapters.topic_reader import TopicReader
from app.adapters.topics_admin import ensure_topics
from app.adapters.workflow_letters import LetterIndex, WantedLetters, redrive
from app.domain.workflow.placement import WRONG_PARTITION, partition_of
from app.errors import UserError
from app.ports import OutRecord
from app.workflow_wire import encode_command
from config.kafka import KafkaSettings
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_DEADLETTER, WORKFLOW_EVENTS, WORKFLOW_STATE, WORKFLOW_TOPICS
from tests.helpers.engine import KnownWorkflows, ObedientExecutor, book, coordinator, settings, started, task, workflow
from tests.helpers.kafka import read_topic

pytestmark = [pytest.mark.broker]

PARTITIONS = 2
NAMES = ("a", "b", "c", "d", "e")
LINE = workflow("line", task("only"))


async def _refused(broker: str, count: int) -> list[dict[str, object]]:
    ends_s = time.monotonic() + 60
    while True:
        found = await read_topic(broker, WORKFLOW_DEADLETTER.name)
        letters = [orjson.loads(record.value) for records in found.values() for record in records if record.value]
        if len(letters) >= count:
            return letters
        assert time.monotonic() < ends_s, f"{len(letters)} dead letters"


async def test_what_comes_to_a_wrong_partition_is_refused_and_another_number_of_partitions_too(
    module_broker: str, tmp_path: Path
) -> None:
    specs = (*WORKFLOW_TOPICS, WORKFLOW_STATE)
    await ensure_topics(module_broker, specs, KafkaSettings(partitions=PARTITIONS))
    chosen = settings(module_broker, tmp_path)
    now_ms = int(time.time() * 1000)
    async with (
        coordinator(chosen, KnownWorkflows(LINE), ObedientExecutor()),
        book(module_broker) as log,
        BatchProducer(ProducerLimits(module_broker)) as producer,
    ):
        records = [
            OutRecord(
                WORKFLOW_COMMANDS.name,
                name.encode(),
                encode_command(started("line", name, at_ms=now_ms)),
                now_ms,
                (),
                1 - partition_of(name, PARTITIONS),
            )
            for name in NAMES
        ]
        await producer.publish(records)
        letters = await _refused(module_broker, len(NAMES))
        assert {letter["reason"] for letter in letters} == {WRONG_PARTITION}
        assert all(log.state(name) is None for name in NAMES)
        index = LetterIndex(TopicReader(KafkaSettings(bootstrap_servers=module_broker)))
        await index.refresh()
        found = list(index.find(WantedLetters(kind="command", reason=WRONG_PARTITION)))
        sent = [done async for done in redrive(index, producer, found, PARTITIONS, now_ms=lambda: now_ms)]
        assert sent[-1].commands == len(NAMES)
        for name in NAMES:
            assert (await log.ended(name)).status == "succeeded", "where it lives"
    admin = AIOKafkaAdminClient(bootstrap_servers=module_broker)
    await admin.start()
    cut_again = (WORKFLOW_COMMANDS, WORKFLOW_EVENTS, WORKFLOW_STATE)
    await admin.create_partitions({spec.name: NewPartitions(2 * PARTITIONS) for spec in cut_again})
    await admin.close()
    with pytest.raises(UserError, match=r"has 4 partitions, and the executions .* were placed among 2"):
        async with coordinator(chosen, KnownWorkflows(LINE), ObedientExecutor()):
            raise AssertionError("it must not begin")
