"""The registry of task types: built-in ones, plug-ins, and plug-ins that are broken."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from textwrap import dedent

import pytest

from app.adapters.tasks.registry import BUILT_IN, GROUP, Registry
from app.adapters.tasks.types.transform_python import _registered
from app.errors import TaskFailed
from tests.helpers.task_calls import tasks

PLUGIN = '''
    """The example of docs/tasks.md."""

    from pydantic import BaseModel, ConfigDict

    from app.adapters.tasks.protocol import Kind, TaskCall, TaskFailed


    class Params(BaseModel):
        model_config = ConfigDict(extra="forbid")
        celsius: float


    class Fahrenheit:
        name = "acme.fahrenheit"
        params_model = Params
        kind: Kind = "async"
        pure = True

        async def run(self, call: TaskCall[Params]) -> float:
            if call.params.celsius < -273.15:
                raise TaskFailed("BelowZero", "nothing is so cold", retryable=False)
            return call.params.celsius * 9 / 5 + 32


    class Broken(Fahrenheit):
        def __init__(self):
            raise RuntimeError("no licence")


    class Nameless(Fahrenheit):
        name = "acme.other"


    def half(rows):
        return [row / 2 for row in rows]


    class Idle:
        name = "acme.idle"
        params_model = Params
        kind = "process"
        pure = False
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution with entry points, as pip would leave it on the path."""
    (tmp_path / "acme_tasks.py").write_text(dedent(PLUGIN))
    about = tmp_path / "acme_tasks-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-tasks\nVersion: 1.0\n")
    entries = {
        "acme.fahrenheit": "acme_tasks:Fahrenheit", "acme.broken": "acme_tasks:Broken",
        "acme.nameless": "acme_tasks:Nameless",
        "acme.idle": "acme_tasks:Idle", "acme.gone": "acme_no_such_module:X", "sink.sql": "acme_tasks:Fahrenheit",
    }  # fmt: skip
    lines = "\n".join(f"{name} = {place}" for name, place in entries.items())
    (about / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}\n\n[headrace.functions]\nhalf = acme_tasks:half\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "acme_tasks", raising=False)
    return tmp_path


async def test_an_installed_plug_in_is_a_task_type_like_any_other(installed: Path) -> None:
    async with tasks(installed) as run:
        assert await run.run("acme.fahrenheit", celsius=100) == 212.0
        failed = await run.failure("acme.fahrenheit", celsius=-300)
        assert (failed.type, failed.retryable) == ("BelowZero", False)


async def test_an_installed_function_is_called_by_its_name(installed: Path) -> None:
    _registered.cache_clear()
    async with tasks(installed) as run:
        assert await run.run("transform.python", [4], function="half", mode="thread") == [2]
        assert (await run.failure("transform.python", [4], function="quarter")).type == "FunctionRefused"
    _registered.cache_clear()


def test_a_broken_plug_in_is_named_and_takes_nobody_down(installed: Path) -> None:
    registry = Registry()
    problems = registry.check()
    assert set(problems) == {"acme.broken", "acme.nameless", "acme.idle", "acme.gone", "sink.sql"}
    assert "no licence" in problems["acme.broken"]
    assert "acme.other" in problems["acme.nameless"]
    assert "run_sync" in problems["acme.idle"]
    assert "acme_no_such_module" in problems["acme.gone"]
    with pytest.raises(TaskFailed) as failed:
        registry.get("acme.broken")
    assert (failed.value.type, failed.value.retryable) == ("BrokenPlugin", False)
    assert registry.get("acme.fahrenheit").name == "acme.fahrenheit"


def test_no_plug_in_takes_the_place_of_a_built_in_type(installed: Path) -> None:
    assert type(Registry().get("sink.sql")).__module__.startswith("app.")


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_type_is_whole(name: str) -> None:
    registry = Registry([])
    task_type = registry.get(name)
    assert task_type.name == name
    assert registry.check() == {}
    assert all(field.description for field in task_type.params_model.model_fields.values())


def test_an_unknown_type_is_named_with_its_neighbour() -> None:
    with pytest.raises(TaskFailed, match=r"source\.sqll.*did you mean source\.sql\?") as failed:
        Registry([]).get("source.sqll")
    assert (failed.value.type, failed.value.retryable) == ("UnknownTaskType", False)


def test_no_type_has_the_name_of_what_the_engine_does_itself() -> None:
    registry = Registry([EntryPoint("wait", "json:dumps", GROUP)])
    assert "wait" in registry.problems
    assert "wait" not in registry.names()
