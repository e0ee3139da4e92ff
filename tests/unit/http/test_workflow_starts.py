"""Laws of starting executions over HTTP, without sockets and without a broker."""

import asyncio
import json
import uuid
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from app.domain.workflow.commands import Start
from app.domain.workflow.definition import Concurrency, Rate
from app.domain.workflow.placement import partition_of
from app.errors import PublishFailed
from app.http.execution_ids import new_id
from app.http.rate import Rates
from app.http.start import Accepted, Starter, fingerprint
from app.http.start_routes import SINGLE, StartRoutes
from app.metrics import HTTP_REQUESTS
from app.workflow_wire import decode_command
from config.http import StartsSettings
from tests.helpers.workflow_api import NOW_MS, PARTITIONS, Catalogue, Commands, InputField, client, workflow

EXECUTE = "/api/v1/workflows/press-overheat/execute"
BATCH = f"{EXECUTE}:batch"
KEYED = workflow("keyed", concurrency=Concurrency(key="input.device_id"))


class Results:
    """Knows what it is told."""

    def __init__(self) -> None:
        self.ended: dict[str, bytes] = {}
        self.firsts: dict[str, Accepted] = {}
        self.asked_s: list[float] = []

    async def final(self, execution_id: str, timeout_s: float) -> bytes | None:
        self.asked_s.append(timeout_s)
        return next(iter(self.ended.values()), None)

    async def first(self, execution_id: str) -> Accepted | None:
        return self.firsts.get(execution_id)


class Api:
    """The routes with everything behind them in reach."""

    def __init__(
        self,
        *,
        definitions: Catalogue | None = None,
        input_bytes: int = 1000,
        read_timeout_s: float = 5,
        **settings: Any,
    ) -> None:
        known = Catalogue(workflow(), workflow(version="v2"), KEYED)
        self.sent = Commands()
        self.results = Results()
        self.now_s = 0.0
        self.starter = Starter(
            StartsSettings(**settings), input_bytes, lambda: NOW_MS, definitions or known, InputField(), self.sent
        )
        self.app = StartRoutes(
            _nowhere, self.starter, self.results, read_timeout_s=read_timeout_s, monotonic_s=lambda: self.now_s
        )

    async def post(self, path: str, address: str = "127.0.0.1", **kwargs: Any) -> Any:
        async with client(self.app, address) as asking:
            return await asking.post(path, **kwargs)

    @property
    def starts(self) -> list[Start]:
        found = [decode_command(record.value) for record in self.sent.records]
        assert all(isinstance(each, Start) for each in found)
        return found  # type: ignore[return-value]


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def api() -> Api:
    return Api()


def _is_problem(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["detail"]
    return body


async def test_an_accepted_start_is_a_command_on_its_partition(api):
    for path in (EXECUTE, EXECUTE.removeprefix("/api/v1")):
        answer = await api.post(path, json={"device_id": "press-1"})
        assert answer.status_code == 202
        body = answer.json()
        record, start = api.sent.records[-1], api.starts[-1]
        assert body["execution_id"] == start.execution_id == (record.key or b"").decode()
        assert (body["workflow"], body["version"], body["status"]) == ("press-overheat", "v2", "queued")
        assert body["status_url"] == answer.headers["location"] == f"/api/v1/executions/{start.execution_id}"
        assert (start.input, start.trigger, start.at_ms) == ({"device_id": "press-1"}, {"kind": "http"}, NOW_MS)
        assert (record.topic, record.partition) == (
            "workflow.commands",
            partition_of(start.execution_id, PARTITIONS),
        )


@pytest.mark.parametrize(
    ("body", "raw", "given", "key", "priority"),
    [
        (b"", "", {}, None, 0),
        (b"[1]", "", [1], None, 0),
        (b'{"input": 7, "other": 1}', "", {"input": 7, "other": 1}, None, 0),
        (b'{"input": {"a": 1}}', "", {"a": 1}, None, 0),
        (b'{"input": null, "key": "k", "priority": -3}', "", None, "k", -3),
        (b'{"input": {"a": 1}}', "?raw=true", {"input": {"a": 1}}, None, 0),
        (b"1", "?priority=5&key=q", 1, "q", 5),
    ],
)
async def test_a_body_is_the_input_or_an_envelope_of_it(api, body, raw, given, key, priority):
    assert (await api.post(EXECUTE + raw, content=body)).status_code == 202
    assert (api.starts[0].input, api.starts[0].key, api.starts[0].priority) == (given, key, priority)


async def test_a_version_can_be_asked_for(api):
    assert (await api.post(f"{EXECUTE}?version=v1")).json()["version"] == "v1"
    assert "no version v9" in _is_problem(await api.post(f"{EXECUTE}?version=v9"), 404)["detail"]


async def test_an_idempotency_key_always_names_the_same_execution(api):
    headers = {"idempotency-key": "order-7"}
    first = await api.post(EXECUTE, headers=headers)
    again = await api.post(f"{EXECUTE}?version=v1", headers=headers)
    assert first.json() == again.json(), "the first execution again, its version with it"
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert len(api.sent.records) == 1
    other_node = Api()
    assert (await other_node.post(EXECUTE, headers=headers)).json() == first.json()
    other = await api.post("/workflows/keyed/execute", json={"device_id": "a"}, headers=headers)
    assert other.json()["execution_id"] != first.json()["execution_id"]


async def test_the_index_knows_the_first_execution_of_another_node(api):
    headers = {"idempotency-key": "order-7"}
    elsewhere = (await Api().post(EXECUTE, headers=headers)).json()["execution_id"]
    api.results.firsts[elsewhere] = Accepted(elsewhere, "press-overheat", "v1", known=True)
    answer = await api.post(EXECUTE, headers=headers)
    assert (answer.json()["version"], answer.headers["idempotent-replayed"]) == ("v1", "true")
    assert api.sent.records == []


async def test_an_idempotency_key_is_not_used_for_another_input(api):
    headers = {"idempotency-key": "order-7"}
    first = (await api.post(EXECUTE, json={"a": 1, "b": 2}, headers=headers)).json()["execution_id"]
    assert (await api.post(EXECUTE, content=b'{"b":2, "a":1}', headers=headers)).json()["execution_id"] == first
    _is_problem(await api.post(EXECUTE, json={"a": 2}, headers=headers), 422)
    items = [{"input": {"a": 3}, "idempotency_key": "order-7"}, {"input": {"a": 3}, "idempotency_key": "order-8"}]
    assert [each["code"] for each in (await api.post(BATCH, json=items)).json()["items"]] == [422, 202]
    other_node = Api()
    other_node.results.firsts[first] = Accepted(
        first, "press-overheat", "v1", known=True, input_print=fingerprint({"b": 2, "a": 1})
    )
    _is_problem(await other_node.post(EXECUTE, json={"a": 2}, headers=headers), 422)
    answer = (await other_node.post(BATCH, json=[{"input": {"a": 1, "b": 2}, "idempotency_key": "order-7"}])).json()
    assert (answer["items"][0]["execution_id"], other_node.sent.records) == (first, [])


async def test_an_idempotency_key_is_free_again_when_its_start_was_refused(api):
    headers = {"idempotency-key": "order-7"}
    _is_problem(await api.post("/workflows/keyed/execute", json={}, headers=headers), 422)
    assert (await api.post("/workflows/keyed/execute", json={"device_id": "a"}, headers=headers)).status_code == 202


async def test_a_start_that_may_have_arrived_keeps_its_idempotency_key(api):
    api.sent.failure = PublishFailed("timeout", 1)
    headers = {"idempotency-key": "order-7"}
    _is_problem(await api.post(EXECUTE, json=1, headers=headers), 503)
    api.sent.failure = None
    _is_problem(await api.post(EXECUTE, json=2, headers=headers), 422)


async def test_a_start_that_was_not_acknowledged_is_sent_again_by_its_repeat(api):
    api.sent.failure = PublishFailed("timeout", 1)
    headers = {"idempotency-key": "order-7"}
    _is_problem(await api.post(EXECUTE, headers=headers), 503)
    api.sent.failure = None
    assert (await api.post(EXECUTE, headers=headers)).status_code == 202
    assert len(api.sent.records) == 1


async def test_executions_that_are_counted_together_live_together(api):
    for _ in range(4):
        for device in ("a", "b"):
            await api.post("/workflows/keyed/execute", json={"device_id": device})
    partitions = {start.key: set[int | None]() for start in api.starts}
    for record, start in zip(api.sent.records, api.starts, strict=True):
        partitions[start.key].add(record.partition)
        assert partition_of(start.execution_id, PARTITIONS) == record.partition
    assert {key: len(where) for key, where in partitions.items()} == {"a": 1, "b": 1}


async def test_a_rate_brings_all_executions_of_a_workflow_together():
    api = Api(definitions=Catalogue(workflow(rate=Rate(limit=1))))
    for _ in range(5):
        await api.post(EXECUTE)
    assert len({record.partition for record in api.sent.records}) == 1


async def test_a_concurrency_key_without_a_value_is_refused(api):
    assert "input.device_id" in _is_problem(await api.post("/workflows/keyed/execute", json={"x": 1}), 422)["detail"]
    assert api.sent.records == []


async def test_an_unknown_workflow_is_404_only_when_all_are_known():
    behind = Api(definitions=Catalogue(late=[workflow()]))
    assert (await behind.post(EXECUTE)).status_code == 202
    assert "nothing" in _is_problem(await behind.post("/workflows/nothing/execute"), 404)["detail"]
    away = Api(definitions=Catalogue(never=True), definitions_wait_ms=1)
    answer = await away.post(EXECUTE)
    _is_problem(answer, 503)
    assert answer.headers["retry-after"] == "1"


async def test_a_version_that_was_replaced_is_not_started_while_the_definitions_are_read():
    reading = Api(definitions=Catalogue(workflow(), late=[workflow(version="v2")]))
    assert (await reading.post(EXECUTE)).json()["version"] == "v2"


async def test_a_workflow_without_an_http_trigger_is_not_started():
    _is_problem(await Api(definitions=Catalogue(workflow(http=False))).post(EXECUTE), 403)


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        (EXECUTE, b"{", 400),
        (EXECUTE, b'"\xff"', 400),
        (EXECUTE, b"[" * 9000, 413),
        (EXECUTE, b"[" * 900, 400),
        (EXECUTE, b'"' + b"x" * 2000 + b'"', 413),
        (EXECUTE, b'{"input": "' + b"x" * 2000 + b'", "key": "k"}', 413),
        (EXECUTE, b'{"input": 1, "key": 7}', 400),
        (EXECUTE, b'{"input": 1, "priority": "high"}', 400),
        (EXECUTE, b'{"input": 1, "priority": true}', 400),
        (f"{EXECUTE}?wait=soon", b"", 400),
        (f"{EXECUTE}?wait=nan", b"", 400),
        (f"{EXECUTE}?wait=-1", b"", 400),
        (f"{EXECUTE}?color=red", b"", 400),
        (f"{EXECUTE}?priority=high", b"", 400),
        (f"{EXECUTE}?raw=perhaps", b"", 400),
        (f"{EXECUTE}?version=", b"", 400),
        ("/workflows/no%20such/execute", b"", 400),
        ("/workflows//execute", b"", 400),
        (f"/workflows/{'x' * 300}/execute", b"", 400),
        (BATCH, b"{}", 400),
        (BATCH, b"[]", 400),
        (BATCH, b"[" + b"1," * 1000 + b"1]", 413),
    ],
)
async def test_what_cannot_be_started_is_a_problem_that_says_why(api, path, content, status):
    _is_problem(await api.post(path, content=content), status)
    assert api.sent.records == []


async def test_a_body_that_comes_in_parts_is_measured_whole(api):
    async def parts():
        for _ in range(30):
            yield b"x" * 1000

    _is_problem(await api.post(EXECUTE, content=parts()), 413)


@pytest.mark.parametrize("path", [EXECUTE, BATCH])
@pytest.mark.parametrize("before", [[], [{"type": "http.request", "body": b'{"a": 1}', "more_body": True}]])
async def test_a_client_that_leaves_before_its_body_was_whole_starts_nothing(api, path, before):
    assert await _answered(api, path, [*before, {"type": "http.disconnect"}]) == 400
    assert api.sent.records == []


@pytest.mark.parametrize("before", [[], [{"type": "http.request", "body": b"[", "more_body": True}]])
async def test_a_body_that_does_not_come_is_waited_for_no_longer_than_a_request_may_take(before):
    api = Api(read_timeout_s=0.05)
    assert await _answered(api, EXECUTE, before) == 408
    assert api.sent.records == []


async def _answered(api: Api, path: str, messages: list[dict[str, Any]]) -> int:
    """The status of a request whose client sends these messages and nothing more."""
    coming = iter(messages)
    sent: list[Any] = []

    async def receive() -> Any:
        return next(coming, None) or await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"100")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
    await api.app(scope, receive, send)
    return int(sent[0]["status"])


async def test_another_method_is_not_served(api):
    async with client(api.app) as asking:
        answer = await asking.get(EXECUTE)
    _is_problem(answer, 405)
    assert answer.headers["allow"] == "OPTIONS, POST"


async def test_other_paths_are_for_others(api):
    for path in ("/api/v1/workflows", "/execute", "/api/v1/devices/x/execute"):
        assert (await api.post(path)).status_code == 418


async def test_a_broker_that_does_not_answer_is_503(api):
    api = Api(acknowledge_timeout_s=0.01)
    api.sent.never = True
    answer = await api.post(EXECUTE)
    assert "Idempotency-Key" in _is_problem(answer, 503)["detail"]
    assert answer.headers["retry-after"]
    api.starter.publisher = None
    _is_problem(await api.post(EXECUTE), 503)
    _is_problem(await api.post(BATCH, json=[1]), 503)
    assert api.starter.in_flight == 0


async def test_a_bug_is_a_problem_without_its_details(api, caplog):
    api.sent.failure = RuntimeError("secret")
    answer = await api.post(EXECUTE)
    _is_problem(answer, 500)
    assert "secret" not in answer.text


async def test_an_execution_that_ends_in_time_is_the_answer(api):
    api.results.ended["x"] = b'{"status": "succeeded"}'
    answer = await api.post(f"{EXECUTE}?wait=1000")
    assert (answer.status_code, answer.json()) == (200, {"status": "succeeded"})
    assert api.results.asked_s == [30.0], "bounded by the settings"
    api.results.ended.clear()
    assert (await api.post(f"{EXECUTE}?wait=0.5s")).status_code == 202


async def test_a_batch_has_an_outcome_for_each(api):
    items = [{"a": 1}, {"input": 2, "version": "v1"}, {"input": 3, "version": "v9"}, {"input": 4, "key": 5}, "x"]
    answer = await api.post(BATCH, json={"starts": items})
    body = answer.json()
    assert (answer.status_code, body["accepted"], body["refused"]) == (202, 3, 2)
    assert [item["code"] for item in body["items"]] == [202, 202, 404, 400, 202]
    assert [item.get("version") for item in body["items"]] == ["v2", "v1", None, None, "v2"]
    assert [start.input for start in api.starts] == [{"a": 1}, 2, "x"]


async def test_a_batch_of_which_nothing_is_accepted_is_a_problem(api):
    body = _is_problem(await api.post("/workflows/nothing/execute:batch", json=[1, 2]), 404)
    assert [error["field"] for error in body["errors"]] == ["body[0]", "body[1]"]


async def test_a_repeat_within_batches_starts_nothing(api):
    items = [{"input": 1, "idempotency_key": "k"}]
    first, again = (await api.post(BATCH, json=items)).json(), (await api.post(BATCH, json=items)).json()
    assert first["items"][0]["execution_id"] == again["items"][0]["execution_id"]
    assert len(api.sent.records) == 1


async def test_a_client_that_starts_too_much_waits_and_others_do_not(api):
    api = Api(rate_per_s=1, rate_burst=2)
    codes = [(await api.post(EXECUTE)).status_code for _ in range(3)]
    assert codes == [202, 202, 429]
    answer = await api.post(EXECUTE)
    assert int(answer.headers["retry-after"]) >= 1
    assert (await api.post(EXECUTE, address="10.0.0.9")).status_code == 202
    assert (await api.post(EXECUTE, headers={"x-api-key": "mine"})).status_code == 202
    api.now_s = 1.0
    assert (await api.post(EXECUTE)).status_code == 202


def test_a_batch_beyond_the_burst_is_granted_to_a_full_bucket_and_paid_back():
    rates = Rates(per_s=10, burst=5)
    assert rates.take("a", 20, 0.0) == 0
    assert rates.take("a", 1, 1.0) > 0
    assert rates.take("a", 1, 1.7) == 0


async def test_a_trace_goes_with_the_command(api):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await api.post(EXECUTE, headers={"traceparent": trace})
    assert api.starts[0].traceparent == trace
    assert dict(api.sent.records[0].headers) == {"traceparent": trace.encode()}


async def test_starts_are_counted_by_route_and_code(api):
    def count(code: str) -> float:
        return HTTP_REQUESTS.labels(SINGLE, code)._value.get()

    before = count("202"), count("400")
    await api.post(EXECUTE)
    await api.post(EXECUTE, content=b"{")
    assert (count("202"), count("400")) == (before[0] + 1, before[1] + 1)


def test_new_ids_are_uuids_in_the_order_of_time():
    ids = [new_id(NOW_MS + number) for number in range(1000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000
    found = uuid.UUID(ids[0])
    assert (found.version, found.variant) == (7, uuid.RFC_4122)
    assert found.int >> 80 == NOW_MS


async def test_too_many_starts_at_once_are_refused(api):
    api = Api(in_flight_max=2)
    api.starter.in_flight = 2
    _is_problem(await api.post(EXECUTE), 503)
    assert json.loads((await Api(in_flight_max=2).post(BATCH, json=[1, 2, 3])).content)["accepted"] == 3
