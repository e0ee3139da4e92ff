"""The role `api-gateway`: the API port, the read model behind it, and the way of commands to Kafka."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

import app
from app.adapters.definitions_feed import DefinitionsFeed
from app.adapters.execution_feed import TOPICS, configuration
from app.adapters.expressions import CelExpressions
from app.adapters.group_states import GroupStates
from app.adapters.members_topic import MembersTopic
from app.adapters.read_feed import ReadFeed
from app.adapters.tasks.registry import Registry
from app.adapters.topic_reader import TopicReader
from app.adapters.workflow_letters import LetterIndex
from app.http import ops, problems
from app.http.asgi import HeadAsGet, Limited, RateLimited
from app.http.backfills import backfills_router
from app.http.cluster import ClusterReads, cluster_router
from app.http.config import document
from app.http.dead_letters import dead_letters_router
from app.http.devices import devices_router
from app.http.execution_bulk import bulk_router
from app.http.execution_index import ExecutionIndex
from app.http.execution_stream import StreamRoutes
from app.http.executions import executions_router
from app.http.forward import ForwardView
from app.http.health import Check, HealthRegistry
from app.http.openapi import complete
from app.http.rate import Rates
from app.http.read_model import ReadModel
from app.http.reads import Reads
from app.http.rollups import rollups_router
from app.http.schedules import schedules_router
from app.http.schemas import LedgerView
from app.http.server import HttpServer, bind
from app.http.signals import signals_router
from app.http.start import CommandPublisher, Starter
from app.http.start_routes import StartRoutes
from app.http.tracing import TracedStarts
from app.http.view import PATHS, SUPERVISOR_URL, LocalView, OpsView
from app.http.workflow_access import Access
from app.http.workflow_docs import add_documented
from app.http.workflows import Catalogue, workflows_router
from app.metrics import REGISTRY
from app.ports import Tracing
from app.task_ends import Parts
from config.http import HttpSettings
from config.settings import Settings

_EXPOSITION: Final = {"schema": {"type": "string"}, "example": "workflow_executions_active 3.0"}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def api_app(
    reads: Reads,
    view: OpsView,
    settings: HttpSettings,
    access: Access | None = None,
    letters: LetterIndex | None = None,
    catalogue: Catalogue | None = None,
    tracing: Tracing | None = None,
    cluster: ClusterReads | None = None,
) -> ASGIApp:
    """The API with its documentation, and the operational endpoints for convenience.

    Without `access` there are no workflows, only devices; without `cluster` nothing of the nodes.
    """
    api: FastAPI = FastAPIOffline(
        title="Headrace",
        version=app.__version__,
        description="Workflows and their executions; devices, rollups and signals as read from Kafka.",
        redoc_url=None,
        swagger_ui_oauth2_redirect_url="/docs/oauth2-redirect",
    )
    for router in (devices_router(reads), rollups_router(reads), signals_router(reads)):
        api.include_router(router)
    if access is not None:
        for router in (
            executions_router(access),
            bulk_router(access),
            schedules_router(access),
            backfills_router(access),
        ):
            api.include_router(router)
        add_documented(api)
    if access is not None and catalogue is not None:
        api.include_router(workflows_router(access, catalogue))
    if access is not None and letters is not None:
        api.include_router(dead_letters_router(access, letters))
    if cluster is not None:
        api.include_router(cluster_router(cluster))
    _add_operations(api, view)
    complete(api)
    problems.install(api)
    api.add_exception_handler(RequestValidationError, on_invalid_request)
    served: ASGIApp = api
    if settings.rate_per_s:
        served = RateLimited(api, Rates(settings.rate_per_s, settings.rate_burst))
    limited = HeadAsGet(
        Limited(served, body_limit_bytes=settings.body_limit_bytes, request_timeout_s=settings.request_timeout_s)
    )
    if access is None:
        return limited
    starts: ASGIApp = StartRoutes(limited, access.starter, access.index, read_timeout_s=settings.request_timeout_s)
    if tracing is not None:
        starts = TracedStarts(starts, tracing)
    return StreamRoutes(starts, access.index, settings.executions)


def _add_operations(api: FastAPI, view: OpsView) -> None:
    for part, path in PATHS.items():
        api.add_api_route(
            path,
            ops.health_endpoint(view, part),
            tags=["operations"],
            summary=f"Health: {part}",
            response_model=None,
            operation_id=f"health_{part}",
            responses={503: {"description": "Not so."}},
        )
    api.add_api_route(
        "/metrics",
        ops.metrics_endpoint(view),
        tags=["operations"],
        summary="Prometheus exposition, OpenMetrics by Accept",
        response_model=None,
        response_class=PlainTextResponse,
        responses={200: {"content": {"text/plain": _EXPOSITION, "application/openmetrics-text": _EXPOSITION}}},
    )
    api.add_api_route(
        "/config", ops.config_endpoint(view), tags=["operations"], summary="Settings in force", response_model=None
    )
    api.add_api_route(
        "/api/v1/ledger",
        ops.ledger_endpoint(view),
        tags=["operations"],
        summary="What became of every record",
        response_model=None,
        responses={200: {"model": LedgerView}},
    )


async def on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [{"field": ".".join(str(part) for part in e["loc"]), "message": str(e["msg"])} for e in error.errors()]
    detail = "A field is not valid." if len(errors) == 1 else f"{len(errors)} fields are not valid."
    return problems.response(422, detail, request.url.path, errors=errors)


class Gateway:
    """The life of the role. `open` needs no broker; set `publisher` once there is one."""

    def __init__(
        self,
        settings: Settings,
        health: HealthRegistry,
        *,
        bootstrap_servers: str,
        supervisor_url: str | None = None,
        current: Callable[[], Settings] | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._settings = settings
        self._tracing = tracing
        self._health = health
        self._local = LocalView(health, REGISTRY, lambda: document(current() if current else settings))
        url = supervisor_url or os.environ.get(SUPERVISOR_URL)
        self._forward = ForwardView(url, self._local) if url else None
        model = ReadModel(settings.http.read_model)
        self.feed = ReadFeed(
            settings.kafka, bootstrap_servers, settings.http.read_model, model.take, model.forget_sequences
        )
        self.reads = Reads(model, settings.http, now_ms, lambda: self.feed.caught_up)
        self.definitions = DefinitionsFeed(settings.kafka, bootstrap_servers, settings.http.read_model)
        first = configuration(settings.kafka, bootstrap_servers, settings.http.executions, settings.log, TOPICS)
        self.access = Access(
            settings.http,
            Starter(settings.http.starts, settings.workflow.input_bytes, now_ms, self.definitions, CelExpressions()),
            ExecutionIndex(settings.http.executions, first),
        )
        self.cluster = ClusterReads(
            MembersTopic(settings.kafka, bootstrap_servers, settings.http.read_model),
            GroupStates(settings.kafka, bootstrap_servers),
            settings.cluster,
        )
        self._catalogue = Catalogue(self.access, self.definitions, Registry())
        self._streams: StreamRoutes | None = None
        self._server: HttpServer | None = None

    @property
    def publisher(self) -> CommandPublisher | None:
        return self.access.starter.publisher

    @publisher.setter
    def publisher(self, publisher: CommandPublisher) -> None:
        self.reads.publisher = publisher
        self.access.starter.publisher = publisher

    @property
    def url(self) -> str:
        assert self._server is not None, "the gateway is open"
        return self._server.url

    async def open(self) -> None:
        """Answer on the API port; raises `EnvironmentError_` when it is taken."""
        http = self._settings.http
        listening = bind(http.host, http.port, "the HTTP API", "http.port")
        letters = LetterIndex(TopicReader(self._settings.kafka))
        view = self._forward or self._local
        asgi = api_app(self.reads, view, http, self.access, letters, self._catalogue, self._tracing, self.cluster)
        self._streams = asgi if isinstance(asgi, StreamRoutes) else None
        self._server = HttpServer(
            asgi,
            listening,
            keep_alive_s=http.keep_alive_s,
            connections_max=http.connections_max,
            head_timeout_s=http.head_timeout_s,
            stalled_s=http.stalled_s,
        )
        self._health.add("read model", self._check)
        self._health.add("executions", self.access.index.check)
        self._health.add("workflows", self._check_definitions)
        await self._server.start()

    async def run(self, stop: asyncio.Event) -> None:
        """Feed what the API reads until `stop`, then answer what was asked and close the port."""
        try:
            async with Parts() as feeds:
                feeds.create_task(self.feed.run(stop), name="read model")
                feeds.create_task(self.definitions.run(stop), name="definitions")
                feeds.create_task(self.access.index.run(stop), name="executions")
                feeds.create_task(self.cluster.members.run(stop), name="members")
        finally:
            await self.close()

    async def close(self) -> None:
        for name in ("read model", "executions", "workflows"):
            self._health.remove(name)
        if self._streams is not None:
            self._streams.close()
        if self._server is not None:
            await self._server.stop()
        self.access.index.close()
        if self._forward is not None:
            await self._forward.close()

    def _check_definitions(self) -> Check:
        return Check(self.definitions.ready, f"{len(self.definitions.workflows())} workflows")

    def _check(self) -> Check:
        feed = self.feed
        sizes = ", ".join(f"{count} {name}" for name, count in self.reads.model.sizes.items())
        if not feed.connected:
            return Check(ok=False, detail=f"waits for Kafka; {sizes}")
        state = "complete" if feed.caught_up else "catching up"
        return Check(feed.caught_up, f"{state}, lag {feed.lag} records; {sizes}")
