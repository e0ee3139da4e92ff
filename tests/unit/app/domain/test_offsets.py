"""Laws of the offset book: in any order of acknowledgements, seeks and commits, nothing unacknowledged is committed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.domain.offsets import OffsetBook, Range


class Books(RuleBasedStateMachine):
    """A log with holes, delivered in ranges, beside the plainest account of what is acknowledged."""

    def __init__(self) -> None:
        super().__init__()
        self.book = OffsetBook()
        self.out: list[tuple[Range, int, int]] = []  # range, first, last; in order of delivery
        self.stale: list[Range] = []
        self.next = 0
        self.base: int | None = None
        self.acked: set[int] = set()

    @rule(hole=st.integers(0, 3), records=st.integers(1, 5))
    def deliver(self, hole: int, records: int) -> None:
        first = self.next + hole
        last = first + records - 1
        self.out.append((self.book.deliver(first, last, records), first, last))
        self.next = last + 1

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 20))
    def acknowledge(self, which: int) -> None:
        entered, _first, last = self.out[which % len(self.out)]
        assert self.book.acknowledge(entered) is (last not in self.acked)
        self.acked.add(last)

    @precondition(lambda self: self.stale)
    @rule(which=st.integers(0, 20))
    def acknowledge_what_a_seek_gave_up(self, which: int) -> None:
        before = (self.book.committable, self.book.outstanding_records, self.book.outstanding_ranges)
        assert not self.book.acknowledge(self.stale[which % len(self.stale)])
        assert before == (self.book.committable, self.book.outstanding_records, self.book.outstanding_ranges)

    @rule()
    def commit(self) -> None:
        if self.book.to_commit is not None:
            self.book.commit_done(self.book.to_commit)
        assert self.book.to_commit is None

    @rule(back=st.none() | st.integers(0, 10))
    def seek(self, back: int | None) -> None:
        """To the committed offset, whatever it is; None: nothing was ever committed."""
        self.base = None if back is None else max(0, self.next - back)
        self.next = self.base or 0
        self.book.seek(self.base)
        self.stale += [entered for entered, _, last in self.out if last not in self.acked]
        self.out.clear()
        self.acked.clear()

    @invariant()
    def commits_the_longest_acknowledged_prefix_and_nothing_more(self) -> None:
        expected = self.base
        for _, _, last in self.out:
            if last not in self.acked:
                break
            expected = last + 1
        assert self.book.committable == expected
        assert self.book.to_commit in (None, expected)

    @invariant()
    def outstanding_is_what_is_not_in_the_prefix(self) -> None:
        rest = [(first, last) for _, first, last in self.out if last >= (self.book.committable or 0)]
        assert self.book.outstanding_ranges == len(rest)
        assert self.book.outstanding_records == sum(last - first + 1 for first, last in rest)

    @invariant()
    def next_offset_follows_the_last_range(self) -> None:
        assert self.book.next_offset == (self.out[-1][2] + 1 if self.out else self.base)

    @invariant()
    def done_before_is_known_from_the_first_delivery(self) -> None:
        if self.book.committable is not None:
            assert self.book.done_before == self.book.committable
        elif self.out:
            assert self.book.done_before == self.out[0][1]


Books.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestBooks = Books.TestCase


@given(st.permutations(range(8)))
def test_any_order_of_acknowledgements_ends_at_the_same_offset(order: list[int]) -> None:
    book = OffsetBook()
    ranges = [book.deliver(number * 10, number * 10 + 9, 10) for number in range(8)]
    for number in order:
        book.acknowledge(ranges[number])
    assert (book.committable, book.outstanding_ranges, book.outstanding_records) == (80, 0, 0)


def test_hole_in_the_log_belongs_to_the_range_behind_it() -> None:
    book = OffsetBook()
    book.seek(5)
    book.acknowledge(book.deliver(90, 99, 3))
    assert book.to_commit == 100


@pytest.mark.parametrize(("first", "last"), [(0, 3), (4, 12), (9, 12), (12, 11)])
def test_offset_delivered_before_is_refused(first: int, last: int) -> None:
    book = OffsetBook()
    book.deliver(0, 9, 10)
    with pytest.raises(ValueError, match="do not follow: the next one is 10"):
        book.deliver(first, last, 1)


def test_failed_commit_leaves_the_offset_due() -> None:
    book = OffsetBook()
    book.acknowledge(book.deliver(0, 9, 10))
    assert (book.to_commit, book.to_commit) == (10, 10)
    book.commit_done(10)
    assert book.to_commit is None
