"""Laws of the checker of runs: it passes what a right product leaves, and every seeded fault breaks the law it must."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.chaos import checker_laws as laws
from app.chaos.checker_cluster import Findings, digest, find_executions, readers_of
from app.chaos.checker_folder import (
    EffectLine,
    FaultLine,
    Folder,
    OpLine,
    Plan,
    PlannedFault,
    Request,
    WitnessLine,
    read_folder,
    requests_of,
)
from app.chaos.checker_laws import Law
from app.domain.workflow.events import ExecutionEnded, TaskFailed, TaskScheduled, TaskSucceeded
from app.errors import UserError
from app.workflow_wire import encode_run
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_EVENTS, WORKFLOW_STATE
from tables import executions as rows
from tables.changelog import MARKER, Tag, marker_value, pack_tag
from tests.helpers.workflow_log import BROKEN, NOW_MS, Author, LoggedRun, MemoryLog, Story, later

S = 1_000_000_000
PLAN = Plan(
    bootstrap="",
    started_ns=0,
    healed_ns=NOW_MS * 1_000_000 + 3_600 * S,
    ended_ns=10 * S,
    planned_faults=(PlannedFault(0, "kill"),),
    effects={"three": ("sink",)},
)


@dataclass
class TheRun:
    """Everything a run leaves, each part to be spoilt."""

    story: Story
    requests: list[Request]
    effects: list[EffectLine]
    faults: list[FaultLine]
    rows: dict[str, list[LoggedRun]]
    epoch: int = 1
    applied: int = 1_000
    witness: list[WitnessLine] | None = None


def second_time(event: TaskScheduled):
    return BROKEN if event.task == "transform" and event.attempt == 1 else None


def a_run(executions: int = 4) -> TheRun:
    """So many executions, every other of which needs two attempts."""
    author = Author()
    for number in range(executions):
        outcome = second_time if number % 2 else lambda _: None
        author.starts(f"e{number}", outcome=outcome, given={"op": f"s-{number}"})
    story = author.story
    requests = [Request(f"s-{n}", n * S, "ok", f"e{n}", n * S + 1) for n in range(executions)]
    effects = [EffectLine("accepted", f"e{n}", "sink", 1, 1, "h", f"e{n}/sink") for n in range(executions)]
    faults = [FaultLine(0, "kill", 2 * S, 3 * S, {"pid": 1})]
    return TheRun(story, requests, effects, faults, {f"e{n}": list(story.of(f"e{n}")) for n in range(executions)})


def log_of(run: TheRun) -> MemoryLog:
    """The log, with the tables that the owners of its partitions have written."""
    log = run.story.log()
    homes = {one.execution_id: one.partition for one in run.story.runs}
    for partition in (0, 1):
        for number, (execution_id, runs) in enumerate(run.rows.items(), start=1):
            if homes.get(execution_id, 0) == partition:
                value = pack_tag(Tag(run.epoch, number)) + row_of(execution_id, runs)
                log.add(WORKFLOW_STATE.name, partition, rows.ended_key(execution_id).decode(), value)
        marker = marker_value(Tag(run.epoch, len(run.rows)), {WORKFLOW_COMMANDS.name: run.applied})
        log.add(WORKFLOW_STATE.name, partition, MARKER.decode(), marker)
    return log


def row_of(execution_id: str, runs: list[LoggedRun]) -> bytes:
    count = sum(len(run.events) for run in runs)
    last = runs[-1].events[-1]
    status = last.status if isinstance(last, ExecutionEnded) else "running"
    header = rows.Header("three", "v1", None, status, 0, True, False, 0, count, 0, 0, last.at)
    history = rows.History(header, [])
    for run in runs:
        history.append(encode_run(execution_id, "three", "v1", run.epoch, run.events), len(run.events))
    return history.to_bytes()


def judged(run: TheRun, committed: int = 0) -> dict[str, Law]:
    found: Findings = asyncio.run(find_executions(log_of(run), run.witness, {0: committed, 1: committed}))
    folder = Folder(PLAN, run.requests, run.effects, run.faults, run.witness)
    told = (
        laws.acknowledged(run.requests, found.known),
        laws.unseen(run.requests, found.known),
        laws.effects(run.effects, PLAN, found.known),
        laws.timers(found.known, NOW_MS + 10_000_000, 30),
        laws.conservation(found.known, 0, run.requests),
        laws.liveness(folder, found.known),
        laws.not_vacuous(folder),
        readers_of(found, run.witness),
        found.state(),
    )
    return {each.name: each for each in told}


def broken(run: TheRun, committed: int = 0) -> set[str]:
    return {name for name, each in judged(run, committed).items() if not each.holds}


@given(st.integers(2, 12))
@settings(max_examples=10)
def test_what_a_right_product_leaves_breaks_no_law(executions: int) -> None:
    run = a_run(executions)
    found = judged(run)
    assert {name: each.says for name, each in found.items() if not each.holds} == {}
    assert found["timers"].looked == executions // 2
    assert found["effects"].facts["due"] == executions
    assert found["liveness"].facts["availability"] == 1.0


# ---- seeded faults


def loses_an_execution(run: TheRun, name: str) -> None:
    run.story.runs = [one for one in run.story.runs if one.execution_id != name]
    del run.rows[name]


def never_ends(run: TheRun, name: str) -> None:
    last = run.story.of(name)[-1]
    last.events = last.events[:-1]


def starts_twice(run: TheRun, name: str) -> None:
    twin = [replace(one, execution_id=f"{name}-twin") for one in run.story.of(name)]
    run.story.runs += twin
    run.rows[f"{name}-twin"] = twin


def refused_and_done(run: TheRun, name: str) -> None:
    run.requests = [replace(one, outcome="fail") if one.execution == name else one for one in run.requests]


def effect_under_another_key(run: TheRun, name: str) -> None:
    run.effects.append(EffectLine("accepted", name, "sink", 1, 1, "h", f"{name}/sink#"))


def effect_missing(run: TheRun, name: str) -> None:
    run.effects = [one for one in run.effects if one.execution != name]


def zombie_taken(run: TheRun, name: str) -> None:
    run.effects.append(EffectLine("repeat", name, "sink", 1, 0, "h", f"{name}/sink"))


def effect_of_nobody(run: TheRun, name: str) -> None:
    run.effects.append(EffectLine("accepted", f"{name}-ghost", "sink", 1, 1, "h", f"{name}-ghost/sink"))


def effect_of_an_attempt_never_ordered(run: TheRun, name: str) -> None:
    run.effects = [replace(one, attempt=9) if one.execution == name else one for one in run.effects]


def other_content(run: TheRun, name: str) -> None:
    run.effects.append(EffectLine("repeat", name, "sink", 1, 1, "another", f"{name}/sink"))


def lost_changelog_record(run: TheRun, name: str) -> None:
    del run.rows[name]


def stale_row(run: TheRun, name: str) -> None:
    run.rows[name] = run.rows[name][:-1]


def nothing_marked(run: TheRun, name: str) -> None:
    run.epoch = 0
    run.rows = {}


def event_swapped_on_the_log(run: TheRun, name: str) -> None:
    first, second = run.story.of(name)[1:3]
    swapped = replace(first, events=[later(e, at=e.at + 1) for e in first.events]), second
    at = run.story.runs.index(first)
    run.story.runs[at] = swapped[0]


def early_timer(run: TheRun, name: str) -> None:
    for one in run.story.of("e1"):
        one.events = [later(e, retry_at=e.retry_at + 60_000) if isinstance(e, TaskFailed) and e.retry_at else e
                      for e in one.events]  # fmt: skip
    run.rows["e1"] = list(run.story.of("e1"))


def acknowledged_as_another(run: TheRun, name: str) -> None:
    run.requests = [replace(one, key="s-x") if one.execution == name else one for one in run.requests]


def fault_without_proof(run: TheRun, name: str) -> None:
    run.faults = [replace(one, proof={}) for one in run.faults]


def nothing_succeeds(run: TheRun, name: str) -> None:
    run.requests = [replace(one, outcome="info", execution=None) for one in run.requests]


FAULTS: dict[Callable[[TheRun, str], None], str] = {
    loses_an_execution: "acknowledged",
    never_ends: "unseen",
    starts_twice: "unseen",
    refused_and_done: "unseen",
    effect_under_another_key: "effects",
    effect_missing: "effects",
    zombie_taken: "effects",
    effect_of_nobody: "effects",
    effect_of_an_attempt_never_ordered: "effects",
    other_content: "effects",
    lost_changelog_record: "state",
    stale_row: "state",
    nothing_marked: "state",
    event_swapped_on_the_log: "state",
    early_timer: "timers",
    acknowledged_as_another: "acknowledged",
    fault_without_proof: "not vacuous",
    nothing_succeeds: "not vacuous",
}


@given(st.sampled_from(list(FAULTS)), st.integers(2, 6), st.data())
@settings(max_examples=60)
def test_every_seeded_fault_breaks_its_law(fault: Callable[[TheRun, str], None], executions: int, data: Any) -> None:
    run = a_run(executions)
    fault(run, f"e{data.draw(st.integers(0, executions - 1))}")
    assert FAULTS[fault] in broken(run), fault.__name__


def test_an_offset_that_is_committed_before_it_is_applied_is_a_fault() -> None:
    run = a_run()
    assert broken(run, committed=1_001) == set()
    assert broken(run, committed=1_002) == {"state"}


def test_what_two_readers_read_is_the_same_and_stays() -> None:
    run = a_run()
    log = log_of(run)
    records = [log._of(WORKFLOW_EVENTS.name)[0][0], log._of(WORKFLOW_EVENTS.name)[1][0]]
    seen = [WitnessLine(one.topic, one.partition, one.offset, digest(one.key, one.value), 1) for one in records]
    run.witness = seen
    assert judged(run)["readers"] == laws.law("readers", 2, [])
    ends = [replace(seen[0], ended=tuple({one.execution_id for one in run.story.runs}))]
    run.witness = [*seen, *ends]
    assert broken(run) == set()
    run.witness = [*seen, *ends, replace(seen[0], hash="0")]
    assert broken(run) == {"readers"}
    run.witness = [*seen, *ends, replace(seen[0], offset=10_000)]
    assert broken(run) == {"readers"}
    run.witness = seen
    assert broken(run) == {"liveness"}, "it has not seen the ends, whose times it tells"
    run.witness = []
    assert broken(run) == {"liveness", "readers"}


def test_a_repeat_of_a_run_and_a_takeover_are_no_faults() -> None:
    run = a_run()
    again = run.story.of("e0")[-1]
    run.story.runs.append(replace(again, epoch=2))
    assert broken(run) == set()


def test_a_late_end_and_a_wait_without_end_are_told() -> None:
    run = a_run(2)
    kept = run.story.of("e1")
    at = next(n for n, one in enumerate(kept) if any(isinstance(e, TaskFailed) for e in one.events))
    run.story.runs = [one for one in run.story.runs if one not in kept[at + 1 :]]
    assert {"acknowledged", "unseen", "conservation", "timers"} <= broken(run)
    known = asyncio.run(find_executions(log_of(a_run(2)), None, {})).known
    late = replace(PLAN, healed_ns=PLAN.healed_ns - 7_200 * S)
    assert not laws.liveness(Folder(late, a_run(2).requests), known).holds


def test_a_gap_is_told_of_the_fault_that_it_meets_and_of_one_partition_at_a_time() -> None:
    def end(at_s: float, partition: int) -> WitnessLine:
        return WitnessLine(WORKFLOW_EVENTS.name, partition, round(at_s * 1_000), "", round(at_s * S), ("x",))

    steady = [end(at / 10, 0) for at in range(100)]
    stands = [end(at / 10, 1) for at in range(100) if not 30 < at < 50]
    quiet = replace(end(4.0, 1), ended=())
    faults = [FaultLine(0, "kill", 3 * S, 4 * S, {"pid": 1}), FaultLine(1, "stop", 7 * S, 7 * S, {"pid": 2})]
    facts = laws.liveness(Folder(replace(PLAN, settle_s=1), [], [], faults, [*steady, quiet, *stands]), {}).facts
    assert facts["gaps"] == {
        "kill": {"faults": 1, "p50_s": 2.0, "max_s": 2.0},
        "stop": {"faults": 1, "p50_s": 0.1, "max_s": 0.1},
    }


# ---- requests


def op(number: int, phase: Any, at_ns: int = 0, **more: Any) -> OpLine:
    return OpLine(number, "start", phase, at_ns, **more)


def test_a_request_is_what_its_two_lines_say_and_open_without_the_second() -> None:
    lines = [
        op(1, "intent", 5, key="a"),
        op(2, "intent", key="b"),
        op(1, "ok", 9, execution="x"),
        op(3, "intent", key="a"),
    ]
    assert requests_of(lines) == [
        Request("a", 5, "ok", "x", 9),
        Request("b", 0, "info"),
        Request("a", 0, "info"),
    ]


def test_an_outcome_of_what_nobody_meant_to_do_is_refused() -> None:
    with pytest.raises(UserError, match="op 7 is ok"):
        requests_of([op(7, "ok")])


def test_a_line_cut_by_a_crash_is_passed_over_and_a_damaged_one_is_not(tmp_path: Any) -> None:
    (tmp_path / "run.json").write_text('{"bootstrap": "b", "started_ns": 0, "healed_ns": 0, "ended_ns": 0, "more": 1}')
    path = tmp_path / "faults.jsonl"
    path.write_text('{"number": 1, "fault": "kill", "at_ns": 1}\n{"number": 2, "fa')
    folder = read_folder(tmp_path)
    assert [one.number for one in folder.faults or ()] == [1]
    assert folder.requests is None
    path.write_text('{"number": 1, "fault"\n{"number": 2, "fault": "kill", "at_ns": 1}\n')
    with pytest.raises(UserError, match=r"faults\.jsonl, line 1"):
        read_folder(tmp_path)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5), st.booleans()), max_size=20), st.integers(0, 40))
def test_a_request_counts_as_calm_only_outside_of_every_fault(spans: list[tuple[int, int, bool]], fault_s: int) -> None:
    requests = [
        Request(f"k{n}", at * S, "ok" if good else "info", None, (at + long) * S)
        for n, (at, long, good) in enumerate(spans)
    ]
    plan = replace(PLAN, settle_s=1.0)
    found = laws.not_vacuous(Folder(plan, requests, faults=[FaultLine(0, "kill", fault_s * S, None, {"pid": 1})]))
    calm = [n for n, (at, long, _) in enumerate(spans) if at > fault_s + 1 or at + long < fault_s]
    assert found.facts["calm"] == len(calm)


def test_a_run_in_which_little_was_acknowledged_or_nothing_was_calm_proves_nothing() -> None:
    plan = replace(PLAN, settle_s=1.0, planned_starts=4, ok_share=0.5)
    fault = FaultLine(0, "kill", 5 * S, 6 * S, {"pid": 1})

    def asked(*told: tuple[str, int, Any]) -> Folder:
        requests = [Request(key, at * S, outcome, None, at * S) for key, at, outcome in told]
        return Folder(plan, requests, faults=[fault])

    assert laws.not_vacuous(asked(("a", 1, "ok"), ("b", 1, "ok"))).holds
    assert not laws.not_vacuous(asked(("a", 1, "ok"), ("a", 2, "ok"))).holds, "asked again is not another start"
    assert not laws.not_vacuous(asked(("a", 1, "ok"), ("b", 6, "info"))).holds
    assert not laws.not_vacuous(asked(("a", 5, "ok"), ("b", 6, "ok"))).holds, "no time without a fault"


def test_a_success_of_a_task_tells_that_its_effect_is_due() -> None:
    run = a_run(1)
    assert any(isinstance(e, TaskSucceeded) and e.task == "sink" for one in run.story.of("e0") for e in one.events)
    run.effects = []
    assert judged(run)["effects"].says == ("e0/sink has succeeded without its effect",)
