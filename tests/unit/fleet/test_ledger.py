"""Laws of the ledger."""

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import CounterMetricFamily

from agents.ledger import Books
from app import metrics
from app.domain.ledger import Ledger
from app.http.health import HealthRegistry
from app.http.view import ledger_document
from app.supervisor_view import LEDGER_FAMILY, Merged, SupervisorView
from config.supervisor import SupervisorSettings

STEPS = st.lists(
    st.tuples(st.sampled_from(["acknowledged", "dead_lettered", "dropped", "spooled"]), st.integers(0, 50)), max_size=30
)


@given(STEPS, st.integers(0, 50))
def test_a_ledger_balances_when_every_record_has_one_fate_or_is_queued(
    steps: list[tuple[str, int]], queued: int
) -> None:
    ledger = Ledger().with_generated(sum(count for _, count in steps) + queued)
    for fate, count in steps:
        match fate:
            case "acknowledged":
                ledger = ledger.with_acknowledged(count)
            case "dead_lettered":
                ledger = ledger.with_dead_lettered(count)
            case "spooled":
                ledger = ledger.with_spooled(count)
            case _:
                ledger = ledger.with_dropped("buffer_full", count)
    assert ledger.balances(queued)
    assert not ledger.balances(queued + 1)
    assert ledger.in_flight == queued


def test_a_record_that_leaves_the_spool_is_in_flight_again() -> None:
    ledger = Ledger().with_generated(5).with_spooled(5).with_unspooled(2)
    assert ledger.balances(2)
    assert ledger.with_acknowledged(2).balances(0)


def test_drops_are_kept_by_reason() -> None:
    ledger = Ledger().with_generated(6).with_dropped("a", 1).with_dropped("b", 2).with_dropped("a", 3)
    assert dict(ledger.dropped) == {"a": 4, "b": 2}


def test_counting_a_record_twice_shows() -> None:
    assert not Ledger().with_generated(1).with_acknowledged(2).balances(0)


def test_records_are_never_taken_back() -> None:
    with pytest.raises(AssertionError):
        Ledger().with_generated(-1)


def test_books_follow_what_a_producer_tells_of_their_own_topic() -> None:
    books = Books("device.telemetry")
    outcome = metrics.LEDGER.labels("dropped_record_too_large")
    before = outcome._value.get()
    books.generated({"press": 3, "pump": 7})
    assert books.balances(10)
    books.accepted(10)
    assert books.balances(0)
    books.delivered("device.truth", 5, None)
    books.delivered("device.telemetry", 8, None)
    books.delivered("device.telemetry", 2, "record_too_large")
    assert books.balances(0)
    assert books.ledger.acknowledged == 8
    assert dict(books.ledger.dropped) == {"record_too_large": 2}
    assert outcome._value.get() == before + 2


def test_books_notice_a_record_that_was_lost_on_the_way_to_the_producer() -> None:
    books = Books("device.telemetry")
    books.generated({"press": 3})
    books.accepted(2)
    assert not books.balances(0)


def test_what_an_earlier_process_left_on_disk_is_accounted_for_too() -> None:
    books = Books("device.telemetry")
    books.recovered(5)
    books.generated({"press": 10})
    books.accepted(10)
    books.spooled(4)
    assert (books.ledger.spooled, books.unacknowledged, books.imbalance) == (9, 6, 0)
    books.unspooled(7)
    books.delivered("device.telemetry", 7, None)
    books.lost_from_spool("spool_age", 2)
    books.lost_on_the_way("spool_disk_full", 1)
    assert (books.ledger.spooled, books.unacknowledged, books.imbalance) == (0, 5, 0)
    assert dict(books.ledger.dropped) == {"spool_age": 2, "spool_disk_full": 1}
    assert books.balances(0)


COUNTED = st.fixed_dictionaries(
    {name: st.integers(0, 50) for name in ("generated", "recovered", "acknowledged", "spooled")}
)


@given(COUNTED)
def test_the_document_shows_what_is_on_disk_now(counted: dict[str, int]) -> None:
    document = ledger_document({**counted, "unspooled": counted["spooled"]})
    on_disk = document["outcomes"].get("spooled", 0)
    assert on_disk == counted["recovered"]
    assert document["in_flight"] == counted["generated"] - counted["acknowledged"]


async def test_what_one_producer_leaves_and_the_next_recovers_is_counted_once() -> None:
    first = Counter(generated=100, acknowledged=60, spooled=40, unspooled=10, dropped_spool_age=10)
    supervisor = SimpleNamespace(closed_ledger=first, crashed_ledger=Counter(), silent_deaths=0, left_on_disk=30)
    view = SupervisorView(cast(Any, supervisor), SupervisorSettings(), HealthRegistry(frozenset(), "1"), dict)
    ended = view.ledger_of(Merged())
    assert (ended["outcomes"]["spooled"], ended["in_flight"], ended["balanced"]) == (30, 0, True)
    merged = Merged()
    family = CounterMetricFamily(LEDGER_FAMILY, "", labels=["outcome"])
    for outcome, count in {"recovered": 30, "generated": 7, "acknowledged": 20, "unspooled": 20, "spooled": 7}.items():
        family.add_metric([outcome], count)
    merged.add("producer", [family])
    later = view.ledger_of(merged)
    assert (later["generated"], later.get("recovered"), later["outcomes"]["spooled"]) == (107, None, 17)
    assert (later["in_flight"], later["unknown_after_crash"]) == (0, 0)
    await view.close()
