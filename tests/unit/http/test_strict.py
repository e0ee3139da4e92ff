"""Laws of what the API takes for JSON and for an option: nothing is bent, passed over or answered 500."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from app.adapters.execution_reader import ExecutionReader, Wanted
from app.adapters.execution_store import ExecutionStore
from app.codec import DEPTH_MAX
from app.http.strict import NotJson, strict_json, wrong_type
from tests.helpers.executions import run, started
from tests.unit.http.test_executions_api import PATH, Api

SIGNAL = f"{PATH}/a/signal/go"


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    made = Api(tmp_path)
    made.index._open.set()  # the process that feeds it would say so
    yield made
    await made.index.ask(made.index.reader.close)
    made.index.close()


@pytest.mark.parametrize(
    "body",
    [b"{", b'{"n": NaN}', b'{"n": Infinity}', b'{"n": 1e999}', b'"\\ud800"', b'"\xff"', b"\xef\xbb\xbf{}", b"{} {}"],
)
async def test_what_is_no_json_is_refused_with_its_place(api: Api, body: bytes) -> None:
    answer = await api.ask("POST", SIGNAL, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"].startswith("The body is not JSON: ")
    assert api.sent.records == []


async def test_json_is_nested_so_deep_and_no_deeper(api: Api) -> None:
    assert strict_json(nested(DEPTH_MAX)) is not None
    wide = b"[" + b",".join([b"[]"] * 1000) + b"]"
    assert len(strict_json(wide)) == 1000
    for depth in (DEPTH_MAX + 1, 250, 1000, 100_000):
        with pytest.raises(NotJson):
            strict_json(nested(depth))
        assert (await api.ask("POST", SIGNAL, content=nested(depth))).status_code == 400
    assert (await api.ask("POST", SIGNAL, content=nested(DEPTH_MAX))).status_code == 202


async def test_a_number_that_no_integer_holds_becomes_floating_and_is_taken(api: Api) -> None:
    assert (await api.ask("POST", SIGNAL, content=b'{"n": 123456789012345678901234567890}')).status_code == 202
    assert orjson.loads(api.sent.records[0].value or b"")["payload"] == {"n": 1.2345678901234568e29}


@pytest.mark.parametrize(
    "said", [None, "application/json", "application/json; charset=utf-8", "application/x-www-form-urlencoded"]
)
async def test_json_is_taken_whatever_curl_says_of_it(api: Api, said: str | None) -> None:
    headers = {} if said is None else {"content-type": said}
    assert (await api.ask("POST", SIGNAL, content=b'{"ok": true}', headers=headers)).status_code == 202
    assert orjson.loads(api.sent.records[0].value or b"")["payload"] == {"ok": True}


@pytest.mark.parametrize("said", ["text/plain", "application/xml", "multipart/form-data; boundary=x", "nonsense"])
async def test_a_body_that_is_called_something_else_is_415(api: Api, said: str) -> None:
    answer = await api.ask("POST", f"{PATH}/a/cancel", content=b"{}", headers={"content-type": said})
    assert (answer.status_code, api.sent.records) == (415, [])
    assert wrong_type("application/problem+json") is None


async def test_an_option_that_there_is_not_is_refused_and_not_passed_over(api: Api) -> None:
    answer = await api.ask("GET", f"{PATH}?worklow=x")
    assert answer.status_code == 400
    assert "no option worklow" in answer.json()["detail"]
    assert "workflow" in answer.json()["detail"]
    assert (await api.ask("POST", f"{PATH}/a/cancel?force=1")).status_code == 400
    assert (await api.ask("GET", f"{PATH}/a/history?after_seq=-1&limit=5")).status_code == 200
    assert api.sent.records == []


@pytest.mark.parametrize("at", ["999999999999999", "-999999999999999", "٣٣", "10000-01-01T00:00:00Z", ""])
async def test_an_instant_outside_of_the_calendar_is_400(api: Api, at: str) -> None:
    assert (await api.ask("GET", PATH, params={"since": at})).status_code == 400
    body = {"workflow": "w", "since": at}
    assert (await api.ask("POST", f"{PATH}:cancel", json=body)).status_code == 400


@pytest.mark.parametrize("at", ["253402300799999", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "-1"])
async def test_every_instant_of_the_calendar_is_taken(api: Api, at: str) -> None:
    for name in ("since", "until"):
        assert (await api.ask("GET", PATH, params={name: at})).status_code == 200


@pytest.mark.parametrize("key", [[1 << 63, "a"], [-(1 << 63) - 1, "a"], [True, "a"], [1], ["a", 1], {}, [1.0, "a"]])
async def test_a_cursor_that_no_page_gave_is_400(api: Api, key: object) -> None:
    cursor = base64.urlsafe_b64encode(str(key).replace("'", '"').replace("True", "true").encode()).decode()
    assert (await api.ask("GET", PATH, params={"cursor": cursor})).status_code == 400


def test_a_start_of_a_clock_far_ahead_is_listed_all_the_same(tmp_path: Path) -> None:
    store = ExecutionStore(tmp_path)
    store.apply([], [run("a", started(1 << 52)), run("b", started())], [])
    store.close()
    reader = ExecutionReader(tmp_path)
    assert [row.id for row in reader.page(Wanted(since=1 << 41), None, 10)] == ["a"]
    assert [row.id for row in reader.page(Wanted(), None, 10)] == ["a", "b"]
    reader.close()
