"""Laws of a stage's rounds: what is done before the partitions that stay go on, and what after."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.adapters.assignor import Seat
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

    async def revoked(self, partitions: Any) -> None:
        self.heard.append(f"revoked {list(partitions)}")

    async def assigned(self, partitions: Any, *, kept: bool) -> None:
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
        self.app = cast(Any, SimpleNamespace(consumer_generation_id=1, seat=Seat(standbys=(2,)), should_stop=False))
        self.rounds = Rounds(self.app, TOPIC, told, told, told)

    async def assigned(self, *partitions: int) -> None:
        where = [SimpleNamespace(topic=TOPIC, partition=each) for each in partitions]
        await self.rounds.on_assigned(None, [*where, SimpleNamespace(topic="another", partition=9)])

    async def handed_back(self, *partitions: int) -> None:
        await self.rounds.hand_back([SimpleNamespace(topic=TOPIC, partition=each) for each in partitions])


async def test_folders_are_closed_and_opened_after_the_partitions_that_stay_go_on() -> None:
    scene = Scene()
    await scene.assigned(0, 1)
    assert scene.told.heard == ["let go", "assigned [0, 1] False"]
    scene.rounds.goes_on()
    await until(lambda: len(scene.told.heard) == 4, "what waited is done")
    assert scene.told.heard[2:] == ["let go", "seated [2] [0, 1]"]


@pytest.mark.parametrize("goes_on", [True, False], ids=["under way", "cut short"])
async def test_next_round_begins_once_what_the_one_before_left_is_done(goes_on: bool) -> None:
    scene = Scene()
    await scene.assigned(0)
    if goes_on:
        scene.rounds.goes_on()
    await scene.handed_back(0)
    assert scene.told.heard[2:] == ["let go", "seated [2] [0]", "revoked [0]"]
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
