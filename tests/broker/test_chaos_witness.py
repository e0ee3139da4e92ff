"""Law of the witness: what it writes down while records come is what whoever reads afterwards finds there."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from app.adapters.topic_reader import TopicReader
from app.chaos.checker_cluster import digest
from app.chaos.checker_witness import witness
from app.ports import OutRecord
from config.kafka import KafkaSettings
from tests.helpers.records import send

pytestmark = pytest.mark.broker


async def test_a_witness_from_the_first_record_on_agrees_with_a_later_reader(
    broker: str, new_topic: Any, tmp_path: Path
) -> None:
    topic, path, stop = new_topic(partitions=2), tmp_path / "witness.jsonl", asyncio.Event()
    now_ms = time.time_ns() // 1_000_000
    sent = [OutRecord(topic, b"%d" % n, b"v%d" % n if n % 5 else None, now_ms, (), n % 2) for n in range(60)]
    await send(broker, sent[:30])
    with path.open("ab") as file:
        watching = asyncio.create_task(witness(broker, [topic], file, stop))
        await send(broker, sent[30:])
        async with asyncio.timeout(60):
            while path.read_bytes().count(b"\n") < len(sent):  # noqa: ASYNC110 - a file tells nobody
                await asyncio.sleep(0.02)
        stop.set()
        await watching
    seen = {(row["partition"], row["offset"]): row["hash"] for row in map(json.loads, path.read_text().splitlines())}
    reader = TopicReader(KafkaSettings(bootstrap_servers=broker))
    found: dict[tuple[int, int], str] = {}
    async for batch in reader.read(topic, await reader.begins(topic), await reader.ends(topic)):
        found |= {(one.partition, one.offset): digest(one.key, one.value) for one in batch}
    assert seen == found
    assert len(set(found.values())) == len(sent)
