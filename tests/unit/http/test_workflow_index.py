"""Laws of the index of executions: what records make of it, and how it is read."""

import json
import random
import sqlite3
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.adapters.execution_reader import ExecutionReader, Row, Wanted
from app.adapters.execution_schema import FILE
from app.adapters.execution_store import ExecutionStore, Position
from app.domain.workflow.events import (
    Event,
    ExecutionAdmitted,
    ExecutionPaused,
    ExecutionResumed,
    ExecutionRetried,
    MapCompleted,
    MapExpanded,
    TaskSkipped,
)
from app.errors import Unavailable
from tests.helpers.executions import T0_MS, ended, failed, run, scheduled, start, started, succeeded, whole


class Index:
    """A store and a reader of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ExecutionStore(folder)
        self.reader = ExecutionReader(folder)
        self.offset = 0

    def take(self, *runs: bytes, commands: list[bytes] | None = None) -> set[str]:
        self.offset += len(runs)
        return self.store.apply(commands or [], runs, [Position("workflow.events", 0, self.offset)])

    def status(self, execution_id: str = "a") -> str | None:
        row = self.reader.get(execution_id)
        return None if row is None else row.status

    def events(self, execution_id: str = "a", after: int = -1, limit: int = 1000) -> list[dict[str, Any]]:
        page = self.reader.history(execution_id, after, limit)
        return [] if page is None else [json.loads(event) for event in page.events]

    def detail(self, execution_id: str = "a") -> dict[str, Any]:
        found = self.reader.detail(execution_id)
        assert found is not None
        return found

    def ids(self, after: tuple[int, str] | None = None, limit: int = 100, **wanted: Any) -> list[str]:
        return [row.id for row in self.reader.page(Wanted(**wanted), after, limit)]

    def close(self) -> None:
        self.reader.close()
        self.store.close()


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    made = Index(tmp_path)
    yield made
    made.close()


def test_a_start_is_queued_until_its_events_come(index: Index) -> None:
    index.take(commands=[start("a", key="press-1", priority=3)])
    row = index.reader.get("a")
    assert row is not None
    shown = row.document()
    assert (shown["status"], shown["key"], shown["priority"], shown["created_at"]) == ("queued", "press-1", 3, T0_MS)
    assert (shown["started_at"], shown["events"]) == (None, 0)
    index.take(*whole("a"))
    assert index.status() == "succeeded"
    index.take(commands=[start("a")])
    assert index.status() == "succeeded", "a start of an execution that exists changes nothing"


def test_other_commands_and_what_cannot_be_read_are_passed_over(index: Index) -> None:
    bad = [b"", b"{", b"[1]", b'{"type": "cancel", "execution_id": "x"}', b'"\xff"']
    assert index.take(b"", b"{", b'{"execution_id": "x"}', run("a", started()), commands=bad) == {"a"}
    assert index.ids() == ["a"]
    assert index.store.unreadable == 7


def test_a_start_that_may_be_held_back_is_no_execution_before_its_events_come(index: Index) -> None:
    """Else each one that a debounce held back would be shown as queued for ever."""
    debounced = msgspec.json.decode(start("a")) | {"debounce": {"key": "k", "seconds": 30.0}}
    told = {"type": "schedule_pause", "entity_id": "schedule:x", "command_id": "c"}
    index.take(commands=[msgspec.json.encode(debounced), msgspec.json.encode(told)])
    assert (index.ids(), index.store.unreadable) == ([], 0)
    index.take(*whole("a"))
    assert index.status() == "succeeded"


def test_an_execution_shows_what_its_events_say(index: Index) -> None:
    index.take(
        run("a", started(key="k", given={"n": 1}), scheduled(1)),
        run("a", failed(2, retry_at=T0_MS + 50), scheduled(3, attempt=2)),
        run("a", failed(4, attempt=2), TaskSkipped(seq=5, at=T0_MS + 5, task="two", reason="one failed")),
        run("a", ended(6, "failed")),
    )
    shown = index.detail()
    assert shown["status"] == "failed"
    assert (shown["attempts"], shown["failures"], shown["events"]) == (2, 2, 7)
    assert (shown["failed_task"], shown["error"]) == ("one", "HttpStatus: the receiver answered 500")
    assert (shown["input"], shown["trigger"], shown["failure"]["type"]) == ({"n": 1}, {"kind": "http"}, "HttpStatus")
    assert (shown["started_at"], shown["ended_at"], shown["duration_ms"]) == (T0_MS + 1, T0_MS + 6, 5)
    assert [(task["task"], task["status"], task["attempts"]) for task in shown["tasks"]] == [
        ("one", "failed", 2),
        ("two", "skipped", 0),
    ]


def test_a_map_shows_its_items(index: Index) -> None:
    items: list[Event] = [scheduled(2, item=0), scheduled(3, item=1), succeeded(4, item=1), succeeded(5, item=0)]
    index.take(run("a", started(), MapExpanded(seq=1, at=T0_MS, task="one", items=(1, 2)), *items))
    assert index.detail()["tasks"][0]["status"] == "running"
    index.take(run("a", MapCompleted(seq=6, at=T0_MS, task="one")))
    [task] = index.detail()["tasks"]
    assert (task["status"], task["items"], task["items_done"], task["attempts"]) == ("succeeded", 2, 2, 2)


def test_the_status_follows_admission_pause_and_retry(index: Index) -> None:
    seen = []
    for event in (
        started(queued=True),
        ExecutionPaused(seq=1, at=T0_MS, command_id="p"),
        ExecutionResumed(seq=2, at=T0_MS, command_id="r"),
        ExecutionAdmitted(seq=3, at=T0_MS),
        ExecutionPaused(seq=4, at=T0_MS, command_id="p2"),
        ExecutionResumed(seq=5, at=T0_MS, command_id="r2"),
        ended(6, "failed"),
        ExecutionRetried(seq=7, at=T0_MS, command_id="x", tasks=("one",)),
        ended(8),
    ):
        index.take(run("a", event))
        seen.append(index.status())
    assert seen == [
        "queued", "paused", "queued", "running", "paused", "running", "failed", "running", "succeeded",
    ]  # fmt: skip
    assert index.detail()["error"] is None


def test_a_repeated_run_changes_nothing(index: Index) -> None:
    runs = whole("a")
    index.take(*runs)
    before = index.detail(), index.events()
    assert index.take(*runs, runs[0]) == set()
    assert (index.detail(), index.events()) == before


def test_a_run_of_which_a_part_is_known_adds_the_rest(index: Index) -> None:
    index.take(run("a", started(), scheduled(1)))
    index.take(run("a", scheduled(1), succeeded(2), ended(3)))
    assert [event["seq"] for event in index.events()] == [0, 1, 2, 3]
    assert index.detail()["attempts"] == 1


def test_of_two_stories_the_newer_owners_is_true(index: Index) -> None:
    index.take(run("a", started(), scheduled(1)), run("a", failed(2), ended(3, "failed"), epoch=1))
    assert index.status() == "failed"
    index.take(run("a", scheduled(1, "other"), succeeded(2, "other"), epoch=2))
    shown = index.detail()
    assert (shown["status"], shown["events"], shown["failures"]) == ("running", 3, 0)
    assert [task["task"] for task in shown["tasks"]] == ["other"]
    index.take(run("a", failed(3), ended(4, "failed"), epoch=1))
    assert index.status() == "running", "what a replaced owner still says is not heard"
    index.take(run("a", ended(3), epoch=2))
    assert [event["type"] for event in index.events()][-1] == "execution_ended"


def test_one_batch_may_hold_both_stories(index: Index) -> None:
    index.take(run("a", started(), scheduled(1)), run("a", failed(2)), run("a", succeeded(2), ended(3), epoch=2))
    assert [event["type"] for event in index.events()][2:] == ["task_succeeded", "execution_ended"]


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), batch=st.integers(1, 7))
def test_repeats_and_batches_never_change_what_is_read(tmp_path_factory, seed: int, batch: int) -> None:
    rng = random.Random(seed)
    histories: dict[str, list[Event]] = {
        name: [started(), *(scheduled(n, attempt=n) for n in range(1, rng.randrange(2, 30)))] for name in "abc"
    }
    records: list[bytes] = []
    cuts = {name: sorted({0, len(events), *rng.sample(range(len(events)), 2)}) for name, events in histories.items()}
    pieces = {name: [run(name, *histories[name][i:j]) for i, j in pairwise(at)] for name, at in cuts.items()}
    while any(pieces.values()):
        name = rng.choice([name for name, left in pieces.items() if left])
        records.append(pieces[name].pop(0))
        if rng.random() < 0.4:
            records.append(rng.choice(records))
    index = Index(tmp_path_factory.mktemp("index"))
    try:
        for begin in range(0, len(records), batch):
            index.take(*records[begin : begin + batch])
        for name, events in histories.items():
            assert [event["seq"] for event in index.events(name)] == list(range(len(events)))
            row = index.reader.get(name)
            assert row is not None
            assert row.attempts == len(events) - 1
    finally:
        index.close()


def test_a_long_history_is_read_in_pages(index: Index) -> None:
    events: list[Event] = [started(), *(scheduled(seq, attempt=seq) for seq in range(1, 3000))]
    for begin in range(0, 3000, 7):
        index.take(run("a", *events[begin : begin + 7]))
    seen: list[int] = []
    more = True
    while more:
        page = index.reader.history("a", seen[-1] if seen else -1, 250)
        assert page is not None
        seen += [json.loads(event)["seq"] for event in page.events]
        more = page.more
    assert seen == list(range(3000))
    assert [event["seq"] for event in index.events("a", 1500, 3)] == [1501, 1502, 1503]
    assert index.events("a", 5000) == []
    assert index.reader.history("unknown", -1, 10) is None


def test_a_page_of_large_events_is_bounded_by_its_size(index: Index) -> None:
    large = "x" * (1 << 20)
    index.take(run("a", started(), *(succeeded(seq, result=large) for seq in range(1, 12))))
    page = index.reader.history("a", -1, 1000)
    assert page is not None
    assert (len(page.events), page.more) == (5, True)
    rest = index.reader.history("a", page.last_seq, 1000)
    assert rest is not None
    assert json.loads(rest.events[0])["seq"] == page.last_seq + 1


def test_lists_are_newest_first_and_walked_without_gap_or_repeat(index: Index) -> None:
    rng = random.Random(7)
    expected: list[tuple[int, str, str, str, str]] = []
    for number in range(300):
        status = rng.choice(["succeeded", "failed", "cancelled"])
        at, key, workflow = T0_MS + rng.randrange(40), f"key-{number % 3}", f"flow-{number % 2}"
        expected.append((at, f"e{number}", workflow, status, key))
        index.take(
            run(f"e{number}", started(at, key=key), ended(1, status, at), workflow=workflow)  # type: ignore[arg-type]
        )
    flows, keys, times = (None, "flow-1", "flow-9"), (None, "key-1"), ((None, None), (T0_MS + 5, T0_MS + 30))
    statuses = ((), ("failed",), ("failed", "cancelled"), ("running",))
    for flow, some, one_key, (since, until) in product(flows, statuses, keys, times):
        asked = Wanted(workflow=flow, statuses=some, key=one_key, since=since, until=until)
        rows: list[Row] = []
        after = None
        while found := index.reader.page(asked, after, 17):
            rows += found
            after = found[-1].order, found[-1].id
        assert sorted(row.id for row in rows) == sorted(each[1] for each in expected if _fits(asked, *each))
        created = [row.document()["created_at"] for row in rows]
        assert created == sorted(created, reverse=True)


def _fits(asked: Wanted, at: int, _: str, workflow: str, status: str, key: str) -> bool:
    return (
        asked.workflow in {None, workflow}
        and (not asked.statuses or status in asked.statuses)
        and asked.key in {None, key}
        and (asked.since is None or at >= asked.since)
        and (asked.until is None or at < asked.until)
    )


def test_the_order_of_a_list_is_the_same_on_every_node(tmp_path: Path) -> None:
    ids = [f"e{number}" for number in range(50)]
    orders = []
    for node in range(2):
        index = Index(tmp_path / str(node))
        random.Random(node).shuffle(ids)
        for each in ids:
            index.take(*whole(each))
        orders.append(index.ids())
        index.close()
    assert orders[0] == orders[1]


def test_the_first_of_an_idempotent_start_is_found_with_its_partition(index: Index) -> None:
    index.take(run("abc-p12", started()), run("abd", started()))
    for wanted, found in (("abc", "abc-p12"), ("abd", "abd"), ("ab", None), ("abc-p1", None)):
        row = index.reader.first(wanted)
        assert (None if row is None else row.id) == found, wanted


def test_what_is_written_is_there_after_a_crash_with_the_offset_it_came_from(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.take(*whole("a"))
    again = Index(tmp_path)  # nothing was closed
    assert again.store.positions() == {("workflow.events", 0): 2}
    assert (again.status(), again.store.count) == ("succeeded", 1)
    again.take(run("b", started()))
    assert set(again.ids()) == {"a", "b"}
    again.close()


def test_a_file_of_another_boot_that_was_not_closed_is_made_anew(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.take(*whole("a"))
    index.close()
    closed = Index(tmp_path)
    assert closed.status() == "succeeded"
    closed.store._db.execute("UPDATE meta SET value = 'another' WHERE name = 'boot'")
    assert ExecutionStore(tmp_path).positions() == {}


def test_a_broken_file_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database" * 1000)
    index = Index(tmp_path)
    index.take(*whole("a"))
    assert index.status() == "succeeded"
    index.close()


def test_without_a_file_nothing_is_known_rather_than_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        ExecutionReader(tmp_path).get("a")


def test_a_batch_that_fails_leaves_nothing_behind(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.take(*whole("a"))

    def broken(*_: object) -> None:
        raise sqlite3.OperationalError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(index.store, "_write_runs", broken)
        with pytest.raises(sqlite3.OperationalError):
            index.take(*whole("b"))
    assert index.status("b") is None
    index.take(*whole("b"))
    assert (index.status("b"), index.store.count) == ("succeeded", 2)


def test_ended_executions_are_forgotten_when_they_are_old_or_too_many(index: Index) -> None:
    for number in range(20):
        index.take(*whole(f"e{number}", at=T0_MS + number * 1000))
    index.take(run("waits", started(T0_MS - 1000)))
    index.take(run("long", started(T0_MS - 1000), ended(1, at=T0_MS + 60_000)))
    index.take(commands=[start("refused", at=T0_MS - 1000), start("young", at=T0_MS + 60_000)])
    assert index.store.forget(T0_MS + 4500, 1000) == 6
    assert index.ids(statuses=("succeeded",)) == [*(f"e{number}" for number in reversed(range(5, 20))), "long"]
    assert index.ids(statuses=("queued", "running")) == ["young", "waits"]
    assert index.store.forget(0, 11, most=4) == 4
    assert index.store.forget(0, 11, most=4) == 3
    assert index.store.forget(0, 11) == 0
    assert index.ids() == ["young", *(f"e{number}" for number in reversed(range(11, 20))), "waits"]
    assert index.events("e3") == []
    assert index.store._db.execute("SELECT count(*) FROM runs").fetchone() == (10,)
    index.take(*whole("e3"))
    assert index.status("e3") == "succeeded"


def test_a_reset_forgets_everything(index: Index) -> None:
    index.take(*whole("a"))
    index.store.reset("another")
    assert index.store.cluster == "another"
    assert (index.ids(), index.store.positions(), index.store.count) == ([], {}, 0)
    index.take(*whole("a"))
    assert index.ids() == ["a"]


def test_waiting_executions_are_counted_by_status(index: Index) -> None:
    index.take(run("a", started()), run("b", started(queued=True)), *whole("c"))
    assert index.reader.counts() == {"queued": 1, "running": 1}
