"""What the API says of the cluster is what was heard of its nodes and what the broker knows."""

from app.adapters.group_states import GroupLag
from app.domain import membership
from app.domain.cluster import GroupSeat, NodeView, ProcessView
from app.domain.membership import Roster
from app.http.cluster import ClusterStats, stats

EPOCH = 1_763_689_000_000
GROUP = "headrace-workflow"


def a_node(node_id: str, *partitions: int, facts: dict[str, str] | None = None, epoch: int = EPOCH) -> NodeView:
    seat = GroupSeat(GROUP, f"member-{node_id}", 1, tuple(f"workflow.commands-{number}" for number in partitions))
    process = ProcessView("coordinator", 7, ready=True, seats=(seat,))
    return NodeView(node_id, epoch, "0.1.0", "ready", processes=(process,), facts=facts or {})


def roster_of(*views: NodeView) -> Roster:
    roster = Roster()
    for at, view in enumerate(views):
        roster = membership.take(roster, view.node_id, view, float(at))
    return roster


def test_a_cluster_whose_partitions_all_have_owners():
    roster = roster_of(a_node("a", 0, 1), a_node("b", 2, 3, epoch=EPOCH + 1, facts={"clock_ahead_ms": "-12"}))
    behind = {"workflow.commands-0": 4, "workflow.commands-1": 2, "workflow.commands-3": 1}
    found = stats(roster, {GROUP: GroupLag({"workflow.commands": 4}, behind)}, 20.0, 3.0)
    assert ClusterStats.model_validate(found).model_dump() == found
    assert (found["leader"], found["members"], found["unreachable"], found["ownerless"]) == ("a", 2, [], 0)
    assert found["status"] == "Up"
    assert [node["lag_records"] for node in found["nodes"]] == [6, 1]
    assert found["versions"] == {"0.1.0": 2}
    assert [(node["leads"], node["partitions"], node["heard_ms_ago"]) for node in found["nodes"]] == [
        (True, 2, 3000),
        (False, 2, 2000),
    ]
    assert found["nodes"][1]["clock_ahead_ms"] == -12
    assert found["groups"] == [{"group": GROUP, "partitions": 4, "owned": 4, "ownerless": [], "lag_records": 7}]


def test_partitions_of_a_node_that_is_not_reached_have_no_owner():
    roster = roster_of(a_node("b", 2, 3), a_node("a", 0, 1, facts={"unreachable": "b"}))
    found = stats(roster, {GROUP: GroupLag({"workflow.commands": 4})}, 20.0, 3.0)
    assert (found["status"], found["unreachable"]) == ("Degraded", ["b"])
    assert [node["lag_records"] for node in found["nodes"]] == [None, None]
    assert [node["state"] for node in found["nodes"]] == ["ready", "unreachable"]
    assert found["ownerless"] == 2
    assert found["groups"][0]["ownerless"] == ["workflow.commands-2", "workflow.commands-3"]
    assert found["groups"][0]["lag_records"] is None


def test_without_a_word_of_the_broker_nothing_is_said_to_be_ownerless():
    found = stats(roster_of(a_node("a", 0)), {}, 20.0, 3.0)
    assert found["ownerless"] == 0
    assert found["groups"] == [{"group": GROUP, "partitions": None, "owned": 1, "ownerless": [], "lag_records": None}]


def test_an_empty_cluster_has_no_leader():
    found = stats(Roster(), {}, 20.0, 0.0)
    assert ClusterStats.model_validate(found).leader is None
    assert found["status"] == "Down"


def test_a_node_without_partitions_has_nothing_waiting():
    (node,) = stats(roster_of(a_node("a")), {}, 20.0, 3.0)["nodes"]
    assert node["lag_records"] == 0


def test_nodes_that_join_or_leave_in_order_take_nothing_from_a_cluster_that_is_up():
    assert membership.status({"a": "ready", "b": "joining", "c": "leaving"}, 0) == "Up"
    assert membership.status({"a": "ready"}, 1) == "Degraded"
    assert membership.status({"a": "joining", "b": "unreachable"}, 1) == "Down"
