"""A partition of entities without Kafka: rows in a dict, timers that the test fires, definitions that it lists."""

from collections.abc import Mapping
from typing import Any

import msgspec

from agents.engine_entities import EntityCommand, EntityOutcome
from agents.schedules import Timekeeper
from app.domain.workflow.commands import Cancel, Start
from app.domain.workflow.definition import Concurrency, Rate, Task, TopicTrigger, Workflow
from app.domain.workflow.expressions import ExpressionError


def a_workflow(
    workflow: str = "press-overheat",
    *,
    version: str = "v1",
    concurrency: Concurrency | None = None,
    rate: Rate | None = None,
    topics: tuple[TopicTrigger, ...] = (),
) -> Workflow:
    task = Task(name="only", type="transform.cel")
    return Workflow(
        id=workflow, version=version, tasks={"only": task}, concurrency=concurrency, rate=rate, topics=topics
    )


class Known:
    """Definitions (`app.ports.Definitions`) that are simply there."""

    def __init__(self, *workflows: Workflow) -> None:
        self.workflows = list(workflows)

    def get(self, workflow: str, version: str) -> Workflow | None:
        return next((each for each in self.workflows if (each.id, each.version) == (workflow, version)), None)

    def latest(self, workflow: str) -> Workflow | None:
        return next((each for each in reversed(self.workflows) if each.id == workflow), None)

    async def caught_up(self) -> None:
        """Everything is known."""


class Paths:
    """Expressions that are a path of names, or a path, ` == ` and a word."""

    def evaluate(self, source: str, names: Mapping[str, Any]) -> Any:
        path, _, word = source.partition(" == ")
        found: Any = names
        for name in path.split("."):
            if not isinstance(found, Mapping) or name not in found:
                raise ExpressionError(f"{source}: there is no {name}")
            found = found[name]
        return found == word if word else found

    def render(self, params: Any, names: Mapping[str, Any]) -> Any:
        raise AssertionError("nothing here is rendered")


class World:
    """One partition of `Timekeeper` with its clock."""

    def __init__(self, *workflows: Workflow, now_ms: int, partitions: int = 4) -> None:
        self.now_ms = now_ms
        self.rows: dict[bytes, bytes] = {}
        self.timers: dict[tuple[str, str], int] = {}
        self.definitions = Known(*workflows)
        self.starts: list[Start] = []
        self.cancels: list[Cancel] = []
        self.summaries: dict[str, dict[str, Any] | None] = {}
        self.told_of = 0
        self.keeper = Timekeeper(self.rows.get, self.definitions, Paths(), lambda: partitions)

    def tell(self, command: Any) -> EntityOutcome:
        body = msgspec.json.decode(msgspec.json.encode(command))
        return self._keep(
            body["entity_id"], self.keeper.take(EntityCommand(body["entity_id"], body["type"], body), self.now_ms)
        )

    def ended(self, entity_id: str, execution_id: str, status: str = "succeeded") -> EntityOutcome:
        body = {"type": "entity_told", "entity_id": entity_id, "execution_id": execution_id, "status": status}
        return self._keep(entity_id, self.keeper.take(EntityCommand(entity_id, "entity_told", body), self.now_ms))

    def pass_to(self, now_ms: int) -> None:
        """Let the clock go on, and fire each timer when it is due."""
        while due := [(at, key) for key, at in self.timers.items() if at <= now_ms]:
            at, (entity_id, name) = min(due)
            self.fire(entity_id, name, at)
        self.now_ms = now_ms

    def jump_to(self, now_ms: int) -> None:
        """Set the clock; what is due by it fires late."""
        self.now_ms = now_ms
        for (entity_id, name), at in sorted(self.timers.items()):
            if at <= now_ms:
                self.fire(entity_id, name, at)

    def fire(self, entity_id: str, name: str, at: int) -> None:
        del self.timers[entity_id, name]
        self.now_ms = max(self.now_ms, at)
        self._keep(entity_id, self.keeper.timer(entity_id, name, at, self.now_ms))

    def _keep(self, entity_id: str, outcome: EntityOutcome) -> EntityOutcome:
        for key, value in outcome.rows.items():
            if value is None:
                del self.rows[key]
            else:
                self.rows[key] = value
        for change in outcome.timers:
            if change.due_ms is None:
                self.timers.pop((entity_id, change.name), None)
            else:
                self.timers[entity_id, change.name] = change.due_ms
        self.starts += outcome.starts
        self.cancels += outcome.cancels
        for record in outcome.summaries:
            self.told_of += 1
            assert record.key is not None
            self.summaries[record.key.decode()] = None if record.value is None else msgspec.json.decode(record.value)
        return outcome
