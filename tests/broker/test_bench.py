"""Each benchmark of ours runs end to end on a real broker, in miniature; peers are measured by `make bench`."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from app.bench.broker import INPUT_TOPIC, OUTPUT_TOPIC, PARTITIONS, BenchBroker
from app.bench.capacity import bench_capacity
from app.bench.child import SideFailed
from app.bench.golden import check_converted
from app.bench.payload import Plan, plan_until, samples
from app.bench.processing import bench_rollup, bench_transform
from app.bench.producing import bench_batch_vs_single, bench_producer
from app.bench.send_latency import bench_send_latency
from app.bench.side import Effort
from app.bench.spool import bench_spool
from app.domain.capacity import Load
from app.domain.murmur2 import partition_for

pytestmark = pytest.mark.broker
NO_PEERS = ()
NOW_MS = 1_763_689_000_000


def quiet(*_: object) -> None:
    return


@pytest_asyncio.fixture
async def bench(broker: str) -> AsyncIterator[BenchBroker]:
    async with BenchBroker(broker) as opened:
        yield opened


async def test_loaded_input_is_there_once_in_order_and_in_the_partition_of_its_key(bench: BenchBroker) -> None:
    topic = await bench.create_topic("in", INPUT_TOPIC)
    plan = plan_until(NOW_MS, 9_000)
    await bench.loaded(topic, samples(plan))
    assert await bench.count(topic) == 9_000
    expected: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
    for record in samples(plan):
        expected[partition_for(record.key, PARTITIONS)].append(record.value)
    assert await bench.values(topic) == expected


async def test_append_times_span_the_output(bench: BenchBroker) -> None:
    topic = await bench.create_topic("out", OUTPUT_TOPIC)
    await bench.loaded(topic, samples(plan_until(NOW_MS, 20_000)))
    appends = await bench.append_times(topic)
    assert appends.first_ms <= appends.last_ms
    assert appends.first_ms > NOW_MS  # the broker's clock, not the records' own times


async def test_an_output_that_is_not_the_expected_work_is_refused(bench: BenchBroker) -> None:
    source = await bench.create_topic("in", INPUT_TOPIC)
    plan = plan_until(NOW_MS, 100)
    await bench.loaded(source, samples(plan))
    with pytest.raises(SideFailed, match="wrong output"):
        await check_converted(bench, source, source, plan)
    empty = await bench.create_topic("out", OUTPUT_TOPIC)
    with pytest.raises(SideFailed, match="has 0 of"):
        await check_converted(bench, source, empty, Plan(100, plan.start_ms))


async def test_our_producer_is_measured_and_verified(bench: BenchBroker) -> None:
    result = await bench_producer(bench, Effort(20_000, 1, NO_PEERS), quiet)
    assert result.missing == {}
    assert isinstance(result.ours, float)
    assert result.ours > 0


async def test_batches_are_measured_beside_awaited_sends(bench: BenchBroker) -> None:
    result = await bench_batch_vs_single(bench, Effort(20_000, 1, ("one-by-one-ours",)), quiet)
    assert result.missing == {}
    assert result.ratios["one-by-one-ours"] > 1


async def test_our_transform_gives_the_expected_work(bench: BenchBroker) -> None:
    result = await bench_transform(bench, Effort(20_000, 1, NO_PEERS), quiet, quiet)
    assert result.missing == {}
    assert isinstance(result.ours, float)


async def test_our_rollup_gives_every_window_once(bench: BenchBroker) -> None:
    result = await bench_rollup(bench, Effort(30_000, 1, NO_PEERS), quiet, quiet)
    assert result.missing == {}
    assert isinstance(result.ours, float)


async def test_send_latency_counts_every_reading(bench: BenchBroker) -> None:
    result = await bench_send_latency(bench, 1, 1, quiet, quiet, rate=2_000)
    assert isinstance(result.ours, dict)
    assert result.ours.keys() == {"p50", "p95", "p99", "max"}
    figures = result.runs[0].figures
    assert figures["errors"] == 0
    assert figures["ledger_balances"]
    assert figures["generated"] >= 1_900


@pytest.mark.slow
async def test_capacity_gives_every_coefficient(bench: BenchBroker) -> None:
    loads = (Load(100, 1_000, 0), Load(1_000, 5_000, 0), Load(1_000, 1_000, 20_000))
    result = await bench_capacity(bench, 1, quiet, quiet, loads)
    assert isinstance(result.ours, dict)
    assert all(value >= 0 for value in result.ours.values())


async def test_nothing_is_left_on_the_broker(broker: str) -> None:
    async with BenchBroker(broker) as first:
        await first.create_topic("x", {})
        prefix = first.prefix
    async with BenchBroker(broker) as second:
        assert not [name for name in await second.topics() if prefix in name]


async def test_the_spool_is_sent_whole_by_a_successor(bench: BenchBroker) -> None:
    result = await bench_spool(bench, 1, 5_000, quiet, quiet)
    (run,) = result.runs
    assert (run.figures["lost"], run.figures["ledger_balances"]) == (0, True)
    assert isinstance(result.ours, float)
    assert result.ours > 0
