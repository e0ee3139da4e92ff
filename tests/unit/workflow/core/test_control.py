"""Laws of maps, waits, approvals, sub-workflows and of what people tell an execution."""

import pytest

from app.domain.workflow.commands import (
    Cancel,
    ChildEnded,
    Pause,
    Report,
    Resume,
    RetryExecution,
    Signal,
    TaskError,
)
from app.domain.workflow.definition import Retry
from app.domain.workflow.effects import CancelChild, CancelWork, effects, order_for
from app.domain.workflow.events import (
    ChildStarted,
    Event,
    ExecutionRetried,
    MapCompleted,
    TaskFailed,
    TaskScheduled,
    TaskSucceeded,
)
from app.domain.workflow.turn import Limits
from tests.unit.workflow.core.world import BROKEN, ID, Owner, begun, end, fire, report, task, under_way, workflow


def item_ends(owner: Owner, item: int, result: object = None, error: TaskError | None = None) -> list[Event]:
    (dispatch,) = [each for each in owner.running if each.item == item]
    owner.running.discard(dispatch)
    events = owner.tell(
        Report(
            execution_id=ID,
            task=dispatch.task,
            item=item,
            attempt=dispatch.attempt,
            token=dispatch.token,
            result=result,
            error=error,
        )
    )
    owner.hold()
    return events


def items(owner: Owner) -> list[int]:
    return sorted(each.item for each in owner.running if each.item is not None)


def signal(owner: Owner, name: str, payload: object = None, command_id: str = "s1") -> list[Event]:
    events = owner.tell(Signal(execution_id=ID, command_id=command_id, name=name, payload=payload))
    owner.hold()
    return events


# ---- map


def test_map_runs_so_many_at_once_and_collects_in_the_order_of_its_list() -> None:
    owner = begun(task("m", over="list 4", concurrency=2), task("after", "m"))
    assert items(owner) == [0, 1]
    for item in (1, 2, 3, 0):
        item_ends(owner, item, f"r{item}")
        assert len(items(owner)) <= 2
    assert owner.state is not None
    assert owner.state.tasks["m"].result == ["r0", "r1", "r2", "r3"]
    assert under_way(owner) == ["after"]


def test_item_reads_its_value_and_place() -> None:
    owner = begun(task("m", over="list 2"))
    assert owner.state is not None
    contexts = [order_for(owner.state, owner.graph, each).context for each in sorted(owner.running)]
    assert [(context["item"], context["index"]) for context in contexts] == [("item0", 0), ("item1", 1)]


def test_map_over_nothing_is_an_empty_list() -> None:
    owner = begun(task("m", over="list 0"))
    assert (end(owner).status, end(owner).result) == ("succeeded", [])


def test_item_is_tried_again_by_itself() -> None:
    owner = begun(task("m", over="list 2", retry=Retry(attempts=2)))
    item_ends(owner, 0, error=BROKEN)
    item_ends(owner, 1, 1)
    fire(owner, "retry/m/0")
    item_ends(owner, 0, 0)
    assert end(owner).result == [0, 1]


def test_item_that_fails_for_good_fails_its_map() -> None:
    owner = begun(task("m", over="list 3"))
    item_ends(owner, 1, error=BROKEN)
    assert (end(owner).status, end(owner).task) == ("failed", "m")
    assert owner.running == set()


@pytest.mark.parametrize(
    ("over", "kind"), [("7", "MapOver"), ("fails", "Expression"), ("input", "MapOver"), ("list 10001", "MapTooLarge")]
)
def test_map_without_a_fair_list_is_a_failure_with_its_cause(over: str, kind: str) -> None:
    owner = begun(task("m", over=over, retry=Retry(attempts=5)))
    assert end(owner).error is not None
    assert end(owner).error.type == kind  # type: ignore[union-attr]


def test_results_of_a_map_are_limited_together() -> None:
    owner = begun(task("m", over="list 3"))
    for item in range(3):
        item_ends(owner, item, "x" * 200_000)
    assert end(owner).error is not None
    assert end(owner).error.type == "PayloadTooLarge"  # type: ignore[union-attr]


# ---- wait


def test_wait_lasts_its_seconds() -> None:
    owner = begun(task("pause", type="wait", params={"seconds": "5"}), task("a", "pause"))
    assert owner.timers == {"wait/pause//1": 6_000}
    fire(owner, "wait/pause")
    assert under_way(owner) == ["a"]


@pytest.mark.parametrize("until", ["1970-01-01T00:00:09Z", "1970-01-01T01:00:09+01:00", 9_000, "9000", "${input}"])
def test_wait_lasts_until_an_instant(until: object) -> None:
    owner = Owner(workflow(task("pause", type="wait", params={"until": until})))
    owner.start(9_000)
    assert list(owner.timers.values()) == [9_000]


def test_wait_until_what_has_passed_is_over_at_once() -> None:
    assert end(begun(task("pause", type="wait", params={"until": 1}))).status == "succeeded"


@pytest.mark.parametrize(
    "params",
    [{}, {"seconds": "fails"}, {"seconds": True}, {"seconds": 1e12}, {"seconds": [1]}, {"until": "input"}],
    ids=str,
)
def test_wait_that_says_nothing_sensible_is_a_failure_with_its_cause(params: dict[str, object]) -> None:
    owner = begun(task("pause", type="wait", params=params))
    assert end(owner).error is not None
    assert end(owner).error.type == "Expression"  # type: ignore[union-attr]


# ---- approval


def test_approval_waits_for_the_signal_of_its_name_and_gives_its_payload() -> None:
    owner = begun(task("ok", type="approval"))
    signal(owner, "other", command_id="s0")
    assert owner.state is not None
    assert not owner.state.is_over
    signal(owner, "ok", {"by": "anna"})
    assert end(owner).result == {"by": "anna"}


def test_signal_that_came_before_it_was_asked_for_counts() -> None:
    owner = begun(task("a"), task("ok", "a", type="approval", params={"signal": "go"}))
    signal(owner, "go", 1)
    report(owner, "a")
    assert end(owner).result == 1


def test_signal_answers_one_approval_that_which_has_asked_longest() -> None:
    owner = begun(*(task(name, type="approval", params={"signal": "go"}) for name in ("first", "second")))
    signal(owner, "go", 1, "s1")
    assert owner.state is not None
    assert [name for name, work in owner.state.tasks.items() if work.status == "succeeded"] == ["first"]
    signal(owner, "go", 2, "s2")
    assert end(owner).result == {"first": 1, "second": 2}


def test_signal_repeated_is_one_signal() -> None:
    owner = begun(
        task("a"), task("ok", "a", type="approval"), task("too", "ok", type="approval", params={"signal": "ok"})
    )
    signal(owner, "ok", 1, "s1")
    assert signal(owner, "ok", 1, "s1") == []
    report(owner, "a")
    assert owner.state is not None
    assert list(owner.state.asked) == ["ok"]


def test_signals_that_nobody_asks_for_are_kept_up_to_a_limit() -> None:
    owner = begun(task("a"))
    for n in range(3):
        owner.tell(Signal(execution_id=ID, command_id=f"s{n}", name="x"), limits=Limits(signals=2))
    assert owner.state is not None
    assert len(owner.state.inbox["x"]) == 2


def test_approval_gives_up_when_its_time_is_over() -> None:
    owner = begun(task("ok", type="approval", params={"timeout_s": 3}))
    fire(owner, "approval/ok")
    assert end(owner).error is not None
    assert end(owner).error.message == "no signal 'ok' came within 3 s"  # type: ignore[union-attr]


# ---- sub-workflow


def child_ends(owner: Owner, status: str, result: object = None, error: TaskError | None = None) -> None:
    ((child_id, child),) = owner.children.items()
    del owner.children[child_id]
    parent = child.parent
    owner.tell(
        ChildEnded(
            execution_id=ID,
            task=parent.task,
            item=parent.item,
            attempt=parent.attempt,
            child_id=child_id,
            status=status,
            result=result,
            error=error,
        )
    )
    owner.hold()


def test_sub_workflow_is_started_and_its_result_is_the_tasks() -> None:
    owner = begun(task("sub", type="workflow", params={"id": "child", "version": "v9", "input": {"k": "${input.n}"}}))
    ((child_id, child),) = owner.children.items()
    assert (child_id, child.workflow, child.version, child.input) == (f"{ID}.sub", "child", "v9", {"k": 1})
    child_ends(owner, "succeeded", 42)
    assert end(owner).result == 42


def test_sub_workflow_that_failed_is_tried_again_under_another_id() -> None:
    owner = begun(task("sub", type="workflow", params={"id": "child"}, retry=Retry(attempts=2)))
    child_ends(owner, "failed", error=BROKEN)
    fire(owner, "retry/sub")
    assert list(owner.children) == [f"{ID}.sub.2"]
    child_ends(owner, "cancelled")
    assert end(owner).error is not None
    assert end(owner).error.message == f"sub-workflow '{ID}.sub.2' ended cancelled"  # type: ignore[union-attr]


def test_map_of_sub_workflows_gives_each_its_item() -> None:
    owner = begun(task("sub", type="workflow", params={"id": "child"}, over="list 2"))
    assert {child.child_id: child.input for child in owner.children.values()} == {
        f"{ID}.sub.0": "item0",
        f"{ID}.sub.1": "item1",
    }


def test_id_of_a_sub_workflow_is_placed_by_the_owner_and_limited() -> None:
    definition = workflow(task("sub", type="workflow", params={"id": "child"}))
    owner = Owner(definition)
    owner.start(place=lambda child_id, *_: f"{child_id}-p3")
    assert list(owner.children) == [f"{ID}.sub-p3"]
    deep = Owner(definition)
    deep.start(place=lambda child_id, *_: child_id * 10)
    assert end(deep).error is not None
    assert end(deep).error.type == "NestedTooDeep"  # type: ignore[union-attr]


# ---- people


def test_cancel_ends_it_and_calls_back_all_that_is_under_way() -> None:
    owner = begun(
        task("a"), task("sub", type="workflow", params={"id": "child"}), task("w", type="wait", params={"seconds": 9})
    )
    events = owner.tell(Cancel(execution_id=ID, command_id="c", reason="enough"))
    assert (end(owner).status, end(owner).reason) == ("cancelled", "enough")
    assert owner.state is not None
    made = effects(owner.state, events, owner.graph)
    assert CancelWork(None, None) in made
    assert CancelChild(f"{ID}.sub") in made
    assert (owner.running, owner.timers, owner.children) == (set(), {}, {})
    assert owner.tell(Cancel(execution_id=ID, command_id="c2")) == []


def test_pause_lets_what_runs_end_and_begins_nothing() -> None:
    owner = begun(task("a"), task("b", "a"))
    owner.tell(Pause(execution_id=ID, command_id="p"))
    assert [type(event) for event in report(owner, "a")] == [TaskSucceeded]
    assert owner.running == set()
    owner.tell(Resume(execution_id=ID, command_id="r"))
    assert under_way(owner) == ["b"]


def test_timer_that_falls_due_in_a_pause_acts_on_resume() -> None:
    owner = begun(task("w", type="wait", params={"seconds": 5}), task("b", "w"))
    owner.tell(Pause(execution_id=ID, command_id="p"))
    assert fire(owner, "wait/w") == []
    owner.tell(Resume(execution_id=ID, command_id="r"))
    assert under_way(owner) == ["b"]


def test_timer_used_up_in_a_pause_is_set_again_when_the_clock_has_gone_back() -> None:
    owner = begun(task("w", type="wait", params={"seconds": 5}))
    owner.tell(Pause(execution_id=ID, command_id="p"))
    fire(owner, "wait/w")
    owner.now = 2_000
    owner.tell(Resume(execution_id=ID, command_id="r"))
    assert owner.timers == {"wait/w//1": 6_000}


def test_failure_in_a_pause_compensates_on_resume() -> None:
    owner = begun(task("a"), on_failure=task("undo"))
    owner.tell(Pause(execution_id=ID, command_id="p"))
    assert [type(event) for event in report(owner, "a", error=BROKEN)] == [TaskFailed]
    owner.tell(Resume(execution_id=ID, command_id="r"))
    assert under_way(owner) == ["undo"]


def test_retry_goes_on_from_what_failed_and_keeps_what_succeeded() -> None:
    owner = begun(task("a"), task("b", "a"), task("c", "b"))
    report(owner, "a", 1)
    report(owner, "b", error=BROKEN)
    assert end(owner).status == "failed"
    again = RetryExecution(execution_id=ID, command_id="again")
    assert [type(event) for event in owner.tell(again)] == [ExecutionRetried, TaskScheduled]
    assert [(each.task, each.attempt) for each in owner.running] == [("b", 2)]
    assert owner.tell(again) == []
    report(owner, "b", 2)
    report(owner, "c", 3)
    assert end(owner).result == 3


def test_retry_gives_a_task_all_its_attempts_anew() -> None:
    owner = begun(task("a", retry=Retry(attempts=2)))
    report(owner, "a", error=BROKEN)
    fire(owner, "retry/a")
    report(owner, "a", error=BROKEN)
    owner.tell(RetryExecution(execution_id=ID, command_id="again"))
    report(owner, "a", error=BROKEN)
    fire(owner, "retry/a")
    report(owner, "a", 1)
    assert end(owner).status == "succeeded"
    assert [each.attempt for each in owner.dispatched] == [1, 2, 3, 4]


def test_retry_of_a_map_repeats_only_the_items_that_did_not_succeed() -> None:
    owner = begun(task("m", over="list 3"))
    item_ends(owner, 0, "r0")
    item_ends(owner, 2, error=BROKEN)
    owner.tell(RetryExecution(execution_id=ID, command_id="again"))
    assert sorted((each.item, each.attempt) for each in owner.running) == [(1, 2), (2, 2)]
    item_ends(owner, 1, "r1")
    item_ends(owner, 2, "r2")
    assert end(owner).result == ["r0", "r1", "r2"]


def test_rerun_repeats_a_task_and_all_that_need_it() -> None:
    owner = begun(task("a"), task("b", "a"), task("c", "b"), task("beside"))
    for name in ("a", "b", "c", "beside"):
        report(owner, name, 1)
    assert owner.tell(RetryExecution(execution_id=ID, command_id="no")) == []
    assert owner.tell(RetryExecution(execution_id=ID, command_id="no", from_task="nowhere")) == []
    (retried, *_) = owner.tell(RetryExecution(execution_id=ID, command_id="again", from_task="b"))
    assert isinstance(retried, ExecutionRetried)
    assert set(retried.tasks) == {"b", "c"}
    report(owner, "b", 2)
    report(owner, "c", 2)
    assert end(owner).result == {"c": 2, "beside": 1}


def test_rerun_expands_a_map_anew_and_repeats_no_attempt() -> None:
    owner = begun(task("m", over="list 2"))
    for item in (0, 1):
        item_ends(owner, item)
    owner.tell(RetryExecution(execution_id=ID, command_id="again", from_task="m"))
    assert sorted((each.item, each.attempt) for each in owner.running) == [(0, 2), (1, 2)]
    for item in (0, 1):
        item_ends(owner, item)
    assert sum(isinstance(event, MapCompleted) for event in owner.history) == 2


def test_retry_that_finds_the_limit_full_waits_for_its_place() -> None:
    owner = begun(task("a"))
    report(owner, "a", error=BROKEN)
    owner.tell(RetryExecution(execution_id=ID, command_id="again"), queued=True)
    assert owner.state is not None
    assert owner.state.status == "queued"
    assert owner.running == set()


def test_retried_sub_workflow_is_another_execution() -> None:
    owner = begun(task("sub", type="workflow", params={"id": "child"}))
    child_ends(owner, "failed", error=BROKEN)
    owner.tell(RetryExecution(execution_id=ID, command_id="again"))
    started = [event.child_id for event in owner.history if isinstance(event, ChildStarted)]
    assert started == [f"{ID}.sub", f"{ID}.sub.2"]


def test_approval_tried_again_by_a_resume_and_answered_at_once_leaves_no_timer() -> None:
    retry = Retry(attempts=2, backoff_s=0)
    owner = begun(task("ok", type="approval", params={"timeout_s": 3}, retry=retry), task("a"))
    fire(owner, "approval/ok")
    owner.tell(Pause(execution_id=ID, command_id="p"))
    signal(owner, "ok", 1)
    owner.tell(Resume(execution_id=ID, command_id="r"))
    assert owner.timers == {}
    report(owner, "a", 2)
    assert end(owner).result == {"ok": 1, "a": 2}


def test_map_in_a_pause_begins_no_further_item_and_goes_on_at_resume() -> None:
    owner = begun(task("m", over="list 3", concurrency=1))
    owner.tell(Pause(execution_id=ID, command_id="p"))
    item_ends(owner, 0, "r0")
    assert items(owner) == []
    owner.tell(Resume(execution_id=ID, command_id="r"))
    assert items(owner) == [1]


def test_execution_whose_last_task_ends_in_a_pause_has_succeeded() -> None:
    owner = begun(task("m", over="list 1"), task("a"))
    report(owner, "a", 1)
    owner.tell(Pause(execution_id=ID, command_id="p"))
    item_ends(owner, 0, "r0")
    assert end(owner).result == {"m": ["r0"], "a": 1}


def test_retry_gives_an_item_all_its_attempts_anew() -> None:
    owner = begun(task("m", over="list 1", retry=Retry(attempts=2)))
    for _ in range(2):
        item_ends(owner, 0, error=BROKEN)
        fire(owner, "retry/m/0")
        item_ends(owner, 0, error=BROKEN)
        assert end(owner).status == "failed"
        owner.tell(RetryExecution(execution_id=ID, command_id=f"again {len(owner.history)}"))
    item_ends(owner, 0, "r")
    assert end(owner).result == ["r"]
    assert [each.attempt for each in owner.dispatched] == [1, 2, 3, 4, 5]
