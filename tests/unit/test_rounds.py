"""Laws of a stage's rounds: what is done before the partitions that stay go on, and what after."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.adapters.assignor import Seat
from app.errors import BrokerUnavailable
from app.roles import rounds
from app.roles.rounds import Rounds
from tests.helpers.kafka import until

TOPIC = "input"


class Told:
    """Stage, tables and lease in one, which note what they are told."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.failed: list[BaseException] = []
        self.takeovers = SimpleNamespace(goes_round=lambda: None, seated=lambda *_: None)
        self.broken: Exception | None = None
        self.name = "stage"
        self.going = asyncio.Event()
        self.going.set()

    async def revoked(self, partitions: Any) -> None:
        self.heard.append(f"revoked {list(partitions)}")

    async def assigned(self, partitions: Any, *, kept: bool) -> None:
        await self.going.wait()
        self.heard.append(f"assigned {list(partitions)} {kept}")

    async def let_go(self) -> None:
        await asyncio.sleep(0)
        self.heard.append("let go")

    def seated(self, standbys: Any, owned: Any) -> None:
        if self.broken is not None:
            raise self.broken
        self.heard.append(f"seated {list(standbys)} {list(owned)}")

    def fail(self, error: BaseException) -> None:
        self.failed.append(error)

    def held(self) -> bool:
        return True

    def renew(self) -> None:
        pass


class Scene:
    def __init__(self) -> None:
        self.told = Told()
        told = cast(Any, self.told)
        self.app = cast(Any, SimpleNamespace(consumer_generation_id=1, seat=Seat((2,)), should_stop=False))
        self.app.may_flow = asyncio.Event()
        self.rounds = Rounds(self.app, TOPIC, told, told, told)

    async def assigned(self, *partitions: int) -> None:
        where = [SimpleNamespace(topic=TOPIC, partition=each) for each in partitions]
        await self.rounds.on_assigned(None, [*where, SimpleNamespace(topic="another", partition=9)])

    async def handed_back(self, *partitions: int) -> None:
        await self.rounds.hand_back([SimpleNamespace(topic=TOPIC, partition=each) for each in partitions])


async def test_folders_are_closed_and_opened_after_the_partitions_that_stay_go_on() -> None:
    scene = Scene()
    await scene.assigned(0, 1)
    assert scene.told.heard == ["assigned [0, 1] False"]
    scene.rounds.goes_on()
    await until(lambda: len(scene.told.heard) == 3, "what waited is done")
    assert scene.told.heard[1:] == ["let go", "seated [2] [0, 1]"]


async def test_no_record_may_flow_from_the_hand_back_until_the_stage_has_its_partitions() -> None:
    scene = Scene()
    await scene.handed_back()
    scene.told.going.clear()
    assigning = asyncio.create_task(scene.assigned(0))
    await asyncio.sleep(0)
    assert not scene.app.may_flow.is_set()
    scene.told.going.set()
    await assigning
    assert scene.app.may_flow.is_set()


@pytest.mark.parametrize("goes_on", [True, False], ids=["under way", "cut short"])
async def test_next_round_begins_once_what_the_one_before_left_is_done(goes_on: bool) -> None:
    scene = Scene()
    await scene.assigned(0)
    if goes_on:
        scene.rounds.goes_on()
    await scene.handed_back(0)
    assert scene.told.heard[1:] == ["let go", "seated [2] [0]", "revoked [0]"]
    await scene.assigned(0)
    assert scene.told.heard.count("seated [2] [0]") == 1


@pytest.mark.parametrize(("generation", "kept"), [(2, True), (3, False)])
async def test_partitions_go_on_only_where_no_generation_lies_between(generation: int, kept: bool) -> None:
    scene = Scene()
    await scene.assigned(0)
    scene.app.consumer_generation_id = generation
    await scene.assigned(0)
    assert scene.told.heard[-1] == f"assigned [0] {kept}"


async def test_what_fails_after_a_round_fails_the_stage() -> None:
    scene = Scene()
    scene.told.broken = ValueError("no folder")
    await scene.assigned(0)
    scene.rounds.goes_on()
    await until(lambda: bool(scene.told.failed), "the stage hears of it")
    assert scene.told.failed == [scene.told.broken]


async def test_nothing_is_opened_once_the_app_has_stopped() -> None:
    scene = Scene()
    await scene.assigned(0)
    scene.app.should_stop = True
    await scene.handed_back(0)
    assert not any(each.startswith("seated") for each in scene.told.heard)


# ---- before the group is joined ----


class Waiting:
    """What a process that comes back sees: its standbys, and whether the group has members."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *members: bool | Exception) -> None:
        self.asked = 0
        self.behind: dict[int, int | None] = {0: None, 1: None}
        self.members = members
        monkeypatch.setattr(rounds, "has_members", self._has_members)
        monkeypatch.setattr(rounds, "MEMBERS_LOOK_S", 0.0)
        monkeypatch.setattr(rounds, "CATCH_UP_LOOK_S", 0.001)
        self.tables = cast(Any, SimpleNamespace(following=None, are_near=self._are_near))

    def _are_near(self, partitions: Any) -> bool:
        return all(self.behind[each] == 0 for each in partitions)

    async def _has_members(self, *_: Any) -> bool:
        answer = self.members[min(self.asked, len(self.members) - 1)]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def caught_up(self) -> None:
        self.tables.following = asyncio.create_task(self._follow())
        self.tables.standbys = SimpleNamespace(partitions=tuple(self.behind), behind=lambda each: self.behind[each])
        context = cast(Any, SimpleNamespace(bootstrap="", settings=SimpleNamespace(kafka=None)))
        app = cast(Any, SimpleNamespace(conf=SimpleNamespace(id="group")))
        try:
            await asyncio.wait_for(rounds.catch_up(context, app, self.tables), 10)
        finally:
            self.tables.following.cancel()
            await asyncio.gather(self.tables.following, return_exceptions=True)

    async def _follow(self) -> None:
        await asyncio.Event().wait()


async def test_who_has_nothing_on_the_disk_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Waiting(monkeypatch, True)
    scene.behind = {}
    await scene.caught_up()
    assert scene.asked == 0


@pytest.mark.parametrize("answer", [False, BrokerUnavailable("no broker")])
async def test_nobody_is_waited_for_where_nobody_works(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    scene = Waiting(monkeypatch, answer)
    await scene.caught_up()
    assert scene.asked == 1


async def test_a_group_is_joined_once_the_tables_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Waiting(monkeypatch, True)
    joining = asyncio.create_task(scene.caught_up())
    await until(lambda: scene.asked > 3, "it waits")
    assert not joining.done()
    scene.behind = {0: 0, 1: rounds.FAR_RECORDS + 1}
    await joining


async def test_a_group_whose_last_member_goes_meanwhile_is_joined_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Waiting(monkeypatch, True, True, True, False)
    await scene.caught_up()
    assert scene.asked == 4


async def test_what_ends_the_standbys_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Waiting(monkeypatch, True)

    async def broken() -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(scene, "_follow", broken)
    with pytest.raises(ValueError, match="a bug"):
        await scene.caught_up()
