"""The operational endpoints as a bare application: health, metrics, settings, ledger."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from app.http import problems
from app.http.asgi import Limited
from app.http.health import Part
from app.http.view import PATHS, Answer, OpsView

Group = Literal["health", "metrics", "config", "ledger"]
EVERYTHING: tuple[Group, ...] = ("health", "metrics", "config", "ledger")
Endpoint = Callable[[Request], Awaitable[Response]]


def to_response(answer: Answer) -> Response:
    # Set as a header, because Starlette would add a charset of its own to text types.
    return Response(answer.body, status_code=answer.status, headers={"content-type": answer.content_type})


def health_endpoint(view: OpsView, part: Part) -> Endpoint:
    async def health(_: Request) -> Response:
        return to_response(await view.health(part))

    return health


def metrics_endpoint(view: OpsView) -> Endpoint:
    async def metrics(request: Request) -> Response:
        return to_response(await view.metrics(request.headers.get("accept", "")))

    return metrics


def config_endpoint(view: OpsView) -> Endpoint:
    async def config(_: Request) -> Response:
        return to_response(await view.config())

    return config


def ledger_endpoint(view: OpsView) -> Endpoint:
    async def ledger(_: Request) -> Response:
        return to_response(await view.ledger())

    return ledger


def ops_app(view: OpsView, groups: Sequence[Group] = EVERYTHING) -> ASGIApp:
    """An application that serves the groups asked for, on ports that speak of nothing else."""
    routes: list[Route] = []
    if "health" in groups:
        routes += [Route(path, health_endpoint(view, part)) for part, path in PATHS.items()]
    if "metrics" in groups:
        routes.append(Route("/metrics", metrics_endpoint(view)))
    if "config" in groups:
        routes.append(Route("/config", config_endpoint(view)))
    if "ledger" in groups:
        routes.append(Route("/ledger", ledger_endpoint(view)))
    app = Starlette(routes=routes)
    problems.install(app)
    return Limited(app, body_limit_bytes=64 << 10, request_timeout_s=10.0)
