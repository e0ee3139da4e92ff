"""Laws of tasks in a DAG: when they begin, what they read, how they are tried again and how the whole ends."""

from typing import Any

import pytest

from app.domain.workflow.commands import Admit, Report, TaskError
from app.domain.workflow.context import context_for
from app.domain.workflow.definition import Retry, Task
from app.domain.workflow.effects import Dispatch, order_for
from app.domain.workflow.events import (
    CompensationStarted,
    TaskFailed,
    TaskScheduled,
    TaskSkipped,
)
from app.domain.workflow.graph import graph_of
from app.domain.workflow.retry import delay_ms
from tests.unit.workflow.core.world import BROKEN, ID, Owner, begun, end, fire, report, task, under_way, workflow


def test_branches_run_side_by_side_and_join() -> None:
    owner = begun(task("a"), task("b", "a"), task("c", "a"), task("d", "b", "c"))
    assert under_way(owner) == ["a"]
    report(owner, "a")
    assert under_way(owner) == ["b", "c"]
    report(owner, "c")
    assert under_way(owner) == ["b"]
    report(owner, "b")
    assert under_way(owner) == ["d"]
    report(owner, "d", {"rows": 3})
    assert (end(owner).status, end(owner).result) == ("succeeded", {"rows": 3})


def test_result_of_several_last_tasks_is_an_object_by_name() -> None:
    owner = begun(task("a"), task("b"))
    report(owner, "a", 1)
    report(owner, "b", 2)
    assert end(owner).result == {"a": 1, "b": 2}


def test_results_that_are_too_large_together_are_left_to_the_tasks() -> None:
    owner = begun(task("a"), task("b"))
    report(owner, "a", "x" * 400_000)
    report(owner, "b", "y" * 400_000)
    assert end(owner).status == "succeeded"
    assert end(owner).result is None
    assert "one by one" in end(owner).reason


def test_workflow_without_tasks_succeeds_at_once() -> None:
    assert end(begun()).status == "succeeded"


def test_task_whose_condition_is_false_is_skipped_and_reads_as_null() -> None:
    owner = begun(task("a", when="false"), task("b"), task("c", "a", "b"))
    assert [type(event) for event in owner.history[1:]] == [TaskSkipped, TaskScheduled]
    report(owner, "b", 5)
    assert owner.state is not None
    context = context_for(owner.state, owner.graph, "c", None, 1)
    assert context["needs"] == {"a": None, "b": 5}


def test_task_all_of_whose_needs_were_skipped_is_skipped_too() -> None:
    owner = begun(task("a", when="false"), task("b", "a"), task("c", "b"))
    assert end(owner).status == "succeeded"
    assert [event.task for event in owner.history if isinstance(event, TaskSkipped)] == ["a", "b", "c"]


@pytest.mark.parametrize(("condition", "says"), [("fails", "no such name"), ("3", "true or false")])
def test_condition_that_gives_no_answer_fails_the_task_with_its_cause(condition: str, says: str) -> None:
    owner = begun(task("a", when=condition))
    failed = owner.history[1]
    assert isinstance(failed, TaskFailed)
    assert failed.error.type == "Expression"
    assert says in failed.error.message
    assert (end(owner).status, end(owner).task, end(owner).error) == ("failed", "a", failed.error)


def test_task_reads_its_needs_the_ancestors_it_mentions_and_no_parallel_branch() -> None:
    last = task("c", "b", params={"body": "${a.x + b}"})
    owner = begun(task("a"), task("b", "a"), task("other", "a"), last)
    report(owner, "a", {"x": 1})
    report(owner, "other", "hidden")
    report(owner, "b", 2)
    (dispatch,) = owner.running
    assert owner.state is not None
    order = order_for(owner.state, owner.graph, dispatch)
    assert order.context == {
        "input": {"n": 1},
        "trigger": {"kind": "http"},
        "needs": {"b": 2},
        "a": {"x": 1},
        "execution": {"id": ID, "workflow": "w", "attempt": 1, "task": "c"},
    }
    assert order.params == {"body": "${a.x + b}"}
    assert order.idempotency_key == f"{ID}/c"


@pytest.mark.parametrize("field", [{"when": "a"}, {"over": "a"}, {"type": "wait", "params": {"seconds": "a"}}])
def test_result_in_a_file_is_for_tasks_only_and_no_condition_is_decided_on_its_reference(field: dict[str, Any]) -> None:
    owner = begun(task("a"), task("b", "a", **field))
    report(owner, "a", {"$payload": {"path": "p", "sha256": "0", "bytes": 9}})
    assert end(owner).error is not None
    assert "the result of 'a' is in a file" in end(owner).error.message  # type: ignore[union-attr]


def test_result_in_a_file_is_handed_on_to_tasks() -> None:
    owner = begun(task("a"), task("b", "a", params={"rows": "${a}"}))
    report(owner, "a", {"$payload": {"path": "p", "sha256": "0", "bytes": 9}})
    assert under_way(owner) == ["b"]


def test_order_counts_its_time_from_when_it_is_handed_out() -> None:
    owner = begun(task("a", timeout_s=2.5))
    (dispatch,) = owner.running
    assert owner.state is not None
    assert order_for(owner.state, owner.graph, dispatch).deadline_ms == 1_000 + 2_500
    assert order_for(owner.state, owner.graph, dispatch, 9_000).deadline_ms == 9_000 + 2_500


def test_failure_is_tried_again_after_its_backoff_until_the_attempts_are_used_up() -> None:
    owner = begun(task("a", retry=Retry(attempts=3, backoff_s=0.1, factor=10, max_s=0.5)))
    waits = []
    for _ in range(2):
        before = owner.now
        report(owner, "a", error=BROKEN)
        fire(owner, "retry/a")
        waits.append(owner.now - before)
    assert waits == [100, 500]
    assert [each.attempt for each in owner.dispatched] == [1, 2, 3]
    assert len({each.token for each in owner.dispatched}) == 3
    report(owner, "a", error=BROKEN)
    assert end(owner).status == "failed"


@pytest.mark.parametrize(
    "error",
    [
        TaskError(type="BadInput", message="no such column", retryable=False),
        TaskError(type="Fatal", message="it is broken"),
    ],
)
def test_error_that_is_not_worth_a_retry_ends_it_at_once(error: TaskError) -> None:
    owner = begun(task("a", retry=Retry(attempts=5, non_retryable=("Fatal",))))
    report(owner, "a", error=error)
    assert (end(owner).status, end(owner).error) == ("failed", error)


def test_jitter_is_the_same_for_an_attempt_and_differs_between_attempts() -> None:
    retry = Retry(attempts=9, backoff_s=1, factor=1, jitter=0.5)
    waits = [delay_ms(retry, 1, f"{ID}/a/None/{attempt}") for attempt in range(50)]
    assert waits == [delay_ms(retry, 1, f"{ID}/a/None/{attempt}") for attempt in range(50)]
    assert len(set(waits)) > 40
    assert all(500 <= wait <= 1_500 for wait in waits)
    assert delay_ms(Retry(backoff_s=1, factor=10, max_s=60), 5_000, "") == 60_000


def test_failure_for_good_calls_back_what_runs_beside_it() -> None:
    owner = begun(task("a"), task("b"))
    late = next(each for each in owner.running if each.task == "b")
    report(owner, "a", error=BROKEN)
    assert end(owner).status == "failed"
    assert owner.running == set()
    assert owner.tell(Report(execution_id=ID, task="b", item=None, attempt=late.attempt, token=late.token)) == []


def test_attempt_that_takes_too_long_is_called_back_and_tried_again() -> None:
    owner = begun(task("a", timeout_s=2, retry=Retry(attempts=2, backoff_s=0)))
    failed = fire(owner, "timeout/a")[0]
    assert isinstance(failed, TaskFailed)
    assert failed.error.type == "Timeout"
    assert owner.running == set()
    fire(owner, "retry/a")
    report(owner, "a", 1)
    assert end(owner).status == "succeeded"


def test_silence_of_a_task_that_sends_heartbeats_is_a_failure() -> None:
    owner = begun(task("a", heartbeat_s=1))
    fire(owner, "heartbeat/a")
    assert end(owner).error is not None
    assert end(owner).error.type == "HeartbeatTimeout"  # type: ignore[union-attr]


def test_execution_that_takes_too_long_is_timed_out() -> None:
    owner = begun(task("a"), timeout_s=60)
    fire(owner, "execution/")
    assert end(owner).status == "timed_out"
    assert owner.running == set()


def test_time_of_an_execution_counts_from_its_admission() -> None:
    owner = Owner(workflow(task("a"), timeout_s=60))
    owner.start(queued=True)
    assert (owner.running, owner.timers) == (set(), {})
    owner.now += 100_000
    owner.tell(Admit(execution_id=ID))
    assert owner.timers == {"execution/1": 101_000 + 60_000}


def test_start_that_is_passed_over_says_why() -> None:
    owner = Owner(workflow(task("a")))
    owner.start(skipped="one runs already")
    assert (end(owner).status, end(owner).reason) == ("skipped", "one runs already")


def test_compensation_runs_once_reads_the_error_and_leaves_the_failure() -> None:
    owner = begun(task("a"), task("b"), on_failure=task("undo", params={"text": "${b} ${error.message}"}))
    report(owner, "b", "done")
    events = report(owner, "a", error=BROKEN)
    assert [type(event) for event in events] == [TaskFailed, CompensationStarted, TaskScheduled]
    assert owner.state is not None
    context = context_for(owner.state, owner.graph, "undo", None, 1)
    assert context["error"] == {"task": "a", "type": "HttpStatus", "message": "status 500", "detail": {}}
    assert context["b"] == "done"
    report(owner, "undo")
    assert (end(owner).status, end(owner).task, end(owner).error) == ("failed", "a", BROKEN)


def test_compensation_that_fails_too_keeps_the_first_error() -> None:
    owner = begun(task("a"), on_failure=task("undo"))
    report(owner, "a", error=BROKEN)
    report(owner, "undo", error=TaskError(type="Other", message="no route"))
    assert end(owner).error == BROKEN
    assert "no route" in end(owner).reason


def test_timeout_of_the_execution_compensates_and_stays_a_timeout() -> None:
    owner = begun(task("a"), on_failure=task("undo"), timeout_s=60)
    fire(owner, "execution/")
    assert under_way(owner) == ["undo"]
    report(owner, "undo")
    assert end(owner).status == "timed_out"


def test_clock_that_goes_back_does_not_take_history_along() -> None:
    owner = begun(task("a"), task("b", "a"))
    owner.now = 5
    report(owner, "a")
    assert [event.at for event in owner.history] == [1_000] * 4


@pytest.mark.parametrize(
    "tasks",
    [(task("a", "b"), task("b", "a")), (task("a", "nowhere"),), (task("a", "a"),)],
    ids=["a circle", "an unknown need", "itself"],
)
def test_graph_of_what_registration_refuses_is_an_error(tasks: tuple[Task, ...]) -> None:
    with pytest.raises(ValueError, match="need"):
        graph_of(workflow(*tasks))


def test_dispatch_is_named_by_its_token() -> None:
    owner = begun(task("a"))
    assert owner.running == {Dispatch("a", None, 1, 1)}
