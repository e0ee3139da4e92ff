"""Laws of the producer's readiness: readings are acknowledged, and the ledger balances."""

from agents.ledger import Books
from app.roles.producer import Acknowledged
from tests.helpers.stages import SetClock


def scene() -> tuple[Books, SetClock, Acknowledged]:
    books, clock = Books("device.telemetry"), SetClock()
    return books, clock, Acknowledged(books, clock, patience_s=30.0)


def send(books: Books, count: int) -> None:
    books.generated({"press": count})
    books.accepted(count)


def test_a_producer_whose_readings_nobody_acknowledges_is_not_ready() -> None:
    books, clock, acknowledged = scene()
    send(books, 10)
    assert acknowledged.check().ok
    clock.ms += 30_000
    assert not acknowledged.check().ok
    books.delivered("device.telemetry", 4, None)
    assert acknowledged.check() == (True, "4 acknowledged, 6 under way")


def test_a_producer_that_has_nothing_to_send_is_ready_for_ever() -> None:
    _, clock, acknowledged = scene()
    clock.ms += 3_600_000
    assert acknowledged.check().ok


def test_a_reading_of_unknown_fate_makes_it_not_ready() -> None:
    books, _, acknowledged = scene()
    books.generated({"press": 3})
    books.accepted(2)
    assert books.imbalance == 1
    assert not acknowledged.check().ok
    books.waiting_records = 1
    assert acknowledged.check().ok
