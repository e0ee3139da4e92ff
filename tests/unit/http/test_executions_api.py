"""Laws of the routes of executions over an index that is not whole; no socket, no process, no broker."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.adapters.execution_store import ExecutionStore
from app.http import problems
from app.http.execution_bulk import bulk_router
from app.http.execution_index import ExecutionIndex
from app.http.executions import executions_router
from app.http.start import Starter, fingerprint
from app.http.workflow_access import Access
from config.http import ExecutionsSettings, HttpSettings, StartsSettings
from tests.helpers.executions import run, started
from tests.helpers.workflow_api import NOW_MS, Catalogue, Commands, InputField, client

FED = {"connected": True, "caught_up": True, "lag": 7, "executions": 1}
PATH = "/api/v1/executions"


class Api:
    """The routes, the index that they read, and what they sent."""

    def __init__(self, folder: Path) -> None:
        store = ExecutionStore(folder)
        store.apply([], [run("a", started())], [])
        store.close()
        self.index = ExecutionIndex(ExecutionsSettings(directory=str(folder)), b"")
        self.index.state = FED
        self.sent = Commands()
        starter = Starter(StartsSettings(), 1000, lambda: NOW_MS, Catalogue(), InputField(), self.sent)
        access = Access(HttpSettings(), starter, self.index)
        self.app = FastAPI()
        self.app.include_router(executions_router(access))
        self.app.include_router(bulk_router(access))
        problems.install(self.app)

    async def ask(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        async with client(self.app) as asking:
            return await asking.request(method, path, **kwargs)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    made = Api(tmp_path)
    yield made
    await made.index.ask(made.index.reader.close)
    made.index.close()


async def test_a_list_from_an_index_that_is_fed_is_complete(api: Api) -> None:
    body = (await api.ask("GET", PATH)).json()
    assert ([each["execution_id"] for each in body["items"]], body["complete"]) == (["a"], True)


@pytest.mark.parametrize("state", [{}, FED | {"caught_up": False}, FED | {"connected": False}])
async def test_a_list_from_an_index_that_is_being_made_says_so(api: Api, state: dict[str, Any]) -> None:
    api.index.state = state
    body = (await api.ask("GET", PATH)).json()
    assert (len(body["items"]), body["complete"], body["next_cursor"]) == (1, False, None)


async def test_an_order_by_filter_waits_for_an_index_that_knows_all_that_match(api: Api) -> None:
    api.index.state = FED | {"caught_up": False}
    for dry_run in (True, False):
        answer = await api.ask("POST", f"{PATH}:cancel", json={"all": True, "dry_run": dry_run})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert api.sent.records == []
    api.index.state = FED
    assert (await api.ask("POST", f"{PATH}:cancel", json={"all": True})).json()["sent"] == 1
    assert len(api.sent.records) == 1


async def test_the_input_of_a_first_execution_is_known_by_its_fingerprint(api: Api, tmp_path: Path) -> None:
    assert await api.index.first("b") is None
    store = ExecutionStore(tmp_path)
    store.apply([], [run("b-p3", started(given={"y": [1], "x": 2}))], [])
    store.close()
    assert await api.index.first("b") is None, "the index is not open"
    api.index._open.set()
    found = await api.index.first("b")
    assert found is not None
    assert (found.execution_id, found.input_print) == ("b-p3", fingerprint({"x": 2, "y": [1]}))


async def test_an_execution_whose_result_is_as_deep_as_may_be_is_shown(api: Api, tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(253):
        deep = [deep]
    store = ExecutionStore(tmp_path)
    store.apply([], [run("d", started(given=deep))], [])
    store.close()
    api.index._open.set()
    answer = await api.ask("GET", f"{PATH}/d")
    assert (answer.status_code, answer.json()["input"]) == (200, deep)
