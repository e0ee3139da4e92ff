"""Requests taken strictly: JSON that every part of the system can hold, and no option that would be passed over."""

from collections.abc import Callable, Coroutine
from typing import Any, Final

import orjson
from fastapi import HTTPException
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from app.codec import DEPTH_MAX, is_too_deep

_JSON: Final = b"application/json"
# What clients say of JSON; the form is what `curl -d` says of any body.
_SAID_OF_JSON: Final = frozenset({"", "application/json", "application/x-www-form-urlencoded"})

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class NotJson(ValueError):
    """A body that is no JSON, or more deeply nested than may be; says so in one sentence."""


def strict_json(body: bytes) -> Any:
    """The value of a body. Raises `NotJson`.

    Standard JSON alone: no NaN, no infinity, no half of a surrogate pair. Whole numbers beyond 64 bits become floating.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise NotJson(f"The body is not JSON: {error}.") from error
    if is_too_deep(body, value):
        raise NotJson(f"The body may be nested {DEPTH_MAX} levels deep at most.")
    return value


def wrong_type(said: str) -> str | None:
    """Why a body of this content type is not taken, in one sentence; None for JSON."""
    kind = said.partition(";")[0].strip().lower()
    if kind in _SAID_OF_JSON or (kind.startswith("application/") and kind.endswith("+json")):
        return None
    return f"The body must be application/json, not {kind[:100]}."


class _StrictRequest(Request):
    """A request whose body is JSON, whatever `curl -d` says of it."""

    async def json(self) -> Any:
        try:
            return strict_json(await self.body())
        except NotJson as error:
            raise HTTPException(400, str(error)) from error


class StrictRoute(APIRoute):
    """Refuses options that the route does not have, and bodies that are not JSON."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        known = _options(self.dependant)
        takes_json = self.body_field is not None

        async def checked(request: Request) -> Response:
            _check_options(request, known)
            if not takes_json:
                return await handle(request)
            if (wrong := wrong_type(request.headers.get("content-type", ""))) is not None:
                raise HTTPException(415, wrong)
            return await handle(_StrictRequest(_as_json(request), request.receive))

        return checked


def _options(dependant: Dependant) -> frozenset[str]:
    own = {field.alias for field in dependant.query_params}
    return frozenset(own.union(*map(_options, dependant.dependencies)))


def _check_options(request: Request, known: frozenset[str]) -> None:
    """Raises HTTP 400 for a misspelt filter, which would else show, or reach, everything."""
    if not request.scope["query_string"]:
        return
    unknown = sorted(set(request.query_params) - known)
    if unknown:
        there_are = f"there are {', '.join(sorted(known))}" if known else "there are none here"
        raise HTTPException(400, f"There is no option {unknown[0][:100]}; {there_are}.")


def _as_json(request: Request) -> dict[str, Any]:
    """The scope with the content type that the framework wants to see."""
    headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
    return {**request.scope, "headers": [*headers, (b"content-type", _JSON)]}
