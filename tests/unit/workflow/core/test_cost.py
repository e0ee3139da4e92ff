"""Laws of cost and ownership: an event costs the same however long the history, and no state shares what changes."""

from app.domain.workflow.commands import Report, Signal, Start
from app.domain.workflow.decide import advance
from app.domain.workflow.effects import Dispatch, effects
from app.domain.workflow.events import Event, MapExpanded, TaskScheduled, TaskSucceeded
from app.domain.workflow.evolve import evolve, fold
from app.domain.workflow.graph import graph_of
from app.domain.workflow.legal import violations
from app.domain.workflow.state import CHUNK, Items
from tests.unit.workflow.core.world import EXPRESSIONS, ID, begun, task, workflow

ITEMS = 10_000


def test_map_of_ten_thousand_items_runs_through_and_its_twenty_thousand_events_replay() -> None:
    definition = workflow(task("m", over=f"list {ITEMS}", concurrency=100))
    graph = graph_of(definition)
    state, events = advance(None, Start(execution_id=ID, workflow="w", version="v1"), graph, 0, EXPRESSIONS)
    history: list[Event] = list(events)
    assert state is not None
    ready = [each for each in effects(state, events, graph) if isinstance(each, Dispatch)]
    while ready:
        task_name, item, attempt, token = ready.pop()
        done = Report(execution_id=ID, task=task_name, item=item, attempt=attempt, token=token, result=item)
        state, events = advance(state, done, graph, 0, EXPRESSIONS)
        assert state is not None
        history += events
        ready += [each for each in effects(state, events, graph) if isinstance(each, Dispatch)]
    assert state is not None
    assert state.result == list(range(ITEMS))
    assert len(history) == 2 * ITEMS + 4
    assert fold(history) == state
    assert violations(history, definition) == []


def test_change_of_one_item_copies_one_chunk_only() -> None:
    items = Items.of(tuple(range(ITEMS)), 0)
    work = items.chunks[0][0]._replace(attempt=1)
    changed = items.put(ITEMS // 2, work)
    same = sum(before is after for before, after in zip(items.chunks, changed, strict=True))
    assert same == len(items.chunks) - 1
    assert max(map(len, items.chunks)) == CHUNK


def test_fork_shares_nothing_that_changes() -> None:
    owner = begun(task("m", over="list 3"), task("ok", type="approval"))
    assert owner.state is not None
    kept = owner.state.fork()
    forked = owner.state.fork()
    seq = forked.seq
    forked = evolve(forked, TaskSucceeded(seq=seq, at=1_000, task="m", item=1, attempt=1, result=9))
    owner.tell(Signal(execution_id=ID, command_id="s", name="ok"))
    owner.tell(Signal(execution_id=ID, command_id="t", name="later"))
    assert owner.state != kept
    assert forked != kept
    assert kept == fold(owner.history[: kept.seq])


def test_values_of_a_map_are_those_of_its_event() -> None:
    owner = begun(task("m", over="list 2"))
    (expanded,) = [event for event in owner.history if isinstance(event, MapExpanded)]
    assert expanded.items == ("item0", "item1")
    assert sum(isinstance(event, TaskScheduled) for event in owner.history) == 2
