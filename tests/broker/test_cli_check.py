"""Laws of `headrace check rollups`: silent beside a pipeline that is right, and every seeded difference is found."""

import asyncio
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from app.adapters.clock import SystemClock
from app.codec import encode_dead_letter_record, encode_late, encode_rollup, encode_sample
from app.domain.deadletter import Origin, dead_letter
from app.domain.reading import Limits, Reading, Sample
from app.domain.rollup import DeviceState, Outcome, Rollup, close_all, process_device
from app.errors import Unavailable, UserError
from app.ports import OutRecord
from app.rollup_check import Checked, Terms, Topics, check_rollups
from config.kafka import KafkaSettings
from config.topics import DEVICE_ROLLUPS, DEVICE_TELEMETRY
from tests.helpers.broker import TopicFactory
from tests.helpers.cli import Headrace
from tests.helpers.processes import until
from tests.helpers.records import count, reader, records, send
from tests.helpers.telemetry import START_MS, sample, small_spec

pytestmark = pytest.mark.broker

SPEC = small_spec(2_000)
DEVICES = ("press-0001", "press-0002", "press-0003", "pump-0001")
LIMITS = Limits()
NO_BOUND = {"message.timestamp.before.max.ms": str((1 << 63) - 1)}


def partition_of(device_id: str) -> int:
    return DEVICES.index(device_id) % 2


def telemetry() -> list[Sample]:
    """Four devices for a minute, with gaps, a duplicate and one that comes too late."""
    found = []
    for device_id in DEVICES:
        samples = [sample(n, n * 500, float(n), float(-n), device_id=device_id) for n in range(1, 120) if n % 17]
        samples.insert(60, samples[50])
        samples.insert(90, sample(17, 17 * 500, 1.0, 2.0, device_id=device_id))
        found += samples
    return found


@dataclass
class Pipeline:
    """New topics with telemetry, and what a right transform makes of it."""

    bootstrap: str
    topics: Topics
    group: str

    async def produce(self, samples: Sequence[Sample]) -> None:
        await send(
            self.bootstrap,
            [
                OutRecord(
                    self.topics.telemetry,
                    each.device_id.encode(),
                    encode_sample(each),
                    each.source_timestamp,
                    partition=partition_of(each.device_id),
                )
                for each in samples
            ],
        )

    async def transform(self, *, close: bool = True) -> list[Rollup]:
        """Read all telemetry, emit late records, commit; the rollups are left to the test."""
        states: dict[str, DeviceState] = {}
        rollups: list[Rollup] = []
        late: list[OutRecord] = []
        for record in await asyncio.to_thread(records, self.bootstrap, self.topics.telemetry):
            assert record.value is not None
            fields = orjson.loads(record.value)
            if "metrics" not in fields:
                continue
            found = sample(1, 0)._replace(**{**fields, "metrics": tuple(_reading(each) for each in fields["metrics"])})
            state = states.setdefault(found.device_id, DeviceState(found.device_id, SPEC))
            out = Outcome()
            process_device(state, [(record.offset, found)], SPEC, found.recorded_timestamp, out)
            rollups += out.rollups
            for each in out.late:
                value = encode_late(each, self.topics.telemetry, record.partition)
                late.append(OutRecord(self.topics.late, None, value, START_MS))
        for state in states.values() if close else ():
            out = Outcome()
            close_all(state, SPEC, out)
            rollups += out.rollups
        await send(self.bootstrap, late)
        await self.commit()
        return rollups

    async def commit(self, short_by: int = 0) -> None:
        ends = await reader(self.bootstrap).ends(self.topics.telemetry)
        async with AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap, group_id=self.group, enable_auto_commit=False
        ) as consumer:
            offsets = {TopicPartition(self.topics.telemetry, at): end - short_by for at, end in ends.items()}
            consumer.assign(list(offsets))
            await consumer.commit(offsets)

    async def emit(self, rollups: Sequence[Rollup]) -> None:
        await send(
            self.bootstrap,
            [
                OutRecord(self.topics.rollups, each.device_id.encode(), encode_rollup(each), START_MS)
                for each in rollups
            ],
        )

    async def checked(self, **changes: object) -> Checked:
        terms = Terms(SPEC, LIMITS, self.group, wait_s=0.5)._replace(**changes)  # type: ignore[arg-type]
        kafka = KafkaSettings(bootstrap_servers=self.bootstrap)
        return await check_rollups(reader(self.bootstrap), kafka, terms, clock=SystemClock(), topics=self.topics)


def _reading(fields: dict[str, Any]) -> Reading:
    return Reading(**fields)


@pytest.fixture
def pipeline(broker: str, new_topic: TopicFactory) -> Pipeline:
    topics = Topics(*(new_topic(2, **NO_BOUND) for _ in range(4)))
    return Pipeline(broker, topics, f"{topics.telemetry}-transform")


async def test_what_is_right_has_no_difference_in_any_number_of_passes(pipeline: Pipeline) -> None:
    await pipeline.produce(telemetry())
    await pipeline.emit(await pipeline.transform())
    whole = await pipeline.checked()
    assert (whole.is_equal, whole.passes, whole.late) == (True, 1, 4), whole.differences
    assert whole.records == len(telemetry())
    assert whole.windows > 100
    parts = await pipeline.checked(memory_bytes=1 << 20)
    assert parts.passes > 1
    assert (parts.is_equal, parts.records, parts.windows) == (True, whole.records, whole.windows)


async def test_every_seeded_difference_is_found_and_named(pipeline: Pipeline) -> None:
    await pipeline.produce(telemetry())
    rollups = await pipeline.transform()
    final = [each for each in rollups if each.is_final and each.count > 1]
    gap, double, lost = final[0], final[40], final[80]
    wrong = {
        id(gap): gap._replace(count=gap.count - 1),
        id(double): double._replace(count=double.count + 1),
    }
    lost_key = (lost.device_id, lost.metric, lost.window_start, lost.window_ms)
    emitted = [wrong.get(id(each), each) for each in rollups]
    kept = [each for each in emitted if (each.device_id, each.metric, each.window_start, each.window_ms) != lost_key]
    await pipeline.emit([*kept, final[0]._replace(metric="ghost")])
    checked = await pipeline.checked()
    assert dict(checked.counts) == {"gap": 1, "double count": 1, "missing window": 1, "unexpected window": 1}
    assert {each.key for each in checked.differences} >= {lost_key}


async def test_a_record_that_is_nowhere_is_lost(pipeline: Pipeline) -> None:
    await pipeline.produce(telemetry())
    bad = [OutRecord(pipeline.topics.telemetry, b"press-0001", b'{"half": 1}', START_MS, partition=0) for _ in range(2)]
    await send(pipeline.bootstrap, bad)
    ends = await reader(pipeline.bootstrap).ends(pipeline.topics.telemetry)
    origin = Origin(pipeline.topics.telemetry, 0, ends[0] - 1, START_MS, b"press-0001", b"{}")
    letter = dead_letter(origin, stage="transform", reason="missing_field", detail="", now_ms=0, keep_bytes=10)
    buried = OutRecord(pipeline.topics.deadletter, None, encode_dead_letter_record(letter), START_MS)
    await send(pipeline.bootstrap, [buried])
    await pipeline.emit(await pipeline.transform())
    checked = await pipeline.checked()
    assert (checked.dead, dict(checked.counts)) == (1, {"lost record": 1})


async def test_windows_that_can_still_change_are_left_out(pipeline: Pipeline) -> None:
    await pipeline.produce(telemetry())
    await pipeline.emit(await pipeline.transform(close=False))
    checked = await pipeline.checked()
    assert checked.is_equal, checked.differences
    assert checked.open_windows > 0


async def test_a_transform_that_is_behind_is_waited_for_and_told(pipeline: Pipeline) -> None:
    await pipeline.produce(telemetry())
    with pytest.raises(UserError, match="has committed nothing"):
        await pipeline.checked()
    await pipeline.commit(short_by=3)
    with pytest.raises(Unavailable, match=r"6 records of .* to go"):
        await pipeline.checked()


# ---- beside a real worker ----

FLAGS = tuple(f"--set=rollup.{name}" for name in ("grace_ms=300", "idle_timeout_ms=500"))
PORTS = tuple(f"--set={section}.port=0" for section in ("health", "metrics"))


@pytest.fixture
def worker(headrace: Headrace) -> Iterator[Headrace]:
    """A transform at work and a fleet that sends."""
    assert headrace("topics", "declare").code == 0
    with headrace.running("worker", "--roles", "worker", *PORTS, *FLAGS) as working:
        working.said("process started")
        yield headrace
        working.signal(signal.SIGTERM)
        assert working.ended() == 0, working.output


@pytest.mark.slow
def test_beside_a_running_pipeline_and_after_it(worker: Headrace) -> None:
    with worker.running("produce", "--devices", "20", "--interval-ms", "100") as fleet:
        until(lambda: count(worker.bootstrap, DEVICE_ROLLUPS.name) > 500, "rollups are emitted", 60)
        live = worker("check", "rollups", "--json", *FLAGS)
        assert (live.code, live.json["equal"]) == (0, True), live
        assert live.json["windows"] > 100
        fleet.signal(signal.SIGINT)
        assert fleet.ended() == 0
    done = worker("check", "rollups", *FLAGS)
    assert done.code == 0, done
    assert "No difference." in done.out
    recent = worker("check", "rollups", "--since", "1h", "--json", *FLAGS)
    assert (recent.code, recent.json["from_ms"] is not None) == (0, True), recent
    last = [orjson.loads(each.value or b"{}") for each in records(worker.bootstrap, DEVICE_ROLLUPS.name)]
    tampered = {**next(each for each in last if each["is_final"]), "metric": "ghost"}
    now_ms = SystemClock().now_ms()
    stray = OutRecord(DEVICE_ROLLUPS.name, tampered["device_id"].encode(), orjson.dumps(tampered), now_ms)
    asyncio.run(send(worker.bootstrap, [stray]))
    found = worker("check", "rollups", *FLAGS)
    assert found.code == 1
    assert re.search(r"unexpected window +" + tampered["device_id"], found.out), found.out
    assert "1 differences: 1 unexpected window." in found.out
    assert count(worker.bootstrap, DEVICE_TELEMETRY.name) > 0
