"""The task type sink.http: rows to a webhook, each request with the effect's Idempotency-Key."""

from typing import Any, Literal

import orjson
from pydantic import Field

from app.adapters.tasks.protocol import Kind, TaskCall
from app.adapters.tasks.types.params import Params
from app.errors import TaskFailed


class HttpSinkParams(Params):
    """What sink.http is told."""

    url: str = Field(min_length=1, description="http:// or https://; private addresses need a setting.")
    method: Literal["POST", "PUT", "PATCH", "DELETE"] = Field("POST", description="Method.")
    headers: dict[str, str] = Field(default_factory=dict, description="Headers of each request.")
    send: Literal["array", "row"] = Field(
        "array", description="One request with all rows as a JSON array, or one request a row."
    )
    body: Any = Field(None, description="Sent as JSON instead of the rows, in one request.")
    when_empty: Literal["skip", "send"] = Field("skip", description="Whether a request is sent when there is no row.")
    retry_statuses: list[int] = Field(
        default_factory=list, description="Statuses besides 408, 425, 429 and 5xx that are worth another attempt."
    )
    accept_statuses: list[int] = Field(default_factory=list, description="Statuses besides 2xx that are no failure.")
    answer_bytes: int = Field(
        16_384, ge=0, le=1 << 20, description="Bytes of the answer kept in the result; the rest is cut."
    )
    timeout_s: float = Field(
        30.0,
        gt=0,
        le=86_400,
        description="A request is given up after this long; waiting for one of `tasks.http_connections` does not "
        "count.",
    )


class HttpSinkTask:
    """Sends at least once; the receiver makes the effect once by the header Idempotency-Key.

    The key is the same in every attempt: the effect's own, with `/<number of the row>` where each row has a request.
    """

    name = "sink.http"
    params_model = HttpSinkParams
    kind: Kind = "async"
    takes_turns = True
    pure = False

    async def run(self, call: TaskCall[HttpSinkParams]) -> dict[str, Any]:
        """{requests, rows, status, body}: the last answer."""
        params = call.params
        if params.body is not None:
            bodies = [(call.idempotency_key, params.body)]
        elif not call.rows and params.when_empty == "skip":
            bodies = []
        elif params.send == "array":
            bodies = [(call.idempotency_key, list(call.rows))]
        else:
            bodies = [(f"{call.idempotency_key}/{number}", row) for number, row in enumerate(call.rows)]
        told: dict[str, Any] = {"requests": len(bodies), "rows": len(call.rows), "status": None, "body": None}
        for sent, (key, body) in enumerate(bodies):
            try:
                told["status"], told["body"] = await self._send(call, key, body)
            except TaskFailed as failed:
                # Earlier rows have arrived; the next attempt sends them again under the same keys.
                failed.detail["requests_sent"] = sent
                raise
            call.heartbeat()
        return told

    async def _send(self, call: TaskCall[HttpSinkParams], key: str, body: Any) -> tuple[int, Any]:
        from app.adapters.tasks.types.http_call import Request, fetch, merged  # noqa: PLC0415 - a vendor in need

        params = call.params
        try:
            content = orjson.dumps(body)
        except (TypeError, ValueError) as error:
            raise TaskFailed("NotJson", f"the body cannot be written as JSON: {error}", retryable=False) from error
        response = await fetch(
            Request(
                params.method,
                params.url,
                merged({"content-type": "application/json"}, params.headers, {"idempotency-key": _header(key)}),
                None,
                content,
                params.timeout_s,
                params.answer_bytes,
                params.retry_statuses,
                params.accept_statuses,
                must_fit=False,
            ),
            call.shared,
        )
        return response.status, _answer(response.body)


def _answer(body: bytes) -> Any:
    try:
        return orjson.loads(body) if body else None
    except orjson.JSONDecodeError:
        return body.decode("utf-8", "replace")


def _header(key: str) -> str:
    """A header holds printable ASCII; anything else is escaped, so that two keys stay two."""
    return (
        key.encode("ascii", "backslashreplace").decode() if key.isprintable() else key.encode("unicode_escape").decode()
    )
