"""Laws of the API as a whole, every route of it: methods, and the document that describes it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.adapters.definitions_feed import DefinitionsFeed
from app.adapters.group_states import GroupStates
from app.adapters.members_topic import MembersTopic
from app.adapters.tasks.registry import Registry
from app.adapters.topic_reader import TopicReader
from app.adapters.workflow_letters import LetterIndex
from app.http.cluster import ClusterReads
from app.http.execution_index import ExecutionIndex
from app.http.gateway import api_app
from app.http.health import HealthRegistry
from app.http.read_model import ReadModel
from app.http.reads import Reads
from app.http.start import Starter
from app.http.view import LocalView
from app.http.workflow_access import Access
from app.http.workflows import Catalogue as WorkflowCatalogue
from app.metrics import REGISTRY
from config.cluster import ClusterSettings
from config.http import ExecutionsSettings, HttpSettings, ReadModelSettings, StartsSettings
from config.kafka import KafkaSettings
from tests.helpers.workflow_api import NOW_MS, Catalogue, Commands, InputField, client, workflow

EXECUTE = "/api/v1/workflows/press-overheat/execute"
STREAM = "/api/v1/executions/a/stream"


class Whole:
    """All routes; the index is not open, and there is no broker."""

    def __init__(self, folder: Path) -> None:
        http = HttpSettings(executions=ExecutionsSettings(directory=str(folder), catch_up_wait_ms=1))
        self.index = ExecutionIndex(http.executions, b"")
        starter = Starter(StartsSettings(), 1000, lambda: NOW_MS, Catalogue(workflow()), InputField(), Commands())
        access = Access(http, starter, self.index)
        feed = DefinitionsFeed(KafkaSettings(), "127.0.0.1:1", http.read_model)
        self.app = api_app(
            Reads(ReadModel(ReadModelSettings()), http, lambda: NOW_MS, lambda: True),
            LocalView(HealthRegistry(frozenset({"api-gateway"}), "1.0"), REGISTRY, dict),
            http,
            access,
            LetterIndex(TopicReader(KafkaSettings())),
            WorkflowCatalogue(access, feed, Registry()),
            cluster=ClusterReads(
                MembersTopic(KafkaSettings(), "127.0.0.1:1", http.read_model),
                GroupStates(KafkaSettings(), "127.0.0.1:1"),
                ClusterSettings(),
            ),
        )

    async def ask(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        async with client(self.app) as asking:
            return await asking.request(method, path, **kwargs)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Whole]:
    made = Whole(tmp_path)
    yield made
    made.index.close()


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/api/v1/workflows", "GET, HEAD, OPTIONS, POST"),
        ("/api/v1/schedules/nightly", "DELETE, GET, HEAD, OPTIONS, PUT"),
        ("/api/v1/executions", "GET, HEAD, OPTIONS"),
        ("/api/v1/executions:cancel", "OPTIONS, POST"),
        ("/api/v1/executions/a/cancel", "OPTIONS, POST"),
        ("/health", "GET, HEAD, OPTIONS"),
        (EXECUTE, "OPTIONS, POST"),
        (f"{EXECUTE}:batch", "OPTIONS, POST"),
        (STREAM, "GET, OPTIONS"),
    ],
)
async def test_every_path_tells_all_its_methods_and_refuses_the_others(api: Whole, path: str, methods: str) -> None:
    for method in ("OPTIONS", "PATCH", "TRACE"):
        answer = await api.ask(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (204 if method == "OPTIONS" else 405, methods)
        if method != "OPTIONS":
            assert answer.json()["detail"] == f"{method} is not served at {path}."


async def test_head_is_get_without_its_body(api: Whole) -> None:
    for path in ("/health/live", "/api/v1/devices", "/api/v1/executions?limit=x", "/api/v1/devices/none"):
        got, head = await api.ask("GET", path), await api.ask("HEAD", path)
        assert (head.status_code, head.headers["content-type"]) == (got.status_code, got.headers["content-type"]), path
        assert head.headers["content-length"] == str(len(got.content)), path
        assert head.content == b""
    assert (await api.ask("HEAD", "/nowhere")).status_code == 404


def _media(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for place in (operation.get("requestBody", {}), *operation["responses"].values()):
        yield from place.get("content", {}).items()


async def test_openapi_has_an_example_of_everything_and_a_problem_for_every_error(api: Whole) -> None:
    for _ in range(2):  # the second document is the first again
        document = (await api.ask("GET", "/openapi.json")).json()
    schemas = document["components"]["schemas"]
    operations = {f"{method} {path}": each for path, of in document["paths"].items() for method, each in of.items()}

    def shown(schema: dict[str, Any]) -> bool:
        of = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        own = {"example", "examples", "default", "enum", "const"} & of.keys()
        return bool(own) or any(map(shown, of.get("anyOf", ())))

    for name, operation in operations.items():
        assert operation["summary"], name
        for parameter in operation.get("parameters", ()):
            assert parameter["description"], (name, parameter)
            assert "example" in parameter or shown(parameter["schema"]), (name, parameter)
        for kind, media in _media(operation):
            assert "example" in media or shown(media["schema"]), (name, kind)
        for code, answer in operation["responses"].items():
            assert code < "400" or list(answer["content"]) == ["application/problem+json"], (name, code)
        if name.startswith("post /api/v1") and "requestBody" in operation:
            assert operation["responses"].keys() >= {"400", "413", "422", "503"}, name
    names = [each["operationId"] for each in operations.values()]
    assert len(names) == len(set(names))
    assert "HTTPValidationError" not in str(document)


async def test_an_example_of_an_answer_has_what_is_required(api: Whole) -> None:
    schemas = (await api.ask("GET", "/openapi.json")).json()["components"]["schemas"]
    page = schemas["ExecutionsPage"]["examples"][0]
    assert page["items"] == [schemas["ExecutionView"]["examples"][0]]
    for name in ("ScheduleTold", "BackfillTold", "HistoryPage", "Page_DeadLetterView_"):
        example, properties = schemas[name]["examples"][0], schemas[name]["properties"]
        assert set(schemas[name]["required"]) <= example.keys() <= properties.keys(), name
