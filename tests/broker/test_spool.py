"""Laws of the spool on a real broker: away, back, killed in between, and no reading of it lost or out of order."""

import asyncio
import re
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from agents.ledger import Books
from agents.spooling import Spooler, SpoolingLimits
from agents.transform import Terms, Transform
from app import metrics
from app.adapters.clock import SystemClock
from app.adapters.embedded import EmbeddedKafka
from app.adapters.producer import BatchProducer, ProducerLimits
from app.adapters.producer_back import Retractable
from app.adapters.spool import Spool, SpoolRules
from app.adapters.topics_admin import ensure_topics
from app.domain.reading import Limits
from app.domain.spool import SpoolLimits, batches, decode_batch
from app.domain.window import RollupSpec
from app.ports import InRecord
from app.rules import compile_section
from config.kafka import KafkaSettings
from config.signals import SignalsSettings
from config.topics import DEVICE_TELEMETRY, TopicSpec
from tests.helpers.broker import KEEPS_ALL
from tests.helpers.cli import Headrace
from tests.helpers.kafka import frozen, own_kafka, read_topic, until
from tests.helpers.processes import until as waited
from tests.helpers.records import records
from tests.helpers.spool import small_disk
from tests.helpers.tables import Disk, Log, LogPublisher, open_tables

pytestmark = pytest.mark.broker

Identity = tuple[str, int, int]


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    with own_kafka(tmp_path_factory.mktemp("spool-kafka"), **KEEPS_ALL) as one:
        yield one


class Scene:
    """A feed of numbered readings through a spooler, whose ledger is looked at with every one."""

    def __init__(self, kafka: EmbeddedKafka, topic: str, folder: Path, **limits: Any) -> None:
        self.kafka = kafka
        self.topic = topic
        self.folder = folder
        self.books = Books(topic)
        self.limits = SpoolingLimits(500, 20, 200, 50_000, 0)._replace(**limits)
        self.disk = SpoolLimits(1 << 30, 86_400_000, 65_536)
        self.made = 0

    async def run(self, play: Any) -> None:
        """Feed while `play` goes on."""
        spec = TopicSpec(self.topic, "device_id", "test", partitions=3)
        await ensure_topics(self.kafka.bootstrap, [spec], KafkaSettings())
        async with BatchProducer(ProducerLimits(self.kafka.bootstrap), self.books.delivered) as producer:
            clock = SystemClock()
            rules = SpoolRules(self.disk, 1_000)
            self.spool = Spool(self.folder, lambda: rules, clock, self.books.lost_from_spool)
            way = Retractable(producer, self.topic)
            self.spooler = Spooler(way, self.spool, self.books, lambda: self.limits, clock)
            await self.spooler.start()
            await self.spooler.partitions(self.topic)
            feeding = asyncio.create_task(self._feed())
            try:
                await play(self)
            finally:
                feeding.cancel()
                await asyncio.wait([feeding])
                await self.spooler.finish()
        assert self.imbalance == 0

    @property
    def imbalance(self) -> int:
        return abs(self.books.imbalance) + abs(self.spooler.imbalance)

    async def _feed(self) -> None:
        while True:
            for _ in range(10):
                self._send()
            assert self.imbalance == 0, "at every instant"
            await asyncio.sleep(0.002)

    def _send(self) -> None:
        now_ms = time.time_ns() // 1_000_000
        key = b"device-%d" % (self.made % 7)
        value = b'{"n":%d,"is_historical":false}' % self.made
        if self.spooler.send_nowait(self.topic, key, value, now_ms, None, (), float(now_ms)):
            self.books.generated({"press": 1})
            self.books.accepted(1)
            self.made += 1

    async def straight(self) -> None:
        """Everything that was on disk is with the broker."""
        await until(lambda: not self.books.ledger.spooled and not self.spool.bytes, "the spool is empty")


async def firsts(kafka: EmbeddedKafka, topic: str) -> dict[bytes, list[dict[str, Any]]]:
    """By device, what the topic has of each reading the first time."""
    found: dict[bytes, dict[int, dict[str, Any]]] = defaultdict(dict)
    for partition in (await read_topic(kafka.bootstrap, topic)).values():
        for record in partition:
            decoded = orjson.loads(record.value)
            found[record.key].setdefault(decoded["n"], decoded)
    return {key: list(each.values()) for key, each in found.items()}


async def test_readings_of_an_absence_arrive_whole_in_order_and_say_so(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    async def play(scene: Scene) -> None:
        await until(lambda: scene.books.ledger.acknowledged > 100, "the broker acknowledges")
        with frozen(kafka):
            await until(lambda: scene.books.ledger.spooled > 2_000, "readings are on disk")
            assert scene.books.unacknowledged < 1_500, "what waited in memory is there too"
            assert (metrics.REGISTRY.get_sample_value("telemetry_spool_bytes") or 0) > 50_000
        await scene.straight()
        straight = scene.made
        await until(lambda: scene.books.ledger.acknowledged > straight, "readings go straight again")

    scene = Scene(kafka, "absence", tmp_path / "spool")
    await scene.run(play)
    ledger = scene.books.ledger
    assert (ledger.acknowledged, ledger.dropped) == (scene.made, {})
    found = await firsts(kafka, "absence")
    assert sum(map(len, found.values())) == scene.made
    for each in found.values():
        numbers = [reading["n"] for reading in each]
        assert numbers == sorted(numbers)
        late = [reading["is_historical"] for reading in each]
        assert (late[0], late[-1], any(late)) == (False, False, True)


async def test_a_second_absence_while_the_first_is_sent_loses_and_reorders_nothing(
    kafka: EmbeddedKafka, tmp_path: Path
) -> None:
    async def play(scene: Scene) -> None:
        await until(lambda: scene.books.ledger.acknowledged > 100, "the broker acknowledges")
        with frozen(kafka):
            await until(lambda: scene.books.ledger.spooled > 1_500, "readings are on disk")
        acknowledged = scene.books.ledger.acknowledged
        await until(lambda: scene.books.ledger.acknowledged > acknowledged, "they are being sent")
        with frozen(kafka):
            spooled = scene.made
            await until(lambda: scene.made > spooled + 1_500, "more comes")
        await scene.straight()

    scene = Scene(kafka, "twice", tmp_path / "spool")
    await scene.run(play)
    assert scene.books.ledger.acknowledged >= scene.made
    found = await firsts(kafka, "twice")
    assert sum(map(len, found.values())) == scene.made
    for each in found.values():
        numbers = [reading["n"] for reading in each]
        assert numbers == sorted(numbers)


async def test_a_stop_without_the_broker_leaves_what_it_has_on_disk_for_the_next_start(
    kafka: EmbeddedKafka, tmp_path: Path
) -> None:
    before = Scene(kafka, "stopped", tmp_path / "spool")

    async def away(scene: Scene) -> None:
        await until(lambda: scene.books.ledger.acknowledged > 100, "the broker acknowledges")
        pausing = frozen(kafka)
        pausing.__enter__()
        try:
            await until(lambda: scene.books.ledger.spooled > 500, "readings are on disk")
            feed_ended = scene.made
            await scene.spooler.finish()
            assert scene.made >= feed_ended
        finally:
            pausing.__exit__(None, None, None)

    await before.run(away)
    left = before.books.ledger.spooled
    assert left > 500
    after = Scene(kafka, "stopped", tmp_path / "spool")

    async def back(scene: Scene) -> None:
        assert scene.books.ledger.recovered == left
        await scene.straight()

    await after.run(back)


async def test_a_full_disk_is_ridden_out_and_what_it_costs_is_named(
    kafka: EmbeddedKafka, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def play(scene: Scene) -> None:
        await until(lambda: scene.books.ledger.acknowledged > 100, "the broker acknowledges")
        with frozen(kafka):
            await until(lambda: scene.books.ledger.dropped.get("spool_disk_full", 0) > 1_000, "the disk is full")
            told = [record for record in caplog.records if getattr(record, "action", "") == "spool_refused"]
            assert len(told) == 1, "however often it was tried"
            assert "No space left on device" in told[0].message
        await scene.straight()

    with small_disk(tmp_path / "disk", "300k") as disk:
        scene = Scene(kafka, "full", disk / "spool", waiting_records=2_000)
        await scene.run(play)
    ledger = scene.books.ledger
    assert set(ledger.dropped) == {"spool_disk_full"}
    assert ledger.generated == ledger.acknowledged + ledger.dropped["spool_disk_full"]
    found = await firsts(kafka, "full")
    assert sum(map(len, found.values())) == ledger.acknowledged


# ---- real processes ----

OPTIONS = (
    *("produce", "--devices", "200", "--interval-ms", "100", "--set=log.format=json"),
    *("--set=spool.after_ms=300", "--set=device.fault_interval_ms=0"),
)


def identities(found: list[InRecord]) -> list[Identity]:
    decoded = (orjson.loads(record.value or b"") for record in found)
    return [(one["device_id"], one["session_id"], one["seq"]) for one in decoded]


def on_disk(folder: Path) -> set[Identity]:
    """The readings in the segments of a spool; a batch that is being written is not there yet."""
    found: set[Identity] = set()
    for path in sorted((folder / ".headrace/spool/produce").glob("*.spool")):
        for batch in batches(path.read_bytes()):
            if batch.payload is not None:
                kept = (orjson.loads(one.value or b"") for one in decode_batch(batch.payload, batch.head.records))
                found |= {(one["device_id"], one["session_id"], one["seq"]) for one in kept}
    return found


def test_a_kill_while_spooling_and_one_while_sending_lose_nothing_and_repeats_are_removed(
    kafka: EmbeddedKafka, tmp_path: Path
) -> None:
    headrace = Headrace(tmp_path, kafka.bootstrap)
    assert headrace("topics", "declare").code == 0
    with headrace.running(*OPTIONS) as first:
        waited(lambda: _count(kafka) > 500, "readings flow")
        with frozen(kafka):
            first.said('"action":"spool_begun"')
            waited(lambda: len(on_disk(tmp_path)) > 4_000, "readings are on disk")
            first.signal(signal.SIGKILL)
            first.ended()
            spooled = on_disk(tmp_path)
    waited(lambda: _count(kafka) > 0, "the broker is back")
    sent = _count(kafka)
    with headrace.running(*OPTIONS, "--set=spool.replay_rate_per_s=2000") as second:
        second.said('"action":"spool_recovered"')
        waited(lambda: _count(kafka) > sent + 1_000, "the spool is being sent")
        second.signal(signal.SIGKILL)
        second.ended()
        spooled |= on_disk(tmp_path)
    with headrace.running(*OPTIONS) as third:
        third.said('"action":"spool_replayed"')
        third.signal(signal.SIGINT)
        assert third.ended() == 0, third.output
        assert re.search(r"Ledger balanced: .* recovered from the spool", third.output), third.output
    found = records(kafka.bootstrap, DEVICE_TELEMETRY.name)
    everything = identities(found)
    assert spooled <= set(everything)
    asyncio.run(_removed_downstream(found, len(everything) - len(set(everything))))


def _count(kafka: EmbeddedKafka) -> int:
    return len(records(kafka.bootstrap, DEVICE_TELEMETRY.name))


async def _removed_downstream(found: list[InRecord], repeats: int) -> None:
    """The transform takes each reading once, and none of them is late."""
    before = metrics.DUPLICATES._value.get()
    signals = compile_section(SignalsSettings.model_validate({"rules": []}))
    terms = Terms(Limits(), RollupSpec(), signals, 1_000, 100)

    def in_force() -> Terms:
        return terms

    for partition in {record.partition for record in found}:
        log = Log()
        tables, _ = await open_tables(log, Disk(), LogPublisher(log))
        now_ms = time.time_ns() // 1_000_000
        mine = [record for record in found if record.partition == partition]
        changes = Transform(tables, in_force, now_ms).take(mine, now_ms, behind=False)
        assert {out.topic for out in changes.outputs} <= {"device.rollups", "device.signals"}
    assert metrics.DUPLICATES._value.get() - before == repeats


def test_a_broker_that_is_killed_and_comes_back_has_everything(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    headrace = Headrace(tmp_path, kafka.bootstrap)
    assert headrace("topics", "declare").code == 0
    with headrace.running(*OPTIONS) as running:
        before = _count(kafka)
        waited(lambda: _count(kafka) > before + 500, "readings flow")
        kafka.kill(1)
        running.said('"action":"spool_begun"')
        waited(lambda: len(on_disk(tmp_path)) > 1_000, "readings are on disk")
        asyncio.run(kafka.start_node(1))
        running.said('"action":"spool_replayed"')
        running.signal(signal.SIGINT)
        assert running.ended() == 0, running.output
    ledger = re.search(r"Ledger balanced: ([\d,]+) generated, ([\d,]+) acknowledged", running.output)
    assert ledger is not None, running.output
    assert ledger[1] == ledger[2]
