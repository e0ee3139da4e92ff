"""Laws of `headrace trigger` and `headrace executions` against the real API; the engine's part is written by hand."""

import asyncio
import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.cli.trigger import read_input
from app.domain.workflow.events import Event
from app.errors import UserError
from app.workflow_wire import decode_command
from config.topics import WORKFLOW_COMMANDS
from tests.helpers.cli import Answer, refused, said
from tests.helpers.executions import T0_MS, ended, failed, run, scheduled, started, succeeded, whole
from tests.helpers.gateway import Node, node, until
from tests.helpers.kafka import values_of

pytestmark = pytest.mark.broker

FLOW = "press-overheat"
DEFINITION: dict[str, Any] = {
    "id": FLOW,
    "tasks": {"one": {"type": "transform.cel", "with": {"map": "row"}}, "ask": {"type": "approval", "needs": ["one"]}},
}


@pytest.fixture(scope="module")
def api(module_broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with node(module_broker, tmp_path_factory.mktemp("one")) as made:
        made.until_ready()
        made.register(DEFINITION)
        yield made


class Cli:
    """The command line against one API."""

    def __init__(self, api: Node, capsys: pytest.CaptureFixture[str]) -> None:
        self._api = api
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Answer:
        return said(self._capsys, *arguments, "--url", self._api.url)

    def refused(self, *arguments: str, code: int = 2) -> str:
        return refused(self._capsys, *arguments, "--url", self._api.url, code=code)

    def tell(self, execution_id: str, *runs: bytes) -> str:
        """Write events; return when the index has them."""
        self._api.tell(*((execution_id, each) for each in runs))
        wanted = sum(len(json.loads(each)["events"]) for each in runs)

        def known() -> bool:
            with self._api.client() as client:
                return bool(client.get(f"/api/v1/executions/{execution_id}").json().get("events") == wanted)

        until(known, execution_id)
        return execution_id


@pytest.fixture
def cli(api: Node, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(api, capsys)


def _id() -> str:
    return str(uuid.uuid4())


def _commands(bootstrap: str) -> list[Any]:
    return [decode_command(value) for value in asyncio.run(values_of(bootstrap, WORKFLOW_COMMANDS.name))]


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ([], {}),
        (["[1, 2]"], [1, 2]),
        (
            ["device=press-1", "limit=3", "deep={}", "text=a=b"],
            {"device": "press-1", "limit": 3, "deep": {}, "text": "a=b"},
        ),
        (['{"a": 1, "b": 2}', "b=3"], {"a": 1, "b": 3}),
    ],
)
def test_an_input_is_a_document_or_fields(given: list[str], value: Any) -> None:
    assert read_input(given) == value


@pytest.mark.parametrize("given", [["{"], ["1", "2"], ["[1]", "a=1"], ["@nowhere.json"]])
def test_an_input_that_cannot_be_read_is_refused(given: list[str]) -> None:
    with pytest.raises(UserError):
        read_input(given)


def test_a_start_says_its_execution(cli: Cli, module_broker: str, tmp_path: Path) -> None:
    (tmp_path / "input.json").write_text('{"device_id": "press-1"}')
    found = cli(
        "trigger", FLOW, "-i", f"@{tmp_path}/input.json", "-i", "n=7", "--key", "k", "--priority", "-2", "--json"
    )
    execution_id = found.json["execution_id"]
    [start] = [each for each in _commands(module_broker) if each.execution_id == execution_id]
    assert (start.input, start.key, start.priority) == ({"device_id": "press-1", "n": 7}, "k", -2)
    plain = cli("trigger", FLOW)
    assert (plain.code, plain.out.split()[1:2]) == (0, [FLOW])
    again = [cli("trigger", FLOW, "--idempotency-key", "x", "--json").json["execution_id"] for _ in range(2)]
    assert again[0] == again[1]
    assert "nothing" in cli.refused("trigger", "nothing")
    assert "no version" in cli.refused("trigger", FLOW, "--version", "0000")


@pytest.mark.parametrize(("status", "code"), [("succeeded", 0), ("failed", 1)])
def test_waiting_ends_with_the_execution_and_its_exit_code(api: Node, cli: Cli, status: Any, code: int) -> None:
    key = _id()
    execution_id = cli("trigger", FLOW, "--idempotency-key", key, "--json").json["execution_id"]
    assert api.gateway is not None
    watchers = api.gateway.access.index._watchers

    def end() -> None:
        until(lambda: execution_id in watchers, "somebody waits")
        api.tell(*((execution_id, each) for each in whole(execution_id, status)))

    thread = threading.Thread(target=end)
    thread.start()
    answer = cli("trigger", FLOW, "--idempotency-key", key, "--wait")
    thread.join()
    assert (answer.code, status in answer.out) == (code, True)
    late = cli("trigger", FLOW, "--wait", "--timeout", "0.1", "--json")
    assert (late.code, late.json["status"]) == (1, "queued")


def test_executions_are_listed_shown_and_told(cli: Cli) -> None:
    good, bad = _id(), _id()
    flow = f"flow-{good}"
    cli.tell(good, run(good, started(given={"n": 1}), succeeded(1), ended(2, result=[1]), workflow=flow))
    runs: list[Event] = [
        started(T0_MS + 5),
        scheduled(1),
        failed(2, retry_at=T0_MS),
        scheduled(3, attempt=2),
        failed(4, attempt=2),
    ]
    cli.tell(bad, run(bad, *runs, ended(5, "failed"), workflow=flow))
    table = cli("executions", "list", "-w", flow)
    rows = [line.split() for line in table.out.splitlines() if "flow-" in line]
    assert [(row[0], row[2]) for row in rows] == [(bad, "failed"), (good, "succeeded")]
    assert "\x1b" not in table.out, "no colour in a pipe"
    only = cli("executions", "list", "-w", flow, "-s", "failed", "-s", "paused", "--json").json
    assert ([each["execution_id"] for each in only["items"]], only["more"]) == ([bad], False)
    assert cli("executions", "list", "-w", flow, "-n", "1", "--json").json["more"] is True
    assert cli("executions", "list", "-w", "nothing").out == "No execution matches.\n"
    shown = cli("executions", "show", bad)
    for word in ("failed", "one", "HttpStatus: the receiver answered 500", "2"):
        assert word in shown.out
    assert cli("executions", "show", good, "--json").json["result"] == [1]
    told = cli("executions", "history", bad)
    assert [line.split()[0] for line in told.out.splitlines() if line[:4].strip().isdigit()] == [*"012345"]
    page = cli("executions", "history", bad, "--after", "1", "-n", "2", "--json").json
    assert ([each["seq"] for each in page["events"]], page["more"]) == ([2, 3], True)
    assert "--after 3" in cli("executions", "history", bad, "--after", "1", "-n", "2").out
    for command in ("show", "history", "watch"):
        assert "is known" in cli.refused("executions", command, _id())


def test_watching_shows_events_as_they_come_until_the_end(api: Node, cli: Cli) -> None:
    execution_id = _id()
    cli.tell(execution_id, run(execution_id, started(), scheduled(1)))
    assert api.gateway is not None
    watchers = api.gateway.access.index._watchers

    def end() -> None:
        until(lambda: execution_id in watchers, "somebody watches")
        api.tell((execution_id, run(execution_id, failed(2), ended(3, "failed"))))

    thread = threading.Thread(target=end)
    thread.start()
    answer = cli("executions", "watch", execution_id, "--json")
    thread.join()
    assert [json.loads(line)["seq"] for line in answer.out.splitlines()] == [0, 1, 2, 3]
    assert answer.code == 1
    again = cli("executions", "watch", execution_id)
    assert again.out.splitlines()[-2].split()[3] == "failed"


def test_watching_goes_on_when_the_api_ends_the_stream_before_the_execution_ends(api: Node, cli: Cli) -> None:
    execution_id = _id()
    cli.tell(execution_id, run(execution_id, started(), scheduled(1)))
    assert api.gateway is not None
    gateway, watchers = api.gateway, api.gateway.access.index._watchers

    def end() -> None:
        until(lambda: watchers.get(execution_id), "somebody watches")
        [first] = watchers[execution_id]
        assert gateway._streams is not None
        api._loop.call_soon_threadsafe(gateway._streams.close)
        until(lambda: first not in watchers.get(execution_id, ()), "that stream has ended")
        api.tell((execution_id, run(execution_id, failed(2), ended(3, "failed"))))

    thread = threading.Thread(target=end)
    thread.start()
    answer = cli("executions", "watch", execution_id, "--json")
    thread.join()
    assert [json.loads(line)["seq"] for line in answer.out.splitlines()] == [0, 1, 2, 3], answer
    assert answer.code == 1


def test_orders_go_to_one_or_to_all_that_match(cli: Cli, module_broker: str) -> None:
    flow = f"flow-{_id()}"
    ids = [_id() for _ in range(3)]
    for each in ids:
        cli.tell(each, run(each, started(), ended(1, "failed"), workflow=flow))
    live = _id()
    cli.tell(live, run(live, started()))
    assert cli("executions", "retry", ids[0], "--from", "one").out == "retry sent to 1 execution\n"
    assert "applies to" in cli.refused("executions", "cancel", ids[0])
    plan = cli("executions", "redrive", "-w", flow, "--dry-run", "--json").json
    assert (plan["matched"], plan["sent"]) == (3, 0)
    assert "--yes" in cli.refused("executions", "redrive", "-w", flow)
    assert cli("executions", "redrive", "-w", flow, "--yes").out == "retry sent to 3 executions\n"
    assert cli("executions", "cancel", *ids, live, "--reason", "wrong plant").out == "cancel sent to 1 execution\n"
    assert cli("executions", "pause", live).code == 0
    assert cli("executions", "resume", "-w", flow, "-y").out == "Nothing to resume.\n"
    assert cli("executions", "signal", live, "ask", "-p", "approved=true", "--json").json["command_id"]
    for wrong in (("cancel",), ("cancel", live, "--all"), ("redrive",), ("retry", "-w", flow, "-s", "running", "-y")):
        cli.refused("executions", *wrong)
    sent = [each for each in _commands(module_broker) if each.execution_id in {*ids, live}]
    told = {(each.type, each.execution_id) for each in sent}
    assert told == {("retry", each) for each in ids} | {(name, live) for name in ("cancel", "pause", "signal")}
    assert [each.reason for each in sent if each.type == "cancel"] == ["wrong plant"]
    assert [each.payload for each in sent if each.type == "signal"] == [{"approved": True}]


def test_without_an_api_the_exit_code_is_4(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (("trigger", FLOW), ("executions", "list"), ("executions", "watch", "x")):
        refused(capsys, *command, "--url", "http://127.0.0.1:9", code=4)
