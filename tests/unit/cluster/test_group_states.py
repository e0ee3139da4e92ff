"""Laws of asking the broker how far groups are: whoever asks, it is asked once, and while it is away not again soon."""

import asyncio
from collections.abc import Mapping

from app.adapters.group_states import REMEMBERED_S, GroupLag, GroupStates
from app.errors import BrokerUnavailable
from config.kafka import KafkaSettings

GROUPS = {"g": frozenset({"t"})}
TWO = {**GROUPS, "h": frozenset({"t"})}


class Broker(GroupStates):
    """Answers from memory by a clock that stands still; keeps what it was asked for."""

    def __init__(self) -> None:
        super().__init__(KafkaSettings(), "127.0.0.1:1", lambda: self.now_s)
        self.now_s = 100.0
        self.is_away = False
        self.asked: list[frozenset[str]] = []
        self.begun = asyncio.Event()

    async def _ask(self, groups: Mapping[str, frozenset[str]]) -> dict[str, GroupLag]:
        self.asked.append(frozenset(groups))
        self.begun.set()
        await asyncio.sleep(0)
        if self.is_away:
            raise BrokerUnavailable
        return {group: GroupLag({"t": 4}, {"t-0": 7}) for group in groups}


async def test_those_who_wait_share_a_question_that_fails() -> None:
    broker = Broker()
    broker.is_away = True
    assert await asyncio.gather(*(broker.of(GROUPS) for _ in range(20))) == [{}] * 20
    assert len(broker.asked) == 1


async def test_after_a_question_that_failed_the_next_is_not_asked_before_its_time() -> None:
    broker = Broker()
    broker.is_away = True
    await broker.of(GROUPS)
    broker.is_away = False
    broker.now_s += REMEMBERED_S / 2
    assert await broker.of(GROUPS) == {}
    broker.now_s += REMEMBERED_S / 2
    assert (await broker.of(GROUPS))["g"].lag == 7
    assert len(broker.asked) == 2


async def test_a_question_whose_asker_has_left_counts_as_failed() -> None:
    broker = Broker()
    asking = asyncio.create_task(broker.of(GROUPS))
    await broker.begun.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert await broker.of(GROUPS) == {}
    assert len(broker.asked) == 1


async def test_a_new_group_is_asked_for_at_once_and_what_is_known_is_not() -> None:
    broker = Broker()
    await broker.of(GROUPS)
    await broker.of(GROUPS)
    assert set(await broker.of(TWO)) == {"g", "h"}
    assert broker.asked == [frozenset("g"), frozenset("gh")]


async def test_without_an_answer_the_counts_of_before_stay_and_the_lag_does_not() -> None:
    broker = Broker()
    await broker.of(GROUPS)
    broker.is_away = True
    broker.now_s += REMEMBERED_S
    assert await broker.of(GROUPS) == {"g": GroupLag({"t": 4})}
