"""The API of workflows without sockets: definitions from a dict, a publisher that keeps what it is given."""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
from starlette.types import ASGIApp

from app.domain.workflow.definition import Task, Workflow
from app.domain.workflow.expressions import ExpressionError
from app.ports import OutRecord

NOW_MS = 1_763_689_000_000
PARTITIONS = 8


def workflow(workflow_id: str = "press-overheat", version: str = "v1", **fields: Any) -> Workflow:
    """A definition of one task."""
    return Workflow(id=workflow_id, version=version, tasks={"one": Task(name="one", type="transform.cel")}, **fields)


class Catalogue:
    """`app.ports.Definitions` of what it was given; `late` ones are there once it has caught up."""

    def __init__(self, *workflows: Workflow, late: Sequence[Workflow] = (), never: bool = False) -> None:
        self._versions = {(each.id, each.version): each for each in workflows}
        self._latest = {each.id: each for each in workflows}
        self._late = late
        self._never = never

    def get(self, workflow: str, version: str) -> Workflow | None:
        return self._versions.get((workflow, version))

    def latest(self, workflow: str) -> Workflow | None:
        return self._latest.get(workflow)

    async def caught_up(self) -> None:
        if self._never:
            await asyncio.Event().wait()
        self._versions |= {(each.id, each.version): each for each in self._late}
        self._latest |= {each.id: each for each in self._late}


class InputField:
    """Evaluates `input.NAME` and nothing else."""

    def evaluate(self, source: str, names: Any) -> Any:
        try:
            return names["input"][source.removeprefix("input.")]
        except (KeyError, TypeError) as error:
            raise ExpressionError(f"{source} is not there.") from error

    def render(self, params: Any, names: Any) -> Any:
        return params


class Commands:
    """A publisher that keeps commands; `failure` is raised instead, and `never` keeps them waiting."""

    def __init__(self) -> None:
        self.records: list[OutRecord] = []
        self.failure: Exception | None = None
        self.never = False

    async def partitions(self, topic: str) -> int:
        return PARTITIONS

    async def publish(self, records: Sequence[OutRecord]) -> None:
        if self.never:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        self.records += records

    def last_offset(self, topic: str, partition: int) -> int | None:
        return None


def client(app: ASGIApp, address: str = "127.0.0.1") -> httpx.AsyncClient:
    """Requests to `app` from `address`."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(address, 1))
    return httpx.AsyncClient(transport=transport, base_url="http://headrace", trust_env=False)
