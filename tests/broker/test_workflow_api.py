"""Laws of the workflow API on a real broker; the engine's part is written to its topics by hand."""

import asyncio
import fcntl
import json
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.adapters.execution_store import ExecutionStore, Position
from app.definition_wire import version_of
from app.domain.workflow.events import ApprovalRequested, Status
from app.workflow_wire import decode_command
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_EVENTS
from tests.helpers.executions import T0_MS, ended, run, scheduled, started, succeeded, whole
from tests.helpers.gateway import Node, node, until
from tests.helpers.kafka import values_of

pytestmark = pytest.mark.broker

FLOW = "press-overheat"
DEFINITION: dict[str, Any] = {
    "id": FLOW,
    "tasks": {
        "one": {"type": "transform.cel", "with": {"map": "row"}},
        "ask": {"type": "approval", "needs": ["one"], "with": {"signal": "approve"}},
    },
}


@pytest.fixture(scope="module")
def api(module_broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with node(module_broker, tmp_path_factory.mktemp("one")) as made:
        made.until_ready()
        made.register(DEFINITION)
        yield made


@pytest.fixture
def http(api: Node) -> Iterator[httpx.Client]:
    with api.client() as client:
        yield client


def _id() -> str:
    return str(uuid.uuid4())


def _start(http: httpx.Client, **kwargs: Any) -> str:
    answer = http.post(f"/api/v1/workflows/{FLOW}/execute", **kwargs)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["execution_id"])


def _tell(api: Node, execution_id: str, *runs: bytes) -> None:
    api.tell(*((execution_id, each) for each in runs))


def _shown(http: httpx.Client, execution_id: str, status: str) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        body: dict[str, Any] = http.get(f"/api/v1/executions/{execution_id}").json()
        return body if body.get("status") == status else None

    return until(found, f"{execution_id} is {status}")


def test_an_accepted_execution_is_read_at_once_from_every_node(api: Node, module_broker: str, tmp_path: Path) -> None:
    with node(module_broker, tmp_path) as other, api.client() as here, other.client() as there:
        other.until_ready()
        for number in range(30):
            execution_id = _start(here, json={"number": number})
            for client in (there, here):
                answer = client.get(f"/api/v1/executions/{execution_id}")
                assert (answer.status_code, answer.json()["status"]) == (200, "queued"), answer.text
        key = {"Idempotency-Key": "order-1"}
        first = _start(here, headers=key)
        assert there.get(f"/api/v1/executions/{first}").status_code == 200
        again = there.post(f"/workflows/{FLOW}/execute", headers=key)
        assert (again.json()["execution_id"], again.headers["idempotent-replayed"]) == (first, "true")
    sent = _sent(module_broker)
    assert [each.execution_id for each in sent].count(first) == 1


def test_an_unknown_execution_is_404_and_a_nonsense_one_400(http: httpx.Client) -> None:
    for path in ("", "/history", "/stream"):
        answer = http.get(f"/api/v1/executions/{_id()}{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path
    assert http.get("/api/v1/executions/no%20id").status_code == 400
    assert http.post(f"/api/v1/executions/{_id()}/cancel").status_code == 404


def test_a_feed_that_stands_still_makes_503_and_never_a_wrong_404(api: Node, http: httpx.Client) -> None:
    assert api.gateway is not None
    pid = until(lambda: api.gateway and api.gateway.access.index.pid, "a feed")
    os.kill(pid, signal.SIGSTOP)
    try:
        execution_id = _start(http)
        answer = http.get(f"/api/v1/executions/{execution_id}")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert _shown(http, execution_id, "queued")


def test_a_feed_that_is_killed_goes_on_where_it_was(api: Node, http: httpx.Client) -> None:
    before = _start(http)
    _shown(http, before, "queued")
    assert api.gateway is not None
    index = api.gateway.access.index
    pid = index.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: index.pid not in {None, pid}, "another feed")
    _tell(api, before, *whole(before))
    _shown(http, before, "succeeded")
    assert len(http.get(f"/api/v1/executions/{before}/history").json()["events"]) == 4


def test_a_feed_that_says_nothing_any_more_is_replaced(module_broker: str, tmp_path: Path) -> None:
    with node(module_broker, tmp_path, executions={"feed_silent_s": 2}) as other, other.client() as client:
        other.until_ready()
        assert other.gateway is not None
        index = other.gateway.access.index
        stuck = index.pid
        assert stuck is not None
        os.kill(stuck, signal.SIGSTOP)
        until(lambda: index.pid not in {None, stuck}, "another feed")
        other.until_ready()
        assert client.get("/api/v1/executions").json()["complete"] is True


def test_waiting_for_the_end_answers_with_the_result(api: Node, http: httpx.Client) -> None:
    done: list[httpx.Response] = []
    key = {"Idempotency-Key": _id()}
    execution_id = _start(http, headers=key)

    def ask() -> None:
        with api.client() as client:
            done.append(client.post(f"/api/v1/workflows/{FLOW}/execute?wait=30", headers=key))

    thread = threading.Thread(target=ask)
    thread.start()
    assert api.gateway is not None
    watchers = api.gateway.access.index._watchers
    until(lambda: execution_id in watchers, "somebody waits")
    _tell(api, execution_id, *whole(execution_id))
    thread.join(30)
    assert (done[0].status_code, done[0].json()["status"], done[0].json()["result"]) == (200, "succeeded", {"ok": True})
    assert execution_id not in watchers
    late = http.post(f"/api/v1/workflows/{FLOW}/execute?wait=0.05")
    assert late.status_code == 202


def test_executions_are_searched_page_by_page(api: Node, http: httpx.Client) -> None:
    flow = f"flow-{_id()}"
    ids = [_id() for _ in range(12)]
    for number, each in enumerate(ids):
        status: Status = "failed" if number % 3 == 0 else "succeeded"
        _tell(api, each, run(each, started(T0_MS + number, key="k"), ended(1, status, T0_MS + number), workflow=flow))
    for each in ids:
        until(lambda each=each: http.get(f"/api/v1/executions/{each}").status_code == 200, each)
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = http.get("/api/v1/executions", params={"workflow": flow, "limit": 5, "cursor": cursor}).json()
        seen += [item["execution_id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert seen == ids[::-1]
    found = http.get("/api/v1/executions", params={"workflow": flow, "status": ["failed", "paused"], "key": "k"})
    assert [item["execution_id"] for item in found.json()["items"]] == [ids[9], ids[6], ids[3], ids[0]]
    since = http.get("/api/v1/executions", params={"workflow": flow, "since": T0_MS + 3, "until": T0_MS + 5}).json()
    assert [item["execution_id"] for item in since["items"]] == [ids[4], ids[3]]
    for bad in ({"status": "asleep"}, {"since": "yesterday"}, {"cursor": "x"}, {"limit": 0}):
        assert http.get("/api/v1/executions", params=bad).status_code in {400, 422}


def test_a_history_is_read_in_pages(api: Node, http: httpx.Client) -> None:
    execution_id = _id()
    _tell(api, execution_id, run(execution_id, started(), *(scheduled(n, attempt=n) for n in range(1, 25))))
    _shown(http, execution_id, "running")
    seen: list[int] = []
    after: int | None = -1
    while after is not None:
        path = f"/api/v1/executions/{execution_id}/history"
        page = http.get(path, params={"after_seq": after, "limit": 10}).json()
        seen += [event["seq"] for event in page["events"]]
        after = page["next_after_seq"]
    assert seen == list(range(25))


def _sent(bootstrap: str) -> list[Any]:
    """Every command on the topic."""
    return [decode_command(value) for value in asyncio.run(values_of(bootstrap, WORKFLOW_COMMANDS.name))]


class Stream:
    """A client of a stream on a thread; `events` grow as they come."""

    def __init__(self, api: Node, execution_id: str, last: int | None = None) -> None:
        self.events: list[tuple[int, str, dict[str, Any]]] = []
        self.status = 0
        self.comments = 0
        self._headers = {} if last is None else {"Last-Event-ID": str(last)}
        self._url = f"{api.url}/api/v1/executions/{execution_id}/stream"
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with httpx.stream("GET", self._url, headers=self._headers, timeout=60, trust_env=False) as answer:
            self.status = answer.status_code
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                if line.startswith(":"):
                    self.comments += 1
                elif line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif fields:
                    self.events.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
                    fields = {}

    def until(self, enough: Callable[[], bool]) -> None:
        until(enough, f"a stream of {self.events}")

    def ended(self) -> bool:
        return not self._thread.is_alive()


def test_a_stream_tells_what_was_and_what_comes_and_ends_with_the_execution(api: Node) -> None:
    execution_id = _id()
    _tell(api, execution_id, run(execution_id, started(), scheduled(1)))
    stream = Stream(api, execution_id)
    stream.until(lambda: len(stream.events) == 2)
    _tell(api, execution_id, run(execution_id, succeeded(2, result="two\nlines")))
    stream.until(lambda: len(stream.events) == 3)
    assert not stream.ended()
    resumed = Stream(api, execution_id, last=1)
    resumed.until(lambda: len(resumed.events) == 1)
    _tell(api, execution_id, run(execution_id, ended(3)))
    stream.until(stream.ended)
    assert [seq for seq, _, _ in stream.events] == [0, 1, 2, 3]
    assert stream.events[-1][1] == "execution_ended"
    resumed.until(resumed.ended)
    assert [seq for seq, _, _ in resumed.events] == [2, 3]
    again = Stream(api, execution_id, last=3)
    again.until(again.ended)
    assert (again.status, again.events) == (204, [])


def test_a_silent_stream_gives_signs_of_life_and_streams_are_bounded(module_broker: str, tmp_path: Path) -> None:
    limits = {"stream_heartbeat_s": 0.05, "streams_max": 1}
    with node(module_broker, tmp_path, executions=limits) as other, other.client() as client:
        other.until_ready()
        execution_id = _id()
        _tell(other, execution_id, run(execution_id, started()))
        stream = Stream(other, execution_id)
        stream.until(lambda: stream.comments > 2)
        answer = client.get(f"/api/v1/executions/{execution_id}/stream")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    stream.until(stream.ended)


def test_orders_are_commands_and_what_cannot_apply_is_refused(
    api: Node, http: httpx.Client, module_broker: str
) -> None:
    live, done = _id(), _id()
    version = version_of(DEFINITION)
    asked = ApprovalRequested(seq=1, at=T0_MS, task="ask", item=None, name="approve", until=None)
    _tell(api, live, run(live, started(), asked, version=version))
    _tell(api, done, run(done, started(), ended(1, "failed"), version=version))
    _shown(http, live, "running")
    _shown(http, done, "failed")
    orders: list[tuple[str, str, Any]] = [
        (live, "cancel", {"reason": "wrong plant"}),
        (live, "pause", None),
        (live, "signal/approve", {"approved": True}),
        (done, "retry", None),
        (done, "retry", {"from_task": "one"}),
    ]
    for execution_id, order, body in orders:
        answer = http.post(f"/api/v1/executions/{execution_id}/{order}", json=body, headers={"Idempotency-Key": "c-1"})
        assert (answer.status_code, answer.json().get("command_id")) == (202, "c-1"), answer.text
    refusals: list[tuple[str, str, Any, int]] = [
        (done, "cancel", None, 409),
        (done, "pause", None, 409),
        (done, "signal/approve", None, 409),
        (live, "resume", None, 409),
        (live, "retry", None, 409),
        (done, "retry", {"from_task": "nowhere"}, 404),
        (live, "signal/unknown", None, 404),
        (done, "retry", {"from": "one"}, 422),
        (live, "cancel", {"reason": 7}, 422),
        (live, "dance", None, 404),
    ]
    for execution_id, order, body, status in refusals:
        answer = http.post(f"/api/v1/executions/{execution_id}/{order}", json=body)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.status_code == status, (order, answer.text)
    sent = _sent(module_broker)
    kinds = [each.type for each in sent if each.execution_id in {live, done}]
    assert sorted(kinds) == ["cancel", "pause", "retry", "retry", "signal"]


def test_orders_by_filter_reach_what_matches_and_no_more(api: Node, http: httpx.Client, module_broker: str) -> None:
    flow = f"flow-{_id()}"
    ids = [_id() for _ in range(6)]
    for number, each in enumerate(ids):
        runs = [run(each, started(T0_MS + number), workflow=flow)]
        if number < 4:
            runs.append(run(each, ended(1, "failed", T0_MS + number), workflow=flow))
        _tell(api, each, *runs)
    for number, each in enumerate(ids):
        _shown(http, each, "failed" if number < 4 else "running")
    path = "/api/v1/executions:retry"
    plan = http.post(path, json={"workflow": flow, "dry_run": True}).json()
    assert (plan["matched"], plan["sent"], plan["execution_ids"]) == (4, 0, ids[3::-1])
    part = http.post(path, json={"workflow": flow, "limit": 3}).json()
    assert (part["matched"], part["sent"], part["more"]) == (3, 3, True)
    named = http.post("/api/v1/executions:cancel", json={"ids": ids}).json()
    assert named["execution_ids"] == ids[4:]
    for bad in ({}, {"ids": ids, "workflow": flow}, {"workflow": flow, "status": ["running"]}, {"colour": "red"}):
        assert http.post(path, json=bad).status_code in {400, 422}, bad
    assert http.post("/api/v1/executions:dance", json={"all": True}).status_code == 422
    sent = _sent(module_broker)
    assert sorted(each.execution_id for each in sent if each.type == "retry" and each.execution_id in ids) == sorted(
        ids[1:4]
    )


def test_an_index_of_another_cluster_or_of_topics_that_were_replaced_is_made_anew(
    module_broker: str, tmp_path: Path
) -> None:
    store = ExecutionStore(tmp_path)
    store.reset("another")
    store.apply([], whole("stranger"), [Position(WORKFLOW_EVENTS.name, 0, 1)])
    store.close()
    with node(module_broker, tmp_path) as other, other.client() as client:
        other.until_ready()
        assert client.get("/api/v1/executions/stranger").status_code == 404
    store = ExecutionStore(tmp_path)
    assert store.cluster not in {None, "another"}
    store.apply([], whole("gone"), [Position(WORKFLOW_EVENTS.name, 0, 1 << 40)])
    store.close()
    with node(module_broker, tmp_path) as other, other.client() as client:
        other.until_ready()
        assert client.get("/api/v1/executions/gone").status_code == 404


def test_two_nodes_do_not_write_one_index(api: Node) -> None:
    assert api.gateway is not None
    folder = Path(api.settings.http.executions.directory)
    with pytest.raises(BlockingIOError), (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
