"""Laws of registering and reading workflows over HTTP, on a real broker; and of the document that tells of the API."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.helpers.gateway import Node, node

pytestmark = pytest.mark.broker

TEXT = """\
id: press-overheat
description: first
tasks:
  one: {type: transform.cel, with: {from: input.rows, filter: "row.temperature > 90"}}
"""
METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture(scope="module")
def api(module_broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with node(module_broker, tmp_path_factory.mktemp("one")) as made:
        made.until_ready()
        yield made


@pytest.fixture
def http(api: Node) -> Iterator[httpx.Client]:
    with api.client() as client:
        yield client


def _register(http: httpx.Client, text: str, **kwargs: Any) -> httpx.Response:
    return http.post("/api/v1/workflows", content=text.encode(), **kwargs)


def test_a_definition_becomes_a_version_that_can_be_started_at_once(http: httpx.Client) -> None:
    first = _register(http, TEXT)
    assert (first.status_code, first.json()["created"], first.json()["latest"]) == (201, True, True), first.text
    assert _register(http, TEXT).status_code == 200
    as_json = http.post("/api/v1/workflows", json=yaml.safe_load(TEXT))
    assert (as_json.status_code, as_json.json()["version"]) == (200, first.json()["version"])
    second = _register(http, TEXT.replace("first", "second")).json()
    started = http.post("/api/v1/workflows/press-overheat/execute", json={})
    assert started.json()["version"] == second["version"]
    old = http.post(f"/workflows/press-overheat/execute?version={first.json()['version']}")
    assert old.json()["version"] == first.json()["version"]
    shown = http.get("/api/v1/workflows/press-overheat").json()
    assert (shown["version"], shown["definition"]["description"]) == (second["version"], "second")
    other = http.get("/api/v1/workflows/press-overheat", params={"version": first.json()["version"]}).json()
    assert (other["definition"]["description"], other["latest"]) == ("first", False)
    versions = http.get("/api/v1/workflows/press-overheat/versions", params={"limit": 1}).json()
    assert versions["next_cursor"]
    rest = http.get("/api/v1/workflows/press-overheat/versions", params={"cursor": versions["next_cursor"]}).json()
    assert {each["version"] for each in (*versions["items"], *rest["items"])} == {shown["version"], other["version"]}
    [listed] = [each for each in http.get("/api/v1/workflows").json()["items"] if each["id"] == "press-overheat"]
    assert (listed["versions"], listed["tasks"]) == (2, ["one"])


def test_every_problem_of_a_definition_is_told_with_its_place(http: httpx.Client) -> None:
    text = (
        "id: press\ncolour: red\ntasks:\n  one: {type: transform.cell}\n  two: {type: transform.cel, needs: [three]}\n"
    )
    answer = _register(http, text)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    errors = answer.json()["errors"]
    assert {(each["line"], each["field"].split(".")[0]) for each in errors} >= {
        (2, "colour"),
        (4, "tasks"),
        (5, "tasks"),
    }
    assert all(each["message"] for each in errors)
    for bad in ("", "a: [", "[1]", "\x00", "id: x"):
        assert _register(http, bad).status_code == 422, bad
    assert http.get("/api/v1/workflows/press").status_code == 404


def test_a_definition_can_be_checked_without_being_registered(http: httpx.Client) -> None:
    answer = _register(http, TEXT.replace("press-overheat", "only-checked"), params={"dry_run": True})
    assert (answer.status_code, answer.json()["created"]) == (200, False)
    assert http.get("/api/v1/workflows/only-checked").status_code == 404


def test_what_is_not_registered_is_404(http: httpx.Client) -> None:
    _register(http, TEXT)
    for path in ("nothing", "nothing/versions", "press-overheat/versions/0000", "press-overheat?version=0000"):
        answer = http.get(f"/api/v1/workflows/{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path


def test_another_node_knows_a_workflow_too(http: httpx.Client, module_broker: str, tmp_path: Path) -> None:
    with node(module_broker, tmp_path) as other, other.client() as there:
        other.until_ready()
        for number in range(5):
            name = f"flow-{number}"
            assert _register(http, TEXT.replace("press-overheat", name)).status_code == 201
            assert there.post(f"/workflows/{name}/execute").status_code == 202


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        found: dict[str, Any] = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
        schema = found
    return schema


def _has_example(document: dict[str, Any], media: dict[str, Any]) -> bool:
    """An example of the answer, or of what it is made of."""
    return "example" in media or "examples" in media or _shape_has_example(document, media.get("schema", {}))


def _shape_has_example(document: dict[str, Any], schema: dict[str, Any], depth: int = 0) -> bool:
    found = _resolved(document, schema)
    if found.get("examples") or "example" in found:
        return True
    parts = [*found.get("anyOf", ()), *found.get("properties", {}).values(), found.get("items", {})]
    return depth < 4 and any(_shape_has_example(document, part, depth + 1) for part in parts if part)


def test_the_document_has_every_route_with_examples(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    paths = document["paths"]
    assert paths.keys() >= {
        "/api/v1/workflows",
        "/api/v1/workflows/{workflow_id}",
        "/api/v1/workflows/{workflow_id}/execute",
        "/workflows/{workflow_id}/execute",
        "/api/v1/workflows/{workflow_id}/execute:batch",
        "/api/v1/executions",
        "/api/v1/executions/{execution_id}",
        "/api/v1/executions/{execution_id}/history",
        "/api/v1/executions/{execution_id}/stream",
        *(f"/api/v1/executions/{{execution_id}}/{order}" for order in ("cancel", "pause", "resume", "retry")),
        "/api/v1/executions/{execution_id}/signal/{name}",
        "/api/v1/executions:{action}",
    }
    names: list[str] = []
    for path, methods in paths.items():
        for method, route in methods.items():
            assert method in METHODS
            names.append(route["operationId"])
            assert route["summary"], (method, path)
            if "operations" in route["tags"]:
                continue
            for each in route.get("requestBody", {}).get("content", {}).values():
                assert _has_example(document, each), (method, path, "body")
            for code, answer in route["responses"].items():
                assert answer["description"], (method, path, code)
                if "application/problem+json" not in answer.get("content", {}):
                    for each in answer.get("content", {}).values():
                        assert _has_example(document, each) or code == "422", (method, path, code)
    assert len(names) == len(set(names)), "operation ids name one route each"
