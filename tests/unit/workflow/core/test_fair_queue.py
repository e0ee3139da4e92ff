"""Laws of the queue of ready work: priority first, workflows in turn, nobody starves, nothing is lost."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from app.domain.workflow.fair_queue import TURN_OF_THE_LOW, FairQueue


def filled(*pieces: tuple[str, str, int]) -> FairQueue[str, str]:
    queue: FairQueue[str, str] = FairQueue()
    for key, workflow, priority in pieces:
        queue.push(key, key, workflow, priority)
    return queue


def drained(queue: FairQueue[str, str]) -> list[str]:
    found = []
    while (piece := queue.pop()) is not None:
        found.append(piece)
    return found


def test_higher_priority_goes_first() -> None:
    assert drained(filled(("a", "w", 0), ("b", "w", 9), ("c", "w", -3))) == ["b", "a", "c"]


def test_one_workflow_keeps_its_order() -> None:
    assert drained(filled(*((f"{n:02}", "w", 0) for n in range(40)))) == [f"{n:02}" for n in range(40)]


def test_workflows_of_one_priority_take_turns() -> None:
    many = [(f"many{n}", "many", 0) for n in range(100)]
    order = drained(filled(*many, ("few0", "few", 0), ("few1", "few", 0)))
    assert order.index("few0") <= 1
    assert order.index("few1") <= 3


def test_low_priority_is_served_while_a_higher_one_never_ends() -> None:
    queue = filled(("low", "w", 0), ("lower", "w", -5))
    popped = []
    for n in range(TURN_OF_THE_LOW * 2):
        queue.push(f"h{n}", f"h{n}", "w", 10)
        popped.append(queue.pop())
    assert {"low", "lower"} <= set(popped)


def test_key_that_waits_already_is_replaced() -> None:
    queue = filled(("a", "w", 0))
    queue.push("a", "newer", "w", 1)
    assert len(queue) == 1
    assert queue.pop() == "newer"
    assert queue.pop() is None


pieces = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from(("u", "v", "w")), st.integers(-1, 1), st.booleans()), max_size=60
)


@given(pieces)
def test_what_is_pushed_comes_out_once_unless_discarded(steps: list[tuple[int, str, int, bool]]) -> None:
    queue: FairQueue[int, int] = FairQueue()
    wanted: set[int] = set()
    for key, workflow, priority, is_discard in steps:
        if is_discard:
            assert queue.discard(key) == (key if key in wanted else None)
            wanted.discard(key)
        else:
            queue.push(key, key, workflow, priority)
            wanted.add(key)
        assert len(queue) == len(wanted)
    found = []
    while (piece := queue.pop()) is not None:
        found.append(piece)
    assert sorted(found) == sorted(wanted)
    assert not queue


@given(st.lists(st.tuples(st.sampled_from(("u", "v", "w")), st.integers(0, 2)), min_size=1, max_size=100))
def test_order_is_of_priorities_but_for_one_pop_in_sixteen(waiting: list[tuple[str, int]]) -> None:
    queue: FairQueue[int, int] = FairQueue()
    for key, (workflow, priority) in enumerate(waiting):
        queue.push(key, priority, workflow, priority)
    order = []
    while (popped := queue.pop()) is not None:
        order.append(popped)
    regular = [priority for n, priority in enumerate(order, 1) if n % TURN_OF_THE_LOW]
    assert all(earlier >= later for earlier, later in pairwise(regular))
