"""Laws of the roster: who counts, who is silent, who leads, who may not join."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import membership
from app.domain.cluster import GroupSeat, NodeView, ProcessView
from app.domain.membership import Change, Roster, Verdict, changes, leader, standing, take

SILENT_S = 20.0


def a_node(node_id: str, **fields: Any) -> NodeView:
    return NodeView(**{"node_id": node_id, "epoch": 1, "version": "0.1.0", "state": "ready", **fields})


def roster_of(*views: NodeView, at_s: float = 0.0) -> Roster:
    roster = Roster()
    for view in views:
        roster = take(roster, view.node_id, view, at_s)
    return roster


NODES = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.one_of(
            st.none(),
            st.tuples(
                st.integers(0, 3),
                st.sampled_from(["joining", "ready", "leaving", "gone"]),
                st.sampled_from(["", "a", "b,c"]),
            ),
        ),
        st.floats(0, 30),
    ),
    max_size=12,
)


@given(NODES)
def test_of_two_starts_of_a_name_the_later_one_counts_and_a_leader_is_one_that_is_reached(steps: list[Any]):
    roster, now_s = Roster(), 0.0
    latest: dict[str, int] = {}
    for node_id, said, passed_s in steps:
        now_s += passed_s
        if said is None:
            latest.pop(node_id, None)
            roster = take(roster, node_id, None, now_s)
        else:
            epoch, state, away = said
            latest[node_id] = max(epoch, latest.get(node_id, epoch))
            view = a_node(node_id, epoch=epoch, state=state, facts={"unreachable": away})
            roster = take(roster, node_id, view, now_s)
    assert {name: member.view.epoch for name, member in roster.members.items()} == latest
    found = membership.standings(roster, SILENT_S)
    leads = leader(roster, SILENT_S)
    reached = {name for name, each in found.items() if each in {"ready", "joining"}}
    assert (leads in reached) if reached else (leads is None)
    assert not {name for name in found if found[name] == "ready"} or found[leads or ""] == "ready"


def test_a_newcomer_takes_a_name_only_when_it_has_been_taken_in():
    def node(epoch: int, **facts: str) -> NodeView:
        return a_node("a", epoch=epoch, facts=facts)

    first, newcomer, taken_in = node(1, settled="1"), node(2), node(2, settled="1")
    roster = take(roster_of(first), "a", newcomer, 1.0)
    assert roster.views == (first,), "it may be refused"
    assert take(roster, "a", taken_in, 2.0).views == (taken_in,)
    assert take(take(roster, "a", taken_in, 2.0), "a", first, 3.0).views == (taken_in,), "who wakes up late"
    both = take(roster_of(newcomer), "a", first, 1.0)
    assert both.views == (first,), "of two that begin together the one that was taken in"


def test_the_oldest_ready_node_leads_and_one_that_joins_only_when_there_is_no_other():
    old, new, joining = a_node("z", epoch=1), a_node("a", epoch=2), a_node("b", epoch=0, state="joining")
    assert leader(roster_of(new, old, joining), SILENT_S) == "z"
    assert leader(roster_of(joining), SILENT_S) == "b"
    assert leader(Roster(), SILENT_S) is None


def test_a_node_is_silent_by_the_time_of_the_others_not_by_the_clock():
    roster = roster_of(a_node("a"), a_node("b"))
    assert standing(roster, "a", SILENT_S) == "ready", "when nothing at all is heard, nobody is silent"
    roster = take(roster, "b", a_node("b"), SILENT_S + 1)
    assert standing(roster, "a", SILENT_S) == "unreachable"
    assert standing(roster, "b", SILENT_S) == "ready"
    assert membership.forgotten(roster, SILENT_S, SILENT_S + 2) == ()
    assert membership.forgotten(roster, SILENT_S, SILENT_S) == ("a",)
    assert standing(membership.heard(roster, "a", SILENT_S + 2), "a", SILENT_S) == "ready"


def test_who_is_not_reached_by_another_is_unreachable_until_it_speaks():
    roster = roster_of(a_node("a"), a_node("b"))
    accuses = a_node("a", facts={"unreachable": "b"})
    roster = take(roster, "a", accuses, 1.0)
    assert standing(roster, "b", SILENT_S) == "unreachable"
    roster = take(roster, "b", a_node("b"), 2.0)
    assert standing(roster, "b", SILENT_S) == "ready", "what b says itself counts for more"
    roster = take(roster, "a", accuses, 3.0)
    assert standing(roster, "b", SILENT_S) == "ready", "said again is not said anew"
    roster = take(roster, "a", a_node("a"), 4.0)
    roster = take(roster, "a", accuses, 5.0)
    assert standing(roster, "b", SILENT_S) == "unreachable", "it was reached in between"
    assert membership.unreachable_of(a_node("a", facts={"unreachable": "a,,b"})) == ("b",), "nobody accuses itself"


def test_what_became_of_the_nodes_is_told_once():
    before = membership.standings(roster_of(a_node("a"), a_node("b"), a_node("c", state="joining")), SILENT_S)
    assert changes(before, before) == ()
    after = {"b": "leaving", "c": "ready", "d": "joining", "e": "unreachable"}
    assert changes(before, after) == (  # type: ignore[arg-type]
        Change("left", "a"),
        Change("leaving", "b"),
        Change("ready", "c"),
        Change("joined", "d"),
        Change("joined", "e"),
        Change("unreachable", "e"),
    )
    assert changes({"a": "unreachable"}, {"a": "ready"}) == (Change("back", "a"),)


@pytest.mark.parametrize(
    ("own", "other", "refused", "warned"),
    [
        ("1.2.3", "1.2.3", False, False),
        ("1.2.3", "1.2.9", False, False),
        ("1.2.3", "1.3.0", False, True),
        ("2.0.0", "1.9.9", True, False),
        ("1.0.0", "of my own", True, False),
        ("of my own", "1.0.0", True, False),
        ("of my own", "of my own", False, False),
    ],
)
def test_a_patch_may_differ_a_minor_version_is_warned_about_a_major_one_is_refused(
    own: str, other: str, refused: bool, warned: bool
):
    verdict = membership.versions(a_node("a", version=own), [a_node("b", version=other)])
    assert (bool(verdict.refused), bool(verdict.warning)) == (refused, warned)
    assert all(text == "" or (own in text and other in text and "node b" in text) for text in _texts(verdict))


def _texts(verdict: Verdict) -> tuple[str, str]:
    return verdict.refused, verdict.warning


def test_a_clock_is_held_against_the_brokers_and_against_every_other_nodes():
    def node(name: str, ahead_ms: float | None) -> NodeView:
        return a_node(name, facts={} if ahead_ms is None else {"clock_ahead_ms": str(ahead_ms)})

    own = node("a", 100)
    assert membership.wrong_clock(own, [own, node("b", -200), node("c", None)], 5) == ""
    assert "8.0 s behind the broker's" in membership.wrong_clock(node("a", -8_000), [], 5)
    others = [node("b", -3_000), node("c", -4_900)]
    assert membership.wrong_clock(node("a", 1_000), others, 5).endswith("5.9 s ahead of that of node c")
    assert membership.wrong_clock(node("a", None), others, 5) == ""
    assert membership.clock_ahead_ms(a_node("a", facts={"clock_ahead_ms": "late"})) is None


def test_a_partition_has_no_owner_when_only_nodes_that_are_not_reached_have_it():
    def node(name: str, *partitions: str) -> NodeView:
        return a_node(name, processes=(ProcessView("worker", 1, seats=(GroupSeat("g", "m", 1, partitions),)),))

    views = [node("a", "t-0", "t-1"), node("b", "t-2", "no partition")]
    assert membership.ownerless(views, (), {"t": 3}) == {}
    assert membership.ownerless(views, ("b",), {"t": 4}) == {"g": ("t-2", "t-3")}
    assert membership.ownerless(views, ("b",), {}) == {}, "how many there are is not known"


def test_who_is_not_reached_is_no_heir():
    def node(name: str, group: str) -> NodeView:
        return a_node(name, processes=(ProcessView("worker", 1, seats=(GroupSeat(group, f"m-{name}", 1, ()),)),))

    roster = roster_of(node("own", "g"), node("a", "g"), node("b", "other"))
    seats = [GroupSeat("g", "m-own", 1, ())]
    assert membership.has_heir(roster, seats, {"own"})
    assert not membership.has_heir(roster, seats, {"own", "a"}), "it is dead, and nobody has forgotten it yet"
    assert not membership.has_heir(roster, [GroupSeat("none", "m-own", 1, ())], {"own"})
