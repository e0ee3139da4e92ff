"""Laws of the engine on a real broker: each kind of execution runs to its end, and the wrong ones end with a cause."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer

from app.adapters.topics_admin import ensure_topics
from app.domain.workflow.commands import Cancel, Pause, Resume, RetryExecution, Signal
from app.domain.workflow.definition import MapOver, Retry
from app.domain.workflow.events import (
    ApprovalRequested,
    ExecutionPaused,
    ExecutionResumed,
    TaskFailed,
    TaskScheduled,
    TaskSucceeded,
)
from app.domain.workflow.placement import partition_of
from config.kafka import KafkaSettings
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_DEADLETTER, WORKFLOW_STATE, WORKFLOW_TOPICS
from tests.helpers.engine import (
    Book,
    Coordinator,
    KnownWorkflows,
    ObedientExecutor,
    book,
    coordinator,
    settings,
    started,
    task,
    workflow,
)
from tests.helpers.kafka import read_topic, until

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="module")]

PARTITIONS = 2
LINE = workflow("line", task("a", value={"n": "${input.n}"}), task("b", "a", value="${a.n}"), task("c", "b", value=3))
FLOWS = (
    LINE,
    workflow("diamond", task("a"), task("b", "a"), task("c", "a"), task("d", "b", "c", when="input.n > 1")),
    workflow("flaky", task("a", do="fail_first:2", retry=Retry(attempts=3, backoff_s=0.05))),
    workflow("nap", task("a", type="wait", params={"seconds": 0.3}), task("b", "a")),
    workflow("fan", task("a", map=MapOver(over="input.list", concurrency=3), value="${item * 2}")),
    workflow("inner", task("x", value="${input}")),
    workflow("outer", task("call", type="workflow", params={"id": "inner", "input": "input.n"}), task("z", "call")),
    workflow("bad-call", task("call", type="workflow", params={"id": "nowhere"})),
    workflow("ask", task("ask", type="approval", params={"signal": "go"}), task("after", "ask", value="${ask.by}")),
    workflow("stuck", task("a", do="hang"), task("b", "a")),
    workflow("slow", task("a", do="hang", timeout_s=0.2), timeout_s=0.5),
    workflow("broken", task("a"), task("b", "a", do="fail"), on_failure=task("mend")),
    workflow("once-broken", task("a"), task("b", "a", do="fail_first:1"), task("c", "b")),
)


@pytest.fixture(scope="module")
def topics(module_broker: str) -> str:
    """A broker with the topics of workflows."""
    asyncio.run(ensure_topics(module_broker, (*WORKFLOW_TOPICS, WORKFLOW_STATE), KafkaSettings(partitions=PARTITIONS)))
    return module_broker


@pytest.fixture(scope="module")
def definitions() -> KnownWorkflows:
    return KnownWorkflows(*FLOWS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(
    topics: str, definitions: KnownWorkflows, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Coordinator]:
    chosen = settings(topics, tmp_path_factory.mktemp("tables"))
    async with coordinator(chosen, definitions, ObedientExecutor()) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def log(topics: str) -> AsyncIterator[Book]:
    async with book(topics) as opened:
        yield opened


def name() -> str:
    return str(uuid.uuid4())


def orders(engine: Coordinator, execution_id: str) -> list[Any]:
    executor = engine.executor
    assert isinstance(executor, ObedientExecutor)
    return [order for order in executor.orders if order.execution_id == execution_id]


async def ran(log: Book, flow: str, **given: Any) -> Any:
    one = name()
    await log.tell(started(flow, one, given))
    return await log.ended(one)


async def dead_letters(broker: str) -> list[dict[str, Any]]:
    found = await read_topic(broker, WORKFLOW_DEADLETTER.name)
    return [orjson.loads(record.value) for records in found.values() for record in records]


# ---- what ends well ----


async def test_tasks_run_one_after_the_other_with_the_results_of_those_before(engine: Coordinator, log: Book) -> None:
    state = await ran(log, "line", n=7)
    assert (state.status, state.tasks["b"].result, state.result) == ("succeeded", 7, 3)
    assert [order.task for order in orders(engine, state.execution_id)] == ["a", "b", "c"]
    assert [event.seq for event in log.histories[state.execution_id]] == list(range(8))


async def test_branches_run_side_by_side_and_a_condition_skips(engine: Coordinator, log: Book) -> None:
    for n, last in ((2, "succeeded"), (1, "skipped")):
        state = await ran(log, "diamond", n=n)
        assert (state.status, state.tasks["d"].status) == ("succeeded", last)
        assert [order.task for order in orders(engine, state.execution_id)][:3] == ["a", "b", "c"]


async def test_an_attempt_that_fails_is_made_again_after_its_wait(engine: Coordinator, log: Book) -> None:
    state = await ran(log, "flaky")
    failures = [event for event in log.histories[state.execution_id] if isinstance(event, TaskFailed)]
    assert (state.status, state.tasks["a"].attempt, len(failures)) == ("succeeded", 3, 2)
    keys = {order.idempotency_key for order in orders(engine, state.execution_id)}
    assert len(keys) == 1


async def test_a_wait_lasts_as_long_as_it_says(engine: Coordinator, log: Book) -> None:
    state = await ran(log, "nap")
    assert state.status == "succeeded"
    assert state.ended_at - state.started_at >= 300


async def test_a_map_keeps_the_order_of_its_list_and_its_bound(engine: Coordinator, log: Book) -> None:
    state = await ran(log, "fan", list=list(range(20)))
    assert state.result == [2 * n for n in range(20)]
    assert len(orders(engine, state.execution_id)) == 20


async def test_a_sub_workflow_gives_its_result_to_its_parent(engine: Coordinator, log: Book) -> None:
    state = await ran(log, "outer", n=41)
    assert (state.status, state.tasks["call"].result) == ("succeeded", 41)


async def test_an_approval_waits_for_its_signal_whose_payload_is_its_result(
    engine: Coordinator,
    log: Book,
) -> None:
    one = name()
    await log.tell(started("ask", one))
    await log.seen(one, lambda events: any(isinstance(e, ApprovalRequested) for e in events), "it asks")
    signal = Signal(execution_id=one, command_id="s1", name="go", payload={"by": "ada"})
    await log.tell(signal, signal)
    state = await log.ended(one)
    assert (state.status, state.result) == ("succeeded", "ada")


async def test_a_definition_that_is_on_its_way_is_waited_for(
    engine: Coordinator,
    log: Book,
    definitions: KnownWorkflows,
) -> None:
    definitions.late.append(workflow("newest", task("a")))
    assert (await ran(log, "newest")).status == "succeeded"


async def test_a_start_that_comes_again_changes_nothing(engine: Coordinator, log: Book) -> None:
    one = name()
    begin = started("line", one, {"n": 1})
    await log.tell(begin, begin)
    state = await log.ended(one)
    await log.tell(begin)
    assert (await ran(log, "line", n=2)).status == "succeeded"
    assert len(orders(engine, one)) == 3
    assert len(log.histories[one]) == state.seq


# ---- what people order ----


async def test_a_cancel_ends_an_execution_and_calls_its_task_back(engine: Coordinator, log: Book) -> None:
    one = name()
    await log.tell(started("stuck", one))
    await until(lambda: orders(engine, one), "the task runs")
    await log.tell(Cancel(execution_id=one, command_id="c1", reason="enough"))
    state = await log.ended(one)
    assert (state.status, state.reason) == ("cancelled", "enough")
    executor = engine.executor
    assert isinstance(executor, ObedientExecutor)
    await until(lambda: (one, None, None) in executor.cancelled, "the task is called back")


async def test_nothing_begins_while_an_execution_is_paused(engine: Coordinator, log: Book) -> None:
    one = name()
    executor = engine.executor
    assert isinstance(executor, ObedientExecutor)
    await log.tell(started("stuck", one))
    await until(lambda: orders(engine, one), "the task runs")
    await log.tell(Pause(execution_id=one, command_id="p1"))
    await log.seen(one, lambda events: any(isinstance(e, ExecutionPaused) for e in events), "it pauses")
    executor.finish(one)
    await log.seen(one, lambda events: isinstance(events[-1], TaskSucceeded), "what ran has ended")
    assert len(orders(engine, one)) == 1
    await log.tell(Resume(execution_id=one, command_id="r1"))
    state = await log.ended(one)
    assert (state.status, len(orders(engine, one))) == ("succeeded", 2)
    assert any(isinstance(event, ExecutionResumed) for event in log.histories[one])


async def test_a_failed_execution_compensates_becomes_a_dead_letter_and_can_be_retried(
    engine: Coordinator,
    log: Book,
    topics: str,
) -> None:
    state = await ran(log, "broken")
    assert (state.status, state.failed_task, state.tasks["mend"].status) == ("failed", "b", "succeeded")
    letters = [letter for letter in await dead_letters(topics) if letter.get("execution_id") == state.execution_id]
    assert [(letter["kind"], letter["task"]) for letter in letters] == [("execution", "b")]
    again = await ran(log, "once-broken")
    assert again.status == "failed"
    await log.tell(RetryExecution(execution_id=again.execution_id, command_id="again"))
    state = await log.ended(again.execution_id, runs=2)
    assert state.status == "succeeded"
    assert [order.task for order in orders(engine, again.execution_id)] == ["a", "b", "b", "c"]


# ---- what cannot end well ----


async def test_an_execution_that_takes_too_long_is_timed_out(engine: Coordinator, log: Book) -> None:
    state = await ran(log, "slow")
    assert state.status == "timed_out"


@pytest.mark.parametrize(("flow", "version"), [("nowhere", "v1"), ("line", "v9")])
async def test_an_unknown_workflow_or_version_is_an_execution_that_failed_for_that(
    engine: Coordinator,
    log: Book,
    flow: str,
    version: str,
) -> None:
    one = name()
    await log.tell(started(flow, one, version=version))
    state = await log.ended(one)
    assert state.status == "failed"
    assert state.error is not None
    assert (state.error.type, version in state.error.message) == ("UnknownWorkflow", True)


async def test_a_sub_workflow_that_does_not_exist_fails_its_parent(engine: Coordinator, log: Book) -> None:
    state = await ran(log, "bad-call")
    assert state.status == "failed"
    assert state.error is not None
    assert "no workflow 'nowhere'" in state.error.message


async def test_an_input_that_is_too_large_is_refused_with_the_limit(engine: Coordinator, log: Book) -> None:
    state = await ran(log, "line", n="x" * 600_000)
    assert (state.status, state.input) == ("failed", None)
    assert state.error is not None
    assert "524288" in state.error.message


async def test_what_is_no_command_becomes_a_dead_letter_and_the_next_goes_on(
    engine: Coordinator,
    log: Book,
    topics: str,
) -> None:
    one = name()
    values = [b"", b"{", b"[]", b'{"type":"start"}', b'{"type":"dance","execution_id":"x"}', None]
    async with AIOKafkaProducer(bootstrap_servers=topics) as producer:
        for value in values:
            await producer.send_and_wait(
                WORKFLOW_COMMANDS.name, value, key=one.encode(), partition=partition_of(one, PARTITIONS)
            )
    await log.tell(Cancel(execution_id="nobody", command_id="c"), started("line", one, {"n": 1}))
    assert (await log.ended(one)).status == "succeeded"
    letters = [letter for letter in await dead_letters(topics) if letter["kind"] == "command"]
    assert [letter["reason"] for letter in letters].count("unreadable") == len(values)
    found: list[Any] = []
    ends_s = time.monotonic() + 30
    while not found and time.monotonic() < ends_s:
        found = [one for one in await dead_letters(topics) if one.get("reason") == "unknown_execution"]
    assert found


async def test_a_burst_of_executions_all_end(engine: Coordinator, log: Book) -> None:
    names = [name() for _ in range(300)]
    await log.tell(*(started("line", one, {"n": n}) for n, one in enumerate(names)))
    for one in names:
        assert (await log.ended(one)).status == "succeeded"
    first = [event for event in log.histories[names[0]] if isinstance(event, TaskScheduled)]
    assert len(first) == 3
