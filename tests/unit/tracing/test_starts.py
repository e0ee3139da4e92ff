"""Laws of the server spans of starts: one a request, below what it came with, above what it starts."""

from typing import Any

import pytest

from app.domain.trace import parse
from app.errors import PublishFailed
from app.http.tracing import TracedStarts
from tests.helpers.tracing import Spans
from tests.helpers.workflow_api import client
from tests.unit.http.test_workflow_starts import EXECUTE, Api

ABOVE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
ROUTE = "/api/v1/workflows/{workflow_id}/execute"


class Traced(Api):
    """The routes, traced."""

    def __init__(self, sample_ratio: float = 1.0) -> None:
        super().__init__()
        self.spans = Spans(sample_ratio)
        self.app: Any = TracedStarts(self.app, self.spans)


async def test_a_start_is_a_span_between_what_it_came_with_and_its_execution() -> None:
    api = Traced()
    answer = await api.post(EXECUTE, headers={"traceparent": ABOVE, "user-agent": "me/1"}, json={"input": {}})
    (span,) = api.spans.all
    assert (span.name, span.kind, span.error) == (f"POST {ROUTE}", "server", None)
    assert (span.context.trace_id, span.parent_id) == ("a" * 32, "b" * 16)
    assert api.starts[0].traceparent == span.context.header()
    assert dict(api.sent.records[0].headers) == {"traceparent": span.context.header().encode()}
    attributes = dict(span.attributes)
    assert attributes.pop("server.address") == "headrace"
    attributes.pop("server.port", None)
    attributes.pop("url.scheme")
    assert attributes == {
        "http.request.method": "POST",
        "http.route": ROUTE,
        "http.response.status_code": 202,
        "url.path": EXECUTE,
        "network.protocol.version": "1.1",
        "client.address": "127.0.0.1",
        "user_agent.original": "me/1",
        "headrace.execution.id": answer.json()["execution_id"],
        "headrace.workflow.id": "press-overheat",
    }


async def test_a_start_without_a_trace_begins_one() -> None:
    api = Traced()
    await api.post(EXECUTE)
    (span,) = api.spans.all
    assert (span.parent_id, api.starts[0].traceparent) == (None, span.context.header())


@pytest.mark.parametrize("header", ["nonsense", ABOVE[:-2] + "zz", "ff" + ABOVE[2:]])
async def test_a_context_that_cannot_be_read_is_none(header: str) -> None:
    api = Traced()
    await api.post(EXECUTE, headers={"traceparent": header})
    (span,) = api.spans.all
    assert (span.parent_id, api.starts[0].traceparent) == (None, span.context.header())


@pytest.mark.parametrize(("ratio", "header"), [(0.0, None), (1.0, ABOVE[:-1] + "0")])
async def test_what_is_not_sampled_keeps_its_trace_and_makes_no_span(ratio: float, header: str | None) -> None:
    api = Traced(ratio)
    await api.post(EXECUTE, headers={} if header is None else {"traceparent": header})
    assert api.spans.all == []
    context = parse(api.starts[0].traceparent)
    assert context is not None
    assert not context.is_sampled
    assert header is None or context.trace_id == "a" * 32


async def test_a_batch_is_one_span_above_all_its_executions() -> None:
    api = Traced()
    await api.post(f"{EXECUTE}:batch", json=[{}, {}, {}])
    (span,) = api.spans.all
    assert span.name == f"POST {ROUTE}:batch"
    assert {start.traceparent for start in api.starts} == {span.context.header()}


async def test_only_what_the_server_did_wrong_is_an_error_of_its_span() -> None:
    api = Traced()
    await api.post("/api/v1/workflows/unknown/execute")
    api.sent.failure = PublishFailed("timeout", 1)
    await api.post(EXECUTE)
    refused, failed = api.spans.all
    assert (refused.attributes["http.response.status_code"], refused.error) == (404, None)
    assert (failed.attributes["error.type"], failed.error) == ("503", "")


async def test_other_requests_are_left_alone() -> None:
    api = Traced()
    async with client(api.app) as asking:
        await asking.get("/api/v1/executions")
    assert api.spans.all == []
