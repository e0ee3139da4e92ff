"""Laws of who owns which partition: each somebody's, evenly, none moved without need, never away from its state."""

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from app.domain.seating import ASK_FIRST_S, ASK_MOST_S, NEAR_RECORDS, Asking, Seated, Seating, seat

PARTITIONS = st.integers(1, 12)
FAR = NEAR_RECORDS + 1


@st.composite
def groups(draw: st.DrawFn) -> tuple[list[Seated], range]:
    """Members as they may join: with old claims, state that is new, old or none, some on one node."""
    partitions = range(draw(PARTITIONS))
    members = []
    for number in range(draw(st.integers(1, 5))):
        held = {p: draw(st.sampled_from((0, 10, FAR, 3 * FAR))) for p in partitions if draw(st.booleans())}
        owned = draw(st.frozensets(st.sampled_from(partitions), max_size=len(partitions)))
        members.append(Seated(f"m{number}", f"node{draw(st.integers(0, 3))}", held, owned))
    return members, partitions


def members_without_state(count: int) -> list[Seated]:
    return [Seated(f"m{number}") for number in range(count)]


@given(groups(), st.integers(0, 3))
def test_each_partition_has_one_owner_that_is_near_and_standbys_that_are_others(group, replicas):
    members, partitions = group
    seating = seat(members, partitions, replicas=replicas)
    assert set(seating.owners) == set(partitions)
    by_id = {member.member_id: member for member in members}
    for partition, owner in seating.owners.items():
        newest = max(member.held.get(partition, 0) for member in members)
        assert newest - by_id[owner].held.get(partition, 0) <= NEAR_RECORDS
        standbys = seating.standbys[partition]
        assert owner not in standbys
        assert len(set(standbys)) == len(standbys)
        extra = len(seating.warming.get(partition, ()))
        assert min(replicas, len(members) - 1) <= len(standbys) <= replicas + extra


@given(groups(), st.integers(0, 2), st.randoms())
def test_the_order_in_which_members_are_named_changes_nothing(group, replicas, random):
    members, partitions = group
    mixed = random.sample(members, len(members))
    assert seat(mixed, partitions, replicas=replicas) == seat(members, partitions, replicas=replicas)


@given(st.integers(1, 6), PARTITIONS)
def test_without_state_they_are_spread_evenly_and_a_second_round_moves_nothing(count, partitions):
    members = members_without_state(count)
    first = seat(members, range(partitions))
    counts = Counter(first.owners.values())
    assert max(counts.values()) - min(counts.get(member.member_id, 0) for member in members) <= 1
    assert seat(after(members, first), range(partitions)).owners == first.owners


@given(st.integers(2, 6), PARTITIONS)
def test_when_one_dies_only_its_partitions_move(count, partitions):
    members = members_without_state(count)
    before = seat(members, range(partitions))
    left = seat(after(members, before)[1:], range(partitions))
    for partition, owner in before.owners.items():
        if owner != "m0":
            assert left.owners[partition] == owner


@given(PARTITIONS, st.integers(2, 5))
def test_the_partitions_of_the_dead_go_to_those_who_kept_them_warm(partitions, count):
    members = members_without_state(count)
    before = seat(members, range(partitions), replicas=1)
    aged = []
    for member in members:
        owned, kept = before.owned_by(member.member_id), before.kept_by(member.member_id)
        held = dict.fromkeys([*owned, *kept], FAR * 9)
        aged.append(Seated(member.member_id, member.node, held, frozenset(owned)))
    left = seat(aged[1:], range(partitions), replicas=1)
    for partition in before.owned_by("m0"):
        assert left.owners[partition] in before.standbys[partition]


@given(PARTITIONS)
def test_a_newcomer_gets_its_share_only_once_it_is_warm_and_then_at_once(partitions):
    old = Seated("old", "a", dict.fromkeys(range(partitions), FAR * 9), frozenset(range(partitions)))
    cold = seat([old, Seated("new", "b")], range(partitions), replicas=1)
    assert set(cold.owners.values()) == {"old"}
    wanted = cold.awaited_from("new")
    assert len(wanted) == partitions // 2
    assert set(wanted) <= set(cold.kept_by("new"))
    warm = seat([old, Seated("new", "b", dict.fromkeys(cold.kept_by("new"), FAR * 9))], range(partitions), replicas=1)
    assert len(warm.owned_by("new")) == partitions // 2
    assert warm.warming == {}


@given(st.integers(3, 8))
def test_a_standby_is_on_another_node_where_there_is_one(partitions):
    members = [Seated("a1", "a"), Seated("a2", "a"), Seated("b1", "b")]
    nodes = {"a1": "a", "a2": "a", "b1": "b"}
    seating = seat(members, range(partitions), replicas=1)
    for partition, owner in seating.owners.items():
        assert nodes[seating.standbys[partition][0]] != nodes[owner]


def test_many_topics_of_one_partition_do_not_all_go_to_one_member():
    members, load, owners = members_without_state(3), dict.fromkeys(("m0", "m1", "m2"), 0), []
    for _ in range(6):
        owner = seat(members, [0], load=load).owners[0]
        load[owner] += 1
        owners.append(owner)
    assert Counter(owners) == {"m0": 2, "m1": 2, "m2": 2}


def after(members: list[Seated], seating: Seating) -> list[Seated]:
    """The members as they join the next round."""
    return [Seated(m.member_id, m.node, m.held, frozenset(seating.owned_by(m.member_id))) for m in members]


@given(st.lists(st.tuples(st.floats(0.05, 20.0), st.booleans(), st.booleans()), min_size=1, max_size=300))
def test_who_asks_for_rounds_leaves_each_alone_for_a_while_and_longer_and_longer(steps):
    asking, now_s, generation, since_s, asked = Asking(), 0.0, 1, 0.0, list[tuple[float, float, int]]()
    for pause_s, ready, another in steps:
        now_s += pause_s
        if another:
            generation, since_s = generation + 1, now_s
        if asking.may(generation, now_s, ready=ready):
            assert ready
            asked.append((now_s, now_s - since_s, generation))
    assert len({generation for _, _, generation in asked}) == len(asked), "once a round"
    for (before_s, _, _), (at_s, alone_s, _) in pairwise(asked):
        assert alone_s >= ASK_FIRST_S
        if at_s - before_s < 2 * ASK_MOST_S:
            assert alone_s >= min(2 * ASK_FIRST_S, ASK_MOST_S)
    for first, last in zip(asked, asked[8:], strict=False):
        assert last[0] - first[0] >= 2 * ASK_MOST_S, "nine in a row take the longest pause more than once"


@given(st.floats(1.0, ASK_MOST_S / 2), st.integers(2, 4))
def test_members_that_take_from_one_another_come_to_rest_for_as_long_as_opening_takes(opening_s, members):
    """The worst case: whoever has asked is given everything, and the others ask for it as soon as they may."""
    askings, now_s, rounds, since_s, longest_s = [Asking() for _ in range(members)], 0.0, 1, 0.0, 0.0
    while now_s < 1_000 and longest_s < opening_s:
        now_s += 0.25
        owner = rounds % members
        if any(each.may(rounds, now_s, ready=number != owner) for number, each in enumerate(askings)):
            rounds, since_s = rounds + 1, now_s
        longest_s = max(longest_s, now_s - since_s)
    assert longest_s >= opening_s


def test_after_a_long_calm_the_first_ask_is_quick_again():
    asking = Asking()
    asked = [at for at in range(4_000) if asking.may(at // 100, at / 4, ready=at < 2_000)]
    calm = asked[-1] / 4 + 2 * ASK_MOST_S
    assert not asking.may(1_000, calm, ready=True)
    assert asking.may(1_000, calm + ASK_FIRST_S, ready=True)
