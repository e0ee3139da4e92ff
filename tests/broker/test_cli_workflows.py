"""Laws of `headrace workflows` against the real API and broker."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.domain.workflow.definition import Workflow
from tests.helpers.cli import ROOT, Answer, refused, said
from tests.helpers.gateway import Node, node

pytestmark = pytest.mark.broker
FIRST = "id: first\ndescription: one\ntasks: {a: {type: wait, with: {seconds: 1}}}\n"
SECOND = 'id: second\ntasks: {a: {type: sink.http, with: {url: "https://me:pw@x"}}}\n'
BAD = "id: third\ntasks:\n  a: {type: wait, with: {seconds: -1}, tiemout_s: 3}\n"


@pytest.fixture(scope="module")
def api(module_broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with node(module_broker, tmp_path_factory.mktemp("node")) as made:
        made.until_ready()
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text(FIRST)
    (tmp_path / "b.yaml").write_text(SECOND)
    return tmp_path


def ask(capsys: pytest.CaptureFixture[str], api: Node, *arguments: str) -> Answer:
    answer = said(capsys, "workflows", *arguments, "--url", api.url)
    assert answer.code == 0, answer
    return answer


def latest(api: Node, workflow: str) -> Workflow | None:
    assert api.gateway is not None
    return api.gateway.definitions.latest(workflow)


def test_when_one_file_is_not_valid_none_is_applied(
    capsys: pytest.CaptureFixture[str], api: Node, folder: Path
) -> None:
    (folder / "c.yaml").write_text(BAD)
    answer = said(capsys, "workflows", "apply", str(folder), "--url", api.url)
    assert (answer.code, answer.out) == (2, "")
    lines = answer.err.splitlines()
    assert lines[0].endswith("c.yaml:3:26 tasks.a.with.seconds: must be at least 0, not -1")
    assert lines[1].endswith("c.yaml:3:40 tasks.a.tiemout_s: unknown field; did you mean timeout_s?")
    assert lines[2].endswith("1 of 3 files are not valid, nothing was applied.")
    assert latest(api, "first") is None


def test_what_is_applied_is_registered_listed_and_shown_so_that_it_can_be_applied_again(
    capsys: pytest.CaptureFixture[str], api: Node, folder: Path, tmp_path: Path
) -> None:
    assert "valid" in ask(capsys, api, "apply", str(folder), "--dry-run").out
    assert latest(api, "first") is None
    applied = ask(capsys, api, "apply", str(folder), "--json")
    assert [(one["id"], one["created"]) for one in applied.json["items"]] == [("first", True), ("second", True)]
    assert "b.yaml:2:37 warning: tasks.a.with.url: has a password in clear" in applied.err
    version = applied.json["items"][0]["version"]
    found = latest(api, "first")
    assert found is not None
    assert found.version == version
    assert "is the latest already" in ask(capsys, api, "apply", str(folder / "a.yaml")).out

    shown = ask(capsys, api, "show", "first").out
    assert shown.startswith(f"# first, version {version}, registered ")
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    assert "is the latest already" in ask(capsys, api, "apply", str(again)).out
    assert ask(capsys, api, "show", "first", "--json").json["definition"]["description"] == "one"

    (folder / "a.yaml").write_text(FIRST.replace("one", "two"))
    second = ask(capsys, api, "apply", str(folder / "a.yaml"), "--json").json["items"][0]["version"]
    versions = ask(capsys, api, "show", "first", "--versions", "--json").json["items"]
    assert {(one["version"], one["latest"]) for one in versions} == {(second, True), (version, False)}
    assert ask(capsys, api, "show", "first", "--version", version, "--json").json["latest"] is False
    assert version in ask(capsys, api, "show", "first", "--versions").out

    listed = {one["id"]: one for one in ask(capsys, api, "list", "--json").json["items"]}
    assert (listed["first"]["version"], listed["first"]["versions"]) == (second, 2)
    assert "two" in ask(capsys, api, "list").out


def test_the_examples_are_taken_whole(capsys: pytest.CaptureFixture[str], api: Node) -> None:
    applied = ask(capsys, api, "apply", str(ROOT / "config" / "workflows"), "--json").json["items"]
    assert {one["id"] for one in applied} == {path.stem for path in (ROOT / "config" / "workflows").glob("*.yaml")}
    assert [one["warnings"] for one in applied] == [[]] * len(applied)


def test_an_unknown_workflow_is_said_so(capsys: pytest.CaptureFixture[str], api: Node) -> None:
    assert "No workflow absent" in refused(capsys, "workflows", "show", "absent", "--url", api.url)
