"""Laws of the API, without sockets and without a broker."""

import asyncio
import json

import httpx
import pytest

from app.errors import PublishFailed
from app.http.gateway import api_app
from app.http.health import Check, HealthRegistry
from app.http.read_model import ReadModel
from app.http.reads import Reads
from app.http.view import LocalView
from app.metrics import HTTP_REQUESTS, REGISTRY
from app.ports import OutRecord
from config.http import HttpSettings, ReadModelSettings
from config.topics import DEVICE_COMMANDS
from tests.helpers.reads import metadata, rollup, sample, signal

NOW_MS = 1_763_689_000_000


class Outbox:
    """Keeps what is published; fails when told to."""

    def __init__(self):
        self.records: list[OutRecord] = []
        self.failure: Exception | None = None
        self.never = False

    async def publish(self, records):
        if self.never:
            await asyncio.Event().wait()
        if self.failure:
            raise self.failure
        self.records += records

    def last_offset(self, topic, partition):
        return None


class Api:
    """The application with everything behind it in reach."""

    def __init__(self, **settings):
        self.model = ReadModel(ReadModelSettings())
        self.outbox = Outbox()
        self.complete = True
        self.health = HealthRegistry(frozenset({"api-gateway"}), "1.0")
        http = HttpSettings(**settings)
        self.reads = Reads(self.model, http, lambda: NOW_MS, lambda: self.complete, self.outbox)
        view = LocalView(self.health, REGISTRY, lambda: {"hash": "abc", "settings": {"kafka": {}}})
        self.app = api_app(self.reads, view, http)

    def client(self):
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://headrace", trust_env=False)

    async def get(self, path, **kwargs):
        async with self.client() as client:
            return await client.get(path, **kwargs)

    async def post(self, path, **kwargs):
        async with self.client() as client:
            return await client.post(path, **kwargs)


@pytest.fixture
def api():
    return Api()


def _is_problem(answer, status):
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert {"type", "title", "status", "detail", "instance"} <= body.keys()
    assert body["status"] == status
    return body


async def test_every_list_is_walked_by_its_cursor(api):
    for number in range(7):
        api.model.take(*metadata(f"press-{number}"))
        api.model.take(*rollup(f"press-{number}", "temperature", 0))
        api.model.take(*signal(f"s-{number}", number))
    async with api.client() as client:
        for path in ("/api/v1/devices", "/api/v1/rollups", "/api/v1/signals"):
            seen: list[str] = []
            cursor: str | None = ""
            while cursor is not None:
                answer = (await client.get(path, params={"limit": 3, "cursor": cursor})).json()
                seen += [json.dumps(item) for item in answer["items"]]
                cursor = answer["next_cursor"]
            assert len(seen) == len(set(seen)) == 7


async def test_a_device_shows_metadata_and_last_sample(api):
    api.model.take(*metadata("press-1"))
    api.model.take(*sample("press-1", 1, at=NOW_MS))
    found = (await api.get("/api/v1/devices/press-1")).json()
    assert (found["state"], found["last_sample"]["metrics"][0]["value"]) == ("ONLINE", 71.0)


async def test_telemetry_that_is_not_as_it_should_be_spoils_no_list(api):
    topic, key, value = sample("press-1", 1)
    api.model.take(topic, key, value.replace(b'"CEL"', b"17").replace(b"71.0", b'"hot"'))
    found = (await api.get("/api/v1/devices")).json()["items"]
    assert [device["last_sample"] for device in found] == [None]


async def test_an_unknown_device_is_404_only_when_all_are_known(api):
    body = _is_problem(await api.get("/api/v1/devices/nope"), 404)
    assert body["detail"] == "No device nope is known."
    api.complete = False
    assert (await api.get("/api/v1/devices/nope")).headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nowhere", 404),
        ("/api/v1/devices?limit=0", 422),
        ("/api/v1/devices?state=asleep", 422),
        ("/api/v1/devices?cursor=zzz", 400),
        ("/api/v1/rollups?window=soon", 400),
        ("/api/v1/rollups?since=yesterday", 400),
        ("/api/v1/signals?until=2025-13-01", 400),
    ],
)
async def test_every_error_is_a_problem_document(api, path, status):
    _is_problem(await api.get(path), status)


async def test_a_wrong_method_is_a_problem_document(api):
    _is_problem(await api.post("/api/v1/rollups"), 405)


@pytest.mark.parametrize("since", ["60000", "1970-01-01T00:01:00Z", "1970-01-01T01:01:00+01:00", "1970-01-01T00:01:00"])
async def test_an_instant_is_milliseconds_or_rfc_3339(api, since):
    for start in (0, 60_000):
        api.model.take(*rollup("press-1", "temperature", start))
    found = (await api.get("/api/v1/rollups", params={"since": since})).json()["items"]
    assert [row["window_start"] for row in found] == [60_000]


@pytest.mark.parametrize(("window", "count"), [("10s", 1), ("10000", 1), ("1m", 1), ("60s", 1), ("5m", 0)])
async def test_a_window_is_named_by_its_size(api, window, count):
    api.model.take(*rollup("press-1", "t", 0, 10_000))
    api.model.take(*rollup("press-1", "t", 0, 60_000))
    assert len((await api.get(f"/api/v1/rollups?window={window}")).json()["items"]) == count


async def test_a_command_is_on_the_topic_when_it_is_accepted(api):
    api.model.take(*metadata("press-1"))
    answer = await api.post("/api/v1/devices/press-1/commands", json={"command": "inject_fault", "kind": "spike"})
    assert answer.status_code == 202
    [record] = api.outbox.records
    assert (record.topic, record.key) == (DEVICE_COMMANDS.name, b"press-1")
    assert json.loads(record.value or b"")["command_id"] == answer.json()["command_id"]


async def test_a_group_is_commanded_by_scope(api):
    answer = await api.post("/api/v1/devices/commands", json={"command": "stop", "scope": "type", "target": "press"})
    assert answer.status_code == 202
    assert api.outbox.records[0].key == b"press"


@pytest.mark.parametrize(
    "order",
    [
        {},
        {"command": "dance", "scope": "all"},
        {"command": "stop", "scope": "all", "target": "press"},
        {"command": "stop", "scope": "type"},
        {"command": "set_interval", "scope": "all"},
        {"command": "set_interval", "scope": "all", "interval_ms": 0},
        {"command": "inject_fault", "scope": "all", "kind": "gremlin"},
        {"command": "stop", "scope": "all", "extra": 1},
    ],
)
async def test_a_command_no_device_could_obey_is_refused(api, order):
    _is_problem(await api.post("/api/v1/devices/commands", json=order), 422)
    assert api.outbox.records == []


async def test_a_command_that_is_not_acknowledged_is_503(api):
    order = {"command": "stop", "scope": "all"}
    api.outbox.failure = PublishFailed("timeout", 1)
    assert _is_problem(await api.post("/api/v1/devices/commands", json=order), 503)["detail"]
    api.reads.publisher = None
    _is_problem(await api.post("/api/v1/devices/commands", json=order), 503)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_body_beyond_the_limit_is_413(streamed):
    async def chunks():
        for _ in range(3):
            yield b"x" * 1000

    content = chunks() if streamed else b"x" * 3000
    api = Api(body_limit_bytes=2000)
    _is_problem(await api.post("/api/v1/devices/commands", content=content), 413)


async def test_a_request_that_takes_too_long_is_503():
    api = Api(request_timeout_s=0.01)
    api.outbox.never = True
    _is_problem(await api.post("/api/v1/devices/commands", json={"command": "stop", "scope": "all"}), 503)


async def test_a_bug_is_a_problem_document_without_its_details(api, caplog):
    api.outbox.failure = RuntimeError("secret")
    answer = await api.post("/api/v1/devices/commands", json={"command": "stop", "scope": "all"})
    _is_problem(answer, 500)
    assert "secret" not in answer.text


async def test_requests_are_counted_by_template_and_never_by_id(api):
    await api.get("/api/v1/devices/one")
    await api.get("/api/v1/devices/two")
    await api.get("/random/path/7")
    routes = {sample.labels["route"] for family in HTTP_REQUESTS.collect() for sample in family.samples}
    assert {"/api/v1/devices/{device_id}", "unmatched"} <= routes
    assert not {route for route in routes if "one" in route or "7" in route}


async def test_health_metrics_config_and_ledger_are_on_the_api_port(api):
    api.health.add("joined", lambda: Check(ok=True))
    async with api.client() as client:
        for path in ("/health", "/health/live", "/health/ready", "/health/startup", "/config", "/api/v1/ledger"):
            answer = await client.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json"), path


async def test_openmetrics_is_negotiated(api):
    plain = await api.get("/metrics", headers={"accept": "text/plain"})
    assert plain.headers["content-type"].startswith("text/plain")
    modern = await api.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert modern.headers["content-type"].startswith("application/openmetrics-text")
    assert modern.text.endswith("# EOF\n")


async def test_the_documentation_loads_nothing_from_elsewhere(api):
    page = (await api.get("/docs")).text
    assert "http://" not in page
    assert "https://" not in page
    for path in ("/static-offline-docs/swagger-ui-bundle.js", "/static-offline-docs/swagger-ui.css"):
        assert path in page
        assert (await api.get(path)).status_code == 200


async def test_openapi_gives_every_answer_a_shape_and_an_example(api):
    document = (await api.get("/openapi.json")).json()
    for name in ("DeviceView", "RollupView", "SignalView", "DeviceOrder", "Accepted", "Problem"):
        assert document["components"]["schemas"][name]["examples"], name
    paths = document["paths"]
    assert paths["/api/v1/devices/{device_id}/commands"]["post"]["responses"].keys() >= {"202", "404", "422", "503"}
    assert "/metrics" in paths


async def test_a_client_that_asks_too_often_is_told_when_to_come_again():
    api = Api(rate_per_s=0.001, rate_burst=2)
    for _ in range(2):
        assert (await api.get("/api/v1/devices")).status_code == 200
    answer = await api.get("/api/v1/devices")
    _is_problem(answer, 429)
    assert int(answer.headers["retry-after"]) > 0
    assert (await api.get("/api/v1/devices", headers={"x-api-key": "another"})).status_code == 200
    assert (await api.get("/health")).status_code != 429
