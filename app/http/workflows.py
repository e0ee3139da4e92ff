"""Routes of workflows: register, list, read definitions and versions."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, HTTPException, Path, Query, Request
from starlette.responses import Response

from app.adapters.definitions_feed import DefinitionsFeed
from app.definition_wire import Definition, registration
from app.definitions.checks import TaskTypes
from app.definitions.problems import Problem
from app.definitions.reading import Reading, read_definition
from app.errors import BrokerUnavailable, Unavailable
from app.http import problems
from app.http.paging import decode_cursor, encode_cursor, page
from app.http.problems import NOT_FOUND, UNAVAILABLE
from app.http.query import Cursor, Limit
from app.http.schemas import Page
from app.http.strict import StrictRoute
from app.http.workflow_access import Access
from app.http.workflow_schemas import (
    DEFINITION_JSON,
    DEFINITION_YAML,
    DefinitionView,
    RegisteredView,
    VersionView,
    WorkflowView,
)

WorkflowId = Annotated[
    str, Path(description="Id of the workflow.", examples=["press-overheat"], min_length=1, max_length=128)
]
Version = Annotated[str, Path(description="A version.", examples=["3f1c9a72b0de"], min_length=1, max_length=64)]
_REFUSED: Final[dict[int | str, dict[str, Any]]] = {
    422: {
        "model": problems.Problem,
        "description": "The definition is not valid: `errors` has every problem with field, line and column.",
    }
}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "One definition, YAML or JSON.",
        "content": {
            "application/json": {"schema": {"type": "object"}, "example": DEFINITION_JSON},
            "application/yaml": {"schema": {"type": "string"}, "example": DEFINITION_YAML},
        },
    }
}


class Catalogue:
    """The registry as routes see it."""

    def __init__(self, access: Access, definitions: DefinitionsFeed, types: TaskTypes) -> None:
        self._access = access
        self._definitions = definitions
        self._types = types
        self._registering = asyncio.Lock()

    def all(self) -> list[Definition]:
        """The latest versions. Raises `Unavailable` while not everything has been read."""
        self._complete()
        found = (self._definitions.definition(workflow) for workflow in self._definitions.workflows())
        return [each for each in found if each is not None]

    def versions(self, workflow: str) -> Sequence[Definition]:
        return self._definitions.versions(workflow)

    def is_latest(self, definition: Definition) -> bool:
        return self._definitions.latest_version(definition.id) == definition.version

    def _complete(self) -> None:
        if not self._definitions.ready:
            raise Unavailable("The definitions have not all been read yet.")

    async def catch_up(self) -> None:
        """Read what is on the topic now. Raises `Unavailable` when that takes too long."""
        try:
            async with asyncio.timeout(self._access.settings.starts.definitions_wait_ms / 1000):
                await self._definitions.caught_up()
        except TimeoutError as error:
            raise Unavailable("The definitions have not all been read yet.") from error

    async def find(self, workflow: str, version: str | None) -> Definition:
        """A version, the latest without one. Raises HTTP 404 only when everything was read."""
        found = self._definitions.definition(workflow, version)
        if found is None:
            await self.catch_up()
            found = self._definitions.definition(workflow, version)
        if found is not None:
            return found
        if version is not None and self._definitions.definition(workflow) is not None:
            raise HTTPException(404, f"Workflow {workflow} has no version {version}.")
        raise HTTPException(404, f"No workflow {workflow} is registered.")

    async def read(self, content: bytes) -> Reading:
        """Checked whole, off the loop."""
        return await asyncio.to_thread(read_definition, content, self._types)

    async def register(self, definition: Definition) -> tuple[Definition, bool]:
        """Make it the latest version, unless it is; as it is known then, and whether anything was written."""
        publisher = self._access.starter.publisher
        if publisher is None:
            raise BrokerUnavailable("The broker has not been reached yet.")
        async with self._registering:  # of two at once the later one is the latest, here as on the topic
            await self.catch_up()
            if self.is_latest(definition):
                return await self.find(definition.id, definition.version), False
            try:
                async with asyncio.timeout(self._access.settings.starts.acknowledge_timeout_s):
                    await publisher.publish(registration(definition, self._access.starter.now_ms()))
            except TimeoutError as error:
                raise BrokerUnavailable("The broker has not acknowledged the definition in time.") from error
            await self.catch_up()
            return await self.find(definition.id, definition.version), True


def workflows_router(access: Access, catalogue: Catalogue) -> APIRouter:
    """The routes below /api/v1/workflows, but for starts."""
    router = APIRouter(prefix="/api/v1/workflows", tags=["workflows"], route_class=StrictRoute)
    _add_registration(router, catalogue)
    _add_reads(router, access, catalogue)
    return router


def _add_registration(router: APIRouter, catalogue: Catalogue) -> None:
    @router.post(
        "",
        status_code=201,
        response_model=RegisteredView,
        responses={200: {"model": RegisteredView, "description": "Nothing new."}, **_REFUSED, **UNAVAILABLE},
        openapi_extra=_BODY,
        summary="Register a definition: a new version, which is the latest from then on",
    )
    async def register(
        request: Request, dry_run: Annotated[bool, Query(description="Only check it.")] = False
    ) -> Response:
        reading = await catalogue.read(await request.body())
        if reading.definition is None:
            return _refused(reading.errors, request.url.path)
        definition, created = reading.definition, False
        if not dry_run:
            definition, created = await catalogue.register(definition)
        body = {
            **_shown(catalogue, definition),
            "created": created,
            "warnings": [_problem(each) for each in reading.warnings],
        }
        return _json(body, 201 if created else 200)


def _add_reads(router: APIRouter, access: Access, catalogue: Catalogue) -> None:
    @router.get("", response_model=Page[WorkflowView], responses=UNAVAILABLE, summary="List workflows by id")
    async def list_workflows(cursor: Cursor = None, limit: Limit = None) -> Response:
        after = decode_cursor(cursor, (str,))
        found, go_on = page(catalogue.all(), lambda each: (each.id,), after, access.limit(limit))
        return _json(
            {
                "items": [_listed(catalogue, each) for each in found],
                "next_cursor": None if go_on is None else encode_cursor(go_on),
            }
        )

    @router.get(
        "/{workflow_id}",
        response_model=DefinitionView,
        responses=NOT_FOUND | UNAVAILABLE,
        summary="Show the latest version of a workflow, or another",
    )
    async def show_workflow(
        workflow_id: WorkflowId,
        version: Annotated[str | None, Query(description="This one.", examples=["3f1c9a72b0de"])] = None,
    ) -> Response:
        return _json(_defined(catalogue, await catalogue.find(workflow_id, version)))

    @router.get(
        "/{workflow_id}/versions",
        response_model=Page[VersionView],
        responses=NOT_FOUND | UNAVAILABLE,
        summary="List the versions of a workflow, newest first",
    )
    async def list_versions(workflow_id: WorkflowId, cursor: Cursor = None, limit: Limit = None) -> Response:
        await catalogue.find(workflow_id, None)
        after = decode_cursor(cursor, (int, str))
        versions = catalogue.versions(workflow_id)
        found, go_on = page(versions, lambda each: (-each.registered_at, each.version), after, access.limit(limit))
        return _json(
            {
                "items": [_shown(catalogue, each) for each in found],
                "next_cursor": None if go_on is None else encode_cursor(go_on),
            }
        )

    @router.get(
        "/{workflow_id}/versions/{version}",
        response_model=DefinitionView,
        responses=NOT_FOUND | UNAVAILABLE,
        summary="Show one version of a workflow",
    )
    async def show_version(workflow_id: WorkflowId, version: Version) -> Response:
        return _json(_defined(catalogue, await catalogue.find(workflow_id, version)))


def _shown(catalogue: Catalogue, definition: Definition) -> dict[str, Any]:
    return {
        "id": definition.id,
        "version": definition.version,
        "registered_at": definition.registered_at,
        "latest": catalogue.is_latest(definition),
    }


def _listed(catalogue: Catalogue, definition: Definition) -> dict[str, Any]:
    document = definition.document
    return {
        **_shown(catalogue, definition),
        "description": document.get("description", ""),
        "versions": len(catalogue.versions(definition.id)),
        "tasks": list(document.get("tasks", ())),
    }


def _defined(catalogue: Catalogue, definition: Definition) -> dict[str, Any]:
    return {**_shown(catalogue, definition), "definition": definition.document}


def _refused(found: Sequence[Problem], path: str) -> Response:
    """422 with every problem of the definition."""
    count = len(found)
    detail = "The definition has a problem." if count == 1 else f"The definition has {count} problems."
    return problems.response(422, detail, path, errors=[_problem(each) for each in found])


def _problem(problem: Problem) -> dict[str, Any]:
    place = {"line": problem.line, "column": problem.column} if problem.line else {}
    return {"field": problem.field, "message": problem.message, **place}


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")
