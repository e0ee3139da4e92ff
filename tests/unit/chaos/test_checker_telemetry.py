"""Laws of what is told of telemetry: seqs as a set would hold them, and no loss, disorder or imbalance passes."""

import orjson
from hypothesis import given
from hypothesis import strategies as st

from app.chaos.checker_folder import AckLine, BookLine
from app.chaos.checker_telemetry import Readings, Seqs, books, telemetry


def topic(*seqs: int, historical: bool = False) -> Readings:
    found = Readings()
    take(found, *seqs, historical=historical)
    return found


def take(found: Readings, *seqs: int, historical: bool = False) -> None:
    for seq in seqs:
        found.take(
            orjson.dumps({"device_id": "d", "session_id": 7, "seq": seq, "is_historical": historical, "metrics": []})
        )


@given(st.lists(st.integers(0, 30)), st.integers(0, 30), st.integers(0, 30))
def test_ranges_hold_what_a_set_would(seqs: list[int], one: int, other: int) -> None:
    found, known = Seqs(), set[int]()
    for seq in seqs:
        assert found.add(seq) == (seq not in known)
        known.add(seq)
    first, last = min(one, other), max(one, other)
    assert found.count == len(known)
    assert found.repeats == len(seqs) - len(known)
    assert found.missing(first, last) == len(set(range(first, last + 1)) - known)
    assert found.gaps == (max(known) - min(known) + 1 - len(known) if known else 0)
    assert all(b < a - 1 for b, a in zip(found.lasts, found.firsts[1:], strict=False))


def ack(first: int, last: int, outcome: str = "ok") -> AckLine:
    return AckLine("d", 7, first, last, outcome)  # type: ignore[arg-type]


def test_what_was_acknowledged_is_there_and_what_was_refused_is_not() -> None:
    assert telemetry(topic(1, 2, 3), [ack(1, 3)], None).holds
    assert not telemetry(topic(1, 3), [ack(1, 3)], None).holds
    assert telemetry(topic(1, 3), [ack(1, 1), ack(2, 2, "info"), ack(3, 3)], None).holds
    assert not telemetry(topic(1, 2), [ack(1, 1), ack(2, 2, "fail")], None).holds
    assert not telemetry(topic(1, 2), [AckLine("other", 7, 1, 1, "ok")], None).holds


def test_a_session_is_in_order_but_for_repeats_and_what_comes_from_the_spool() -> None:
    assert telemetry(topic(1, 2, 1, 2, 3), None, None).holds
    assert not telemetry(topic(1, 3, 2), None, None).holds
    spooled = topic(1, 5)
    take(spooled, 2, 3, 4, historical=True)
    assert telemetry(spooled, None, None).holds
    spooled = topic(1, 5)
    take(spooled, 3, 2, 4, historical=True)
    assert not telemetry(spooled, None, None).holds


def test_a_hole_in_a_session_is_one_that_a_producer_tells_of() -> None:
    assert not telemetry(topic(1, 4), None, None).holds
    assert not telemetry(topic(1, 4), None, [BookLine("p", 4, 3, dropped={"full": 1})]).holds
    assert telemetry(topic(1, 4), None, [BookLine("p", 4, 2, dropped={"full": 2})]).holds


def test_books_balance_and_claim_no_more_than_is_there() -> None:
    assert books(topic(1, 2), [BookLine("p", 3, 2, dropped={"full": 1})]).holds
    assert not books(topic(1, 2), [BookLine("p", 3, 3)]).holds
    assert not books(topic(1, 2), [BookLine("p", 4, 2, dropped={"full": 1})]).holds
    assert not books(topic(1, 2), [BookLine("p", 2, 3, in_flight=-1)]).holds
    assert not books(topic(), []).holds


def test_nothing_at_all_proves_nothing() -> None:
    assert not telemetry(topic(), [], None).holds
