"""Laws of the lease: who stood still asks its group before it goes on, and ends when others have its partitions."""

from typing import NoReturn

import pytest

from app.adapters.lease import ASK_S, Lease
from tests.helpers.stages import SetClock

SESSION_MS = 10_000
STOPPED_MS = 200
STILL_MS = 500


class Ended(BaseException):
    """Stands for the end of the process."""


class Held:
    """A lease with what its group would say, and how often it was asked."""

    def __init__(self, answer: bool | None = True) -> None:
        self.clock = SetClock()
        self.answer = answer
        self.asked = 0
        self.lease = Lease(self.clock, SESSION_MS / 1000, stopped_s=STOPPED_MS / 1000, still_s=STILL_MS / 1000)
        self.lease.is_member = self._is_member
        self.lease.end = self._end

    def _is_member(self, timeout_s: float) -> bool | None:
        assert timeout_s == ASK_S
        self.asked += 1
        return self.answer

    def _end(self, stood_s: float) -> NoReturn:
        raise Ended(stood_s)


@pytest.mark.parametrize(("gap_ms", "asks"), [(STOPPED_MS - 1, 0), (STOPPED_MS, 1)])
def test_a_stop_is_in_doubt_from_its_limit_on(gap_ms: int, asks: int) -> None:
    held = Held()
    held.clock.ms += gap_ms
    held.lease.resumed()
    assert held.asked == asks
    assert held.lease.held()


@pytest.mark.parametrize(("gap_ms", "asks"), [(STILL_MS - 1, 0), (STILL_MS, 1)])
def test_a_gap_that_no_signal_tells_of_is_in_doubt_later(gap_ms: int, asks: int) -> None:
    held = Held()
    held.clock.ms += gap_ms
    assert held.lease.held()
    assert held.asked == asks


@pytest.mark.parametrize("looks", ["resumed", "held"])
def test_who_is_no_member_any_more_ends_before_anything_else(looks: str) -> None:
    held = Held(answer=False)
    held.clock.ms += 1_500
    with pytest.raises(Ended) as ended:
        getattr(held.lease, looks)()
    assert ended.value.args == (1.5,)


def test_no_answer_in_time_is_left_to_the_epochs() -> None:
    held = Held(answer=None)
    held.clock.ms += 1_500
    assert held.lease.held()
    assert held.asked == 1


def test_each_gap_is_asked_about_once() -> None:
    held = Held()
    held.clock.ms += 1_500
    held.lease.resumed()
    assert held.lease.held()
    assert held.asked == 1


@pytest.mark.parametrize("answer", [True, None])
def test_a_gap_of_the_session_is_lost_until_the_group_assigns_anew(answer: bool | None) -> None:
    held = Held(answer)
    held.clock.ms += SESSION_MS
    assert not held.lease.held()
    held.clock.ms += 1
    assert not held.lease.held()
    held.lease.renew()
    assert held.lease.held()


def test_a_lease_that_cannot_ask_goes_by_the_session_alone() -> None:
    clock = SetClock()
    lease = Lease(clock, SESSION_MS / 1000)
    clock.ms += SESSION_MS - 1
    assert lease.held()
    clock.ms += SESSION_MS
    assert not lease.held()
