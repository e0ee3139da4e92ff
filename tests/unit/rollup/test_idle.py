"""Laws of the clock of silent devices."""

from hypothesis import given
from hypothesis import strategies as st

from app.domain.idle import IdleClock

STEPS = st.lists(st.tuples(st.integers(0, 5), st.none() | st.integers(1, 40), st.integers(0, 5)), max_size=60)


@given(STEPS)
def test_every_device_comes_up_at_its_deadline_and_never_before(steps) -> None:
    clock, now_ms = IdleClock(), 0
    want: dict[str, int] = {}
    for device, delay_ms, pass_ms in steps:
        name = f"d{device}"
        deadline_ms = None if delay_ms is None else now_ms + delay_ms
        clock.touch(name, deadline_ms)
        want.pop(name, None)
        if deadline_ms is not None:
            want[name] = deadline_ms
        now_ms += pass_ms
        due = sorted(name for name, at in want.items() if at <= now_ms)
        assert sorted(clock.due(now_ms, 100)) == due
        for name in due:
            del want[name]
        assert len(clock) == len(want)


def test_devices_that_keep_speaking_leave_one_entry_each() -> None:
    clock = IdleClock()
    for now_ms in range(1_000):
        for device in ("a", "b"):
            clock.touch(device, now_ms + 100)
        assert clock.due(now_ms, 10) == []
    assert len(clock._heap) == 2


def test_no_more_than_the_limit_come_up_at_once() -> None:
    clock = IdleClock()
    for device in range(10):
        clock.touch(str(device), 5)
    assert clock.next_ms() == 5
    assert [len(clock.due(5, 4)) for _ in range(4)] == [4, 4, 2, 0]
    assert clock.next_ms() is None
