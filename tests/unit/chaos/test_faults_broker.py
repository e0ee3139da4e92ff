"""Laws of faults of brokers: a new leader is waited for where the victim led, and nowhere else."""

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from app.chaos.driver import Driver
from app.chaos.faults_broker import kill
from app.chaos.rig import Shape
from app.chaos.scene import Scene
from app.chaos.schedule import Planned

BROKERS = (1, 2, 3)


class Brokers:
    """Three brokers; what a killed one led is led by another at once."""

    def __init__(self, leaders: list[int]) -> None:
        self.leaders = leaders
        self.asked_after: set[int] = set()
        # Beyond the highest number that a process can have.
        self.pids = {broker: 2**22 + broker for broker in BROKERS}

    async def leader(self, _: str, partition: int) -> int:
        if len(self.pids) < len(BROKERS):
            self.asked_after.add(partition)
        return self.leaders[partition]

    def kill(self, broker: int) -> None:
        del self.pids[broker]
        self.leaders = [each if each != broker else next(iter(self.pids)) for each in self.leaders]

    async def start_node(self, broker: int) -> None:
        self.pids[broker] = 2**22 + broker


@given(
    st.lists(st.sampled_from(BROKERS), min_size=4, max_size=4), st.sampled_from(BROKERS), st.sampled_from((0.0, 0.6))
)
async def test_a_new_leader_is_waited_for_where_the_victim_led(leaders: list[int], victim: int, pick: float) -> None:
    kafka = Brokers(leaders)
    rig = SimpleNamespace(kafka=kafka, shape=Shape(partitions=len(leaders)))

    async def the_victim(_: Scene, __: Planned) -> int:
        return victim

    scene = Scene(cast("Any", rig), cast("Driver", None))
    proof = (await kill(the_victim, scene, Planned(0, 0.0, "broker-kill-controller", 0.0, pick))).proof
    led = {at for at, leader in enumerate(leaders) if leader == victim}
    if led:
        assert proof["led"] in led
        assert proof["new_leader_s"] is not None
        assert kafka.asked_after == {proof["led"]}
    else:
        assert (proof["led"], proof["new_leader_s"]) == (None, None)
        assert not kafka.asked_after
