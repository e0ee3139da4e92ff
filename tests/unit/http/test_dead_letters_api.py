"""Laws of the engine's dead letters over HTTP: found by filter, sent back once, refused when too much is meant."""

import base64
from typing import Any

import orjson
import pytest

from app.http.dead_letters import DeadLetterView
from app.workflow_wire import decode_command
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_DEADLETTER
from tests.helpers.time_api import Api

AT = 1_763_689_000_000
REFUSED = b'{"type": "dance"}'


def put(api: Api, document: dict[str, Any], key: bytes = b"key") -> None:
    api.sent.shelf.put(WORKFLOW_DEADLETTER.name, key, orjson.dumps(document))


def execution(name: str, workflow: str = "press-overheat", at: int = AT) -> dict[str, Any]:
    error = {"type": "HttpStatus", "message": "the receiver answered 500"}
    return {
        "kind": "execution",
        "execution_id": name,
        "workflow": workflow,
        "version": "v1",
        "status": "failed",
        "task": "notify",
        "error": error,
        "at": at,
    }


def refused(kind: str = "command", **more: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "reason": "unreadable",
        "detail": "no",
        "value": base64.b64encode(REFUSED).decode(),
        "value_bytes": len(REFUSED),
        "topic": WORKFLOW_COMMANDS.name,
        "partition": 3,
        "offset": 7,
        "at": AT + 1,
        **more,
    }


@pytest.fixture
def api() -> Api:
    made = Api()
    put(made, execution("e1"))
    put(made, execution("e2", "other", AT + 5))
    put(made, refused())
    put(made, refused("trigger", workflow="press-overheat", topic="device.signals"))
    put(made, {"no": "letter"})
    return made


async def test_they_are_listed_newest_first_paged_and_filtered(api: Api) -> None:
    first = await api.ask("GET", "dead-letters?limit=3", 200)
    assert [each["id"] for each in first["items"]] == ["0:1", "0:3", "0:2"]
    rest = await api.ask("GET", f"dead-letters?limit=3&cursor={first['next_cursor']}", 200)
    assert ([each["id"] for each in rest["items"]], rest["next_cursor"]) == (["0:0"], None)
    for each in first["items"]:
        DeadLetterView.model_validate(each)
    for query, found in (
        ("kind=execution&workflow=other", ["0:1"]),
        ("reason=HttpStatus", ["0:1", "0:0"]),
        (f"since={AT + 2}", ["0:1"]),
        ("redriven=true", []),
    ):
        assert [each["id"] for each in (await api.ask("GET", f"dead-letters?{query}", 200))["items"]] == found


async def test_one_is_shown_with_what_was_refused(api: Api) -> None:
    shown = await api.ask("GET", "dead-letters/0:2", 200)
    assert (shown["value"], shown["origin"]) == (REFUSED.decode(), "workflow.commands 3:7")
    await api.ask("GET", "dead-letters/0:9", 404)
    await api.ask("GET", "dead-letters/0-9", 422)


async def test_a_redrive_retries_executions_and_repeats_commands_once(api: Api) -> None:
    put(api, execution("e1", at=AT + 9))
    dry = await api.ask("POST", "dead-letters:redrive", json={"all": True, "dry_run": True})
    assert (dry["matched"], dry["executions"], dry["commands"]) == (4, 3, 1)
    assert api.sent.records == []
    done = await api.ask("POST", "dead-letters:redrive", json={"all": True})
    assert (done["executions"], done["commands"], done["gone"]) == (3, 1, 0)
    sent = [record for record in api.sent.records if record.topic == WORKFLOW_COMMANDS.name]
    retried = [decode_command(record.value).execution_id for record in sent if record.value != REFUSED]
    assert sorted(retried) == ["e1", "e2"], "one order for an execution, however many letters it has"
    (again,) = [record for record in sent if record.value == REFUSED]
    assert (again.partition, again.key) == (3, b"key")
    assert (await api.ask("POST", "dead-letters:redrive", json={"all": True}))["matched"] == 0
    listed = await api.ask("GET", "dead-letters?redriven=false", 200)
    assert [each["kind"] for each in listed["items"]] == ["trigger"]


async def test_a_command_of_which_only_the_beginning_was_kept_is_told(api: Api) -> None:
    put(api, refused(value_bytes=10_000_000))
    done = await api.ask("POST", "dead-letters:redrive", json={"ids": ["0:5"]})
    assert (done["matched"], done["commands"], done["gone"]) == (1, 0, 1)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 400, "say all: true"),
        ({"ids": []}, 400, "say all: true"),
        ({"ids": ["0:1"], "workflow": "x"}, 400, "not both"),
        ({"ids": ["x"]}, 400, "partition:offset"),
        ({"kind": "party"}, 422, "kind"),
        ({"since": "soon"}, 400, "since"),
    ],
)
async def test_what_is_not_meant_clearly_is_refused(api: Api, body: object, status: int, said: str) -> None:
    problem = await api.ask("POST", "dead-letters:redrive", status, json=body)
    assert said in str([problem["detail"], problem.get("errors")])
    assert api.sent.records == []
