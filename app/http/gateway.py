"""The role `api-gateway`: the API port, the read model behind it, and the way of commands to Kafka."""

import asyncio
import os
import time
from collections.abc import Callable

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

import app
from app.adapters.read_feed import ReadFeed
from app.http import ops, problems
from app.http.asgi import Limited
from app.http.config import document
from app.http.devices import devices_router
from app.http.forward import ForwardView
from app.http.health import Check, HealthRegistry
from app.http.read_model import ReadModel
from app.http.reads import Reads
from app.http.rollups import rollups_router
from app.http.schemas import LedgerView
from app.http.server import HttpServer, bind
from app.http.signals import signals_router
from app.http.view import PATHS, SUPERVISOR_URL, LocalView, OpsView
from app.metrics import REGISTRY
from app.ports import Publisher
from config.http import HttpSettings
from config.settings import Settings


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def api_app(reads: Reads, view: OpsView, settings: HttpSettings) -> ASGIApp:
    """The API with its documentation, and the operational endpoints for convenience."""
    api: FastAPI = FastAPIOffline(
        title="Headrace",
        version=app.__version__,
        description="Devices, rollups and signals as read from Kafka, and commands to the fleet.",
        redoc_url=None,
        swagger_ui_oauth2_redirect_url="/docs/oauth2-redirect",
    )
    for router in (devices_router(reads), rollups_router(reads), signals_router(reads)):
        api.include_router(router)
    _add_operations(api, view)
    problems.install(api)
    api.add_exception_handler(RequestValidationError, on_invalid_request)
    return Limited(api, body_limit_bytes=settings.body_limit_bytes, request_timeout_s=settings.request_timeout_s)


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
        responses={200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}}},
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
    ) -> None:
        self._settings = settings
        self._health = health
        self._local = LocalView(health, REGISTRY, lambda: document(current() if current else settings))
        url = supervisor_url or os.environ.get(SUPERVISOR_URL)
        self._forward = ForwardView(url, self._local) if url else None
        model = ReadModel(settings.http.read_model)
        self.feed = ReadFeed(
            settings.kafka, bootstrap_servers, settings.http.read_model, model.take, model.forget_sequences
        )
        self.reads = Reads(model, settings.http, now_ms, lambda: self.feed.caught_up)
        self._server: HttpServer | None = None

    @property
    def publisher(self) -> Publisher | None:
        return self.reads.publisher

    @publisher.setter
    def publisher(self, publisher: Publisher) -> None:
        self.reads.publisher = publisher

    @property
    def url(self) -> str:
        assert self._server is not None, "the gateway is open"
        return self._server.url

    async def open(self) -> None:
        """Answer on the API port; raises `EnvironmentError_` when it is taken."""
        http = self._settings.http
        listening = bind(http.host, http.port, "the HTTP API", "http.port")
        asgi = api_app(self.reads, self._forward or self._local, http)
        self._server = HttpServer(asgi, listening, keep_alive_s=http.keep_alive_s, connections_max=http.connections_max)
        self._health.add("read model", self._check)
        await self._server.start()

    async def run(self, stop: asyncio.Event) -> None:
        """Feed the read model until `stop`, then answer what was asked and close the port."""
        try:
            await self.feed.run(stop)
        finally:
            await self.close()

    async def close(self) -> None:
        self._health.remove("read model")
        if self._server is not None:
            await self._server.stop()
        if self._forward is not None:
            await self._forward.close()

    def _check(self) -> Check:
        feed = self.feed
        sizes = ", ".join(f"{count} {name}" for name, count in self.reads.model.sizes.items())
        if not feed.connected:
            return Check(ok=False, detail=f"waits for Kafka; {sizes}")
        state = "complete" if feed.caught_up else "catching up"
        return Check(feed.caught_up, f"{state}, lag {feed.lag} records; {sizes}")
