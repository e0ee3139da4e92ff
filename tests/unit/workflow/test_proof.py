"""Laws of the checker of executions: it passes what the engine's rules allow, and reports every seeded fault."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import orjson
import pytest

from app.domain.workflow.commands import RetryExecution
from app.domain.workflow.events import ExecutionEnded, ExecutionStarted, TaskScheduled, TaskSucceeded
from app.domain.workflow.legal import violations
from app.effects_book import EffectsBook
from app.executions_check import Checked, Effects, Terms, check_executions, registered
from config.topics import WORKFLOW_DEFINITIONS
from tests.helpers.workflow_log import (
    ASK,
    BROKEN,
    DEFINITIONS,
    PARTITIONS,
    Author,
    LoggedRun,
    MemoryLog,
    Story,
    later,
    signal,
)


def first_attempt_fails(event: TaskScheduled):
    return BROKEN if event.task == "transform" and event.attempt == 1 else None


def transform_fails(event: TaskScheduled):
    return BROKEN if event.task == "transform" else None


def told() -> Story:
    """One that succeeds, one at the second attempt, one that fails and is retried, one approved, one refused."""
    author = Author()
    author.starts("good")
    author.starts("second-time", outcome=first_attempt_fails)
    author.starts("mended", outcome=transform_fails)
    author.told("mended", RetryExecution(execution_id="mended", command_id="again"))
    author.starts("approved", ASK)
    author.told("approved", signal("approved", "go"))
    story = author.story
    story.refused.append(replace(story.starts[0], execution_id="refused", workflow="unknown"))
    return story


async def nothing_to_wait_for(_: object) -> None:
    return


async def checked(story: Story, *, must_have_ended: bool = True, memory_bytes: int = 1 << 20) -> Checked:
    async def keys() -> AsyncIterator[Sequence[str]]:
        yield story.effects

    terms = Terms(
        violations,
        lambda workflow, version: DEFINITIONS.get((workflow, version)),
        must_have_ended,
        Effects("sink", keys),
        memory_bytes,
    )
    return await check_executions(story.log(), terms, settled=nothing_to_wait_for)


async def test_a_legal_log_has_no_fault_and_is_counted():
    found = await checked(told())
    assert found.faults == []
    assert (found.executions, found.starts, found.refused, found.effects, found.effects_due) == (4, 4, 1, 4, 4)
    assert found.statuses == {"succeeded": 4}
    assert found.events > 30


async def test_a_definition_that_cannot_be_read_ends_no_check():
    log = MemoryLog()
    document = {"id": "w", "tasks": {"one": {"type": "transform.cel"}}}
    for key, value in (
        ("workflow:w@1", {"id": "w", "version": "1", "definition": document}),
        ("workflow:w@2", {"id": "w", "version": "2", "definition": {"tasks": [1]}}),
        ("workflow:w@3", []),
        ("latest:w", {"id": "w", "version": "1"}),
    ):
        log.add(WORKFLOW_DEFINITIONS.name, 0, key, orjson.dumps(value))
    log.add(WORKFLOW_DEFINITIONS.name, 0, "workflow:w@4", b"{")
    assert set(await registered(log)) == {("w", "1")}


async def test_a_partition_that_is_too_large_is_read_in_shares():
    found = await checked(told(), memory_bytes=2_000)
    assert found.passes > PARTITIONS
    assert (found.executions, found.is_right) == (4, True)


async def test_nothing_at_all_is_a_fault():
    found = await checked(Story())
    assert found.counts == {"nothing": 1}
    story = told()
    story.effects.clear()
    story.starts = [start for start in story.starts if start.execution_id == "waits"]
    story.runs.clear()
    assert "nothing" in (await checked(story)).counts


async def test_what_may_still_go_on_is_a_fault_only_when_all_must_have_ended():
    author = Author()
    author.starts("good")
    author.starts("waits", ASK)
    assert (await checked(author.story, must_have_ended=False)).is_right
    assert (await checked(author.story)).counts == {"not ended": 1}


async def test_repeats_and_the_forks_of_a_takeover_are_no_faults():
    story = told()
    runs = story.of("good")
    story.runs.append(runs[2])
    again = LoggedRun(**{**vars(runs[-1]), "epoch": 2})
    story.runs.append(again)
    found = await checked(story)
    assert found.is_right
    assert found.repeats > 1
    ended = [later(event, at=event.at + 5) for event in runs[1].events]
    story = told()
    at = story.runs.index(story.of("good")[1])
    story.runs.insert(at + 1, LoggedRun("good", "three", "v1", 2, ended, runs[1].partition))
    for run in story.of("good")[2:]:
        run.epoch = 2
    found = await checked(story)
    assert found.is_right
    assert found.forks == 1


# ---- seeded faults


def lost_run(story: Story) -> None:
    story.runs.remove(story.of("good")[1])


def lost_beginning(story: Story) -> None:
    story.runs.remove(story.of("good")[0])


def lost_history(story: Story) -> None:
    story.runs = [run for run in story.runs if run.execution_id != "good"]


def lost_end(story: Story) -> None:
    story.of("good")[-1].events.pop()


def second_end(story: Story) -> None:
    run = story.of("good")[-1]
    run.events.append(later(run.events[-1], seq=run.events[-1].seq + 1))


def event_after_the_end(story: Story) -> None:
    run = story.of("good")[-1]
    begun = story.of("good")[0].events[-1]
    assert isinstance(begun, TaskScheduled)
    run.events.append(later(begun, seq=run.events[-1].seq + 1, at=run.events[-1].at, attempt=2))


def swapped_seq(story: Story) -> None:
    run = next(run for run in story.of("good") if len(run.events) > 1)
    first, second = run.events[:2]
    run.raw = LoggedRun(
        **{**vars(run), "events": [later(first, seq=second.seq), later(second, seq=first.seq)]}
    ).encoded()


def swapped_runs(story: Story) -> None:
    one, other = (story.runs.index(run) for run in story.of("good")[1:3])
    story.runs[one], story.runs[other] = story.runs[other], story.runs[one]


def gap_within_a_run(story: Story) -> None:
    run = story.of("good")[-1]
    run.raw = LoggedRun(
        **{**vars(run), "events": [run.events[0], *(later(e, seq=e.seq + 1) for e in run.events[1:])]}
    ).encoded()


def garbage(story: Story) -> None:
    story.of("good")[1].raw = b"{"


def two_tellings_of_one_seq(story: Story) -> None:
    run = story.of("good")[1]
    changed = [later(e, result={"of": "else"}) if isinstance(e, TaskSucceeded) else e for e in run.events]
    story.runs.append(LoggedRun(**{**vars(run), "events": changed}))


def zombie_goes_on(story: Story) -> None:
    runs = story.of("second-time")
    for run in runs[1:-1]:
        run.epoch = 2


def end_taken_back(story: Story) -> None:
    run = story.of("good")[-1]
    ended = run.events[-1]
    assert isinstance(ended, ExecutionEnded)
    story.runs.append(
        LoggedRun("good", "three", "v1", 2, [later(ended, status="cancelled", result=None)], run.partition)
    )


def result_changed_at_the_end(story: Story) -> None:
    run = story.of("good")[-1]
    run.events[-1] = later(run.events[-1], result={"of": "nothing"})


def begun_before_its_need_ended(story: Story) -> None:
    first = story.of("good")[0]
    begun = first.events[-1]
    first.events.append(later(begun, seq=begun.seq + 1, task="sink"))
    for run in story.of("good")[1:]:
        run.events = [later(event, seq=event.seq + 1) for event in run.events]


def more_attempts_than_allowed(story: Story) -> None:
    """The second attempt fails too, and a third is made."""
    author = Author()
    author.starts("tries", outcome=lambda e: BROKEN if e.task == "transform" and e.attempt < 3 else None)
    events = [event for run in author.story.runs for event in run.events]
    failed = [event for event in events if event.type == "task_failed"]
    until = events.index(failed[-1])
    legal = events[:until]
    last = failed[-1]
    legal.append(later(last, retry_at=last.at + 1))
    third = TaskScheduled(seq=last.seq + 1, at=last.at + 1, task="transform", item=None, attempt=3)
    legal.append(third)
    first = author.story.runs[0]
    story.starts.append(author.story.starts[0])
    story.runs.append(LoggedRun("tries", "three", "v1", 1, legal, first.partition))


def succeeded_although_a_task_failed(story: Story) -> None:
    for run in story.of("mended"):
        run.events = [
            later(e, status="succeeded", error=None, task=None) if isinstance(e, ExecutionEnded) else e
            for e in run.events
        ]


def time_goes_back(story: Story) -> None:
    run = story.of("good")[-1]
    run.events = [later(event, at=event.at - 60_000) for event in run.events]


def input_changed(story: Story) -> None:
    run = story.of("good")[0]
    assert isinstance(run.events[0], ExecutionStarted)
    run.events[0] = later(run.events[0], input={"n": 2})


def nobody_started_it(story: Story) -> None:
    story.starts = [start for start in story.starts if start.execution_id != "good"]


def on_another_partition(story: Story) -> None:
    for run in story.of("good"):
        run.partition = 1 - run.partition


def of_no_definition(story: Story) -> None:
    for run in story.of("good"):
        run.version = "v2"
        run.events = [later(e, version="v2") if isinstance(e, ExecutionStarted) else e for e in run.events]


def effect_twice(story: Story) -> None:
    story.effects.append("good/sink")


def effect_missing(story: Story) -> None:
    story.effects.remove("good/sink")


def effect_of_nobody(story: Story) -> None:
    story.effects.append("ghost/sink")


def effect_of_a_task_that_never_began(story: Story) -> None:
    author = Author()
    author.starts("failed", outcome=transform_fails)
    story.starts += author.story.starts
    story.runs += author.story.runs
    story.effects.append("failed/sink")


SEEDED: dict[Callable[[Story], None], str] = {
    lost_run: "gap",
    lost_beginning: "no beginning",
    lost_history: "lost start",
    lost_end: "not ended",
    second_end: "second end",
    event_after_the_end: "after the end",
    swapped_seq: "unreadable",
    swapped_runs: "gap",
    gap_within_a_run: "unreadable",
    garbage: "unreadable",
    two_tellings_of_one_seq: "conflict",
    zombie_goes_on: "stale epoch",
    end_taken_back: "retracted end",
    result_changed_at_the_end: "changed result",
    begun_before_its_need_ended: "illegal",
    more_attempts_than_allowed: "illegal",
    succeeded_although_a_task_failed: "illegal",
    time_goes_back: "illegal",
    input_changed: "changed start",
    nobody_started_it: "unknown start",
    on_another_partition: "wrong partition",
    of_no_definition: "unknown definition",
    effect_twice: "effect twice",
    effect_missing: "effect missing",
    effect_of_nobody: "effect unknown",
    effect_of_a_task_that_never_began: "effect unknown",
}


@pytest.mark.parametrize(("seed", "kind"), [pytest.param(s, k, id=s.__name__) for s, k in SEEDED.items()])
async def test_a_seeded_fault_is_reported(seed: Callable[[Story], None], kind: str):
    story = told()
    seed(story)
    found = await checked(story)
    assert kind in found.counts, found.faults
    assert any(fault.detail for fault in found.faults)


async def test_a_start_behind_the_noted_end_is_not_missed():
    story = told()
    lost_history(story)
    log = story.log()

    class Growing(MemoryLog):
        """Commands whose first look ends before the last start."""

        looks = 0

        async def ends(self, topic: str) -> dict[int, int]:
            ends = await log.ends(topic)
            if topic.endswith("commands"):
                self.looks += 1
                return dict.fromkeys(ends, 0) if self.looks == 1 else ends
            return ends

        def read(self, topic, start, end):
            return log.read(topic, start, end)

    terms = Terms(violations, lambda workflow, version: DEFINITIONS.get((workflow, version)))
    found = await check_executions(Growing(), terms, settled=nothing_to_wait_for)
    assert found.is_right
    assert found.pending == 1


def test_the_book_counts_and_remembers_what_was_taken():
    with EffectsBook() as book:
        book.add(["a", "b", "a"])
        book.add(["c"])
        assert (book.total, book.take("a"), book.take("x")) == (4, 2, 0)
        assert book.unseen(10) == ["b", "c"]
        assert book.unseen(1) == ["b"]
