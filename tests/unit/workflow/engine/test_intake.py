"""Laws of what is read of `workflow.commands`: each execution and each entity is told only where it lives."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.engine_intake import Unreadable, read
from app.domain.workflow.placement import partition_of
from app.domain.workflow.turn import LIMITS
from app.workflow_wire import encode_command
from config.topics import WORKFLOW_DEADLETTER
from tests.helpers.engine import started, task, workflow
from tests.helpers.streams import Record
from tests.unit.workflow.engine.world import World


@pytest.mark.parametrize("partition", [0, 2])
@given(name=st.one_of(st.uuids().map(str), st.from_regex(r"[a-z]{1,12}(-p[0-5])?(-[0-5]-[0-9])?", fullmatch=True)))
def test_a_command_is_read_only_on_the_partition_of_its_execution(partition: int, name: str) -> None:
    for key, command in ((name, started("line", name)), (f"schedule:{name}", None)):
        value = b'{"type": "schedule_delete"}' if command is None else encode_command(command)
        (taken,) = read([Record("workflow.commands", partition, 0, 1, key.encode(), value)], LIMITS, 3)
        is_refused = isinstance(taken.said, Unreadable) and taken.said.reason == "wrong_partition"
        assert is_refused == (partition_of(key, 3) != partition)


async def test_a_command_on_a_partition_of_others_is_a_dead_letter_and_begins_nothing() -> None:
    world = World(workflow("line", task("a")), partitions=4)
    await world.open()
    names = [f"e{number}" for number in range(12)]
    world.tell(*(started("line", name) for name in names))
    await world.drain()
    here = {name for name in names if partition_of(name, 4) == 0}
    assert {name for name in names if world.state(name) is not None} == here
    letters = [orjson.loads(record.value or b"") for record in world.log.topics[WORKFLOW_DEADLETTER.name]]
    assert {letter["reason"] for letter in letters} == {"wrong_partition"}
    assert len(letters) == len(names) - len(here)
    assert "of 4, and this came on 0" in letters[0]["detail"]
