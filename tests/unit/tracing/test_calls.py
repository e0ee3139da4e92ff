"""Laws of the spans of calls: below their attempt, named by the conventions, passed on, and never with a secret."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.adapters.tasks.spans import enter, first_word, sql_call
from app.errors import TaskFailed
from tests.helpers.task_calls import Tasks, tasks
from tests.helpers.task_types import executor, order
from tests.helpers.task_types import run as carried_out
from tests.helpers.tracing import Spans, collector

ABOVE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
SECRET = "hush-0815"


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Tasks]:
    async with tasks(tmp_path) as types:
        yield types


def attempt(url: str = "", traceparent: str | None = ABOVE) -> Spans:
    """From now on this test works for an attempt."""
    spans = Spans()
    enter(spans, order("any", params={"url": url}, traceparent=traceparent))
    return spans


async def test_a_call_is_a_client_span_whose_context_goes_with_it(run: Tasks) -> None:
    with collector() as site:
        spans = attempt()
        await run.run("source.http", url=f"{site.url}/service/x?a=1", method="POST")
        (span,) = spans.all
        assert site.calls[0]["headers"]["traceparent"] == span.context.header()
    host, port = site.url.removeprefix("http://").split(":")
    assert (span.name, span.kind, span.parent_id, span.error) == ("POST", "client", "b" * 16, None)
    assert span.attributes == {
        "http.request.method": "POST",
        "url.full": f"{site.url}/service/x?[REDACTED]",
        "server.address": host,
        "server.port": int(port),
        "http.response.status_code": 200,
    }


async def test_a_status_that_fails_the_task_is_an_error_of_its_span(run: Tasks) -> None:
    with collector() as site:
        site.statuses = [503]
        spans = attempt()
        with pytest.raises(TaskFailed):
            await run.run("sink.http", [{"a": 1}], url=f"{site.url}/service/x")
    (span,) = spans.all
    assert (span.error, span.attributes["error.type"], span.attributes["http.response.status_code"]) == ("", "503", 503)


@pytest.mark.parametrize("written", ["${secret:hook}", "http://h/${secret:hook}/x", "http://h/x?k=${ secret: hook }"])
async def test_a_url_that_holds_a_secret_shows_only_its_host(run: Tasks, written: str) -> None:
    with collector() as site:
        spans = attempt(written)
        url = site.url.replace("http://", f"http://me:{SECRET}@")
        await run.run("sink.http", [{"a": 1}], url=f"{url}/service/{SECRET}?k={SECRET}", headers={"x-key": SECRET})
        assert SECRET in site.calls[0]["path"]
    (span,) = spans.all
    assert span.attributes["url.full"] == f"{site.url}/[REDACTED]?[REDACTED]"
    assert SECRET not in repr(span)


async def test_a_header_of_the_user_goes_before_ours(run: Tasks) -> None:
    with collector() as site:
        attempt()
        await run.run("sink.http", [{"a": 1}], url=f"{site.url}/service/x", headers={"Traceparent": "mine"})
        assert site.calls[0]["headers"]["traceparent"] == "mine"


async def test_what_is_not_sampled_is_passed_on_as_such_and_makes_no_span(run: Tasks) -> None:
    with collector() as site:
        spans = attempt(traceparent=ABOVE[:-1] + "0")
        await run.run("sink.http", [{"a": 1}], url=f"{site.url}/service/x")
        assert site.calls[0]["headers"]["traceparent"] == ABOVE[:-1] + "0"
    assert spans.all == []


async def test_without_traces_nothing_is_passed_on(run: Tasks) -> None:
    with collector() as site:
        await run.run("sink.http", [{"a": 1}], url=f"{site.url}/service/x")
        assert "traceparent" not in site.calls[0]["headers"]


async def test_statements_are_client_spans(run: Tasks, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/t.db"
    with sqlite3.connect(tmp_path / "t.db") as database:
        database.execute("create table t (k integer primary key, v text)")
    database.close()
    spans = attempt()
    await run.run("sink.sql", [{"k": 1, "v": "a"}, {"k": 2, "v": "b"}], url=url, table="t", key=["k"])
    query = "select * from t where k > :least"
    await run.run("source.sql", url=url, query=query, params={"least": 0})
    with pytest.raises(TaskFailed):
        await run.run("source.sql", url=url, query="select nothing from t", params={})
    written, read, failed = spans.all
    assert {span.kind for span in spans.all} == {"client"}
    assert (written.name, dict(written.attributes)) == (
        "INSERT t",
        {
            "db.system.name": "sqlite",
            "db.operation.name": "INSERT",
            "db.collection.name": "t",
            "db.operation.batch.size": 2,
        },
    )
    assert (read.name, dict(read.attributes)) == (
        "SELECT",
        {
            "db.system.name": "sqlite",
            "db.operation.name": "SELECT",
            "db.query.text": query,
            "db.response.returned_rows": 2,
        },
    )
    assert (failed.error, failed.attributes["error.type"]) == ("", "SqlStatement")


def test_of_a_database_neither_user_nor_password_is_told() -> None:
    told = sql_call(f"postgresql://me:{SECRET}@db.example:5433/plant?sslpassword={SECRET}", "SELECT", text="select 1")
    assert (told.name, told.attributes) == (
        "SELECT plant",
        {
            "db.system.name": "postgresql",
            "db.operation.name": "SELECT",
            "server.address": "db.example",
            "server.port": 5433,
            "db.namespace": "plant",
            "db.query.text": "select 1",
        },
    )
    assert sql_call("nonsense", "SELECT").attributes["db.system.name"] == "other_sql"


@pytest.mark.parametrize(("query", "word"), [(" select 1", "SELECT"), ("with a as (…)", "WITH"), ("(select", "QUERY")])
def test_a_query_is_named_by_what_it_does(query: str, word: str) -> None:
    assert first_word(query) == word


@pytest.mark.parametrize("kind", ["test.async", "test.blocking", "test.process"])
async def test_a_plug_in_is_told_the_context_to_pass_on(kind: str) -> None:
    async with executor() as running:
        report = await carried_out(running, order(kind, "call", traceparent=ABOVE, attempt=2))
    assert (report.error, report.result["traceparent"], report.result["attempt"]) == (None, ABOVE, 2)
