"""The workflow benchmarks run end to end with the processes as they ship, in miniature; peers by `headrace bench`."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from app.adapters.embedded import EmbeddedKafka
from app.bench.broker import BenchBroker
from app.bench.engine import TOPICS, Engine
from app.bench.failover import bench_failover
from app.bench.side import Effort
from app.bench.timers import bench_timers
from app.bench.workflow import DEFINITION, WORKFLOW, bench_workflow
from app.errors import UserError
from tests.helpers.broker import embedded_settings

pytestmark = [pytest.mark.broker, pytest.mark.slow]


def quiet(*_: object) -> None:
    return


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker without topics of workflows."""
    embedded = EmbeddedKafka(embedded_settings(tmp_path_factory.mktemp("bench-kafka")))
    asyncio.run(embedded.start())
    try:
        yield embedded.bootstrap
    finally:
        asyncio.run(embedded.stop())


@pytest_asyncio.fixture
async def bench(kafka: str) -> AsyncIterator[BenchBroker]:
    async with BenchBroker(kafka) as opened:
        yield opened


async def test_our_side_of_the_workflow_benchmark_does_all_of_its_work(bench: BenchBroker) -> None:
    result = await bench_workflow(bench, Effort(records=200, runs=1, peers=()), quiet, quiet)
    assert result.missing == {}
    assert isinstance(result.ours, float)
    (run,) = result.runs
    assert run.figures["executions"] == 200
    assert run.figures["alone_p50_ms"] > 0
    assert not [name for name in await bench.topics() if name.startswith(TOPICS)]


async def test_timers_are_all_counted_and_none_is_early(bench: BenchBroker) -> None:
    result = await bench_timers(bench, 1, 1, quiet, quiet, rate=100)
    (run,) = result.runs
    assert (run.figures["timers"], run.figures["early"]) == (100, 0)


async def test_a_killed_engine_loses_nothing_and_the_gap_is_told(bench: BenchBroker, tmp_path: Path) -> None:
    result = await bench_failover(bench, 1, quiet, quiet, rate=50, plot=tmp_path / "kills.png")
    (run,) = result.runs
    assert result.settings["executions"] > 100
    assert result.settings["starts"]["accepted"] <= result.settings["executions"] <= result.settings["starts"]["asked"]
    assert isinstance(run.value, dict)
    assert run.value["gap_ms"] > 0
    assert (tmp_path / "kills.png").read_bytes().startswith(b"\x89PNG")


async def test_a_broker_with_workflows_on_it_is_refused(bench: BenchBroker, tmp_path: Path) -> None:
    async with Engine(bench) as engine:
        await engine.register({**DEFINITION, "id": WORKFLOW})
        with pytest.raises(UserError, match="one of their own"):
            async with Engine(bench):
                pass
