"""Laws of the ledger."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.ledger import Books
from app import metrics
from app.domain.ledger import Ledger

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
