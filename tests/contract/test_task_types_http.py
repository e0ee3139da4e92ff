"""source.http and sink.http against real servers: answers of every kind, and servers that misbehave."""

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.errors import TaskFailed
from tests.contract.test_http_sink import listening
from tests.helpers.databases import free_port
from tests.helpers.sinks import Webhook, serving
from tests.helpers.task_calls import Tasks, tasks


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Tasks]:
    async with tasks(tmp_path, http_connect_timeout_ms=2_000) as types:
        yield types


async def answered(run: Tasks, head: str, body: bytes = b"", **params: Any) -> Any:
    """What source.http makes of a raw answer."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        length = "" if "content-length" in head else f"content-length: {len(body)}\r\n"
        writer.write(f"HTTP/1.1 {head}\r\n{length}connection: close\r\n\r\n".encode() + body)
        await writer.drain()

    async with listening(talk) as url:
        return await run.run("source.http", url=url, **{"timeout_s": 20, **params})


async def refused(run: Tasks, head: str, body: bytes = b"", **params: Any) -> TaskFailed:
    with pytest.raises(TaskFailed) as found:
        await answered(run, head, body, **params)
    return found.value


JSON = "200 OK\r\ncontent-type: application/json; charset=utf-8"


@pytest.mark.parametrize(
    ("head", "body", "expect", "value"),
    [
        (JSON, b'[{"a": 1}]', "auto", [{"a": 1}]),
        ("200 OK\r\ncontent-type: application/problem+json", b'{"a": null}', "auto", {"a": None}),
        ("200 OK\r\ncontent-type: application/x-ndjson", b'{"a": 1}\n\n{"a": 2}\n', "auto", [{"a": 1}, {"a": 2}]),
        ("200 OK\r\ncontent-type: text/csv", b'a,b\n1,"x\ny"\n', "auto", [{"a": "1", "b": "x\ny"}]),
        ("200 OK\r\ncontent-type: text/plain; charset=latin-1", b"\xfc", "auto", "ü"),
        ("200 OK", b"7", "json", 7),
        ("204 No Content\r\ncontent-type: application/json", b"", "auto", None),
    ],
)
async def test_a_body_is_read_by_its_type(run: Tasks, head: str, body: bytes, expect: str, value: Any) -> None:
    assert await answered(run, head, body, expect=expect) == value


@pytest.mark.parametrize(
    ("status", "retryable"),
    [
        (500, True),
        (502, True),
        (503, True),
        (429, True),
        (408, True),
        (400, False),
        (401, False),
        (404, False),
        (301, False),
    ],
)
async def test_a_status_says_whether_another_attempt_is_worth_it(run: Tasks, status: int, retryable: bool) -> None:
    failed = await refused(run, f"{status} Oh\r\nretry-after: 7\r\nlocation: /x", b"the cause")
    assert (failed.type, failed.retryable) == ("HttpStatus", retryable)
    assert failed.detail["status"] == status
    assert failed.detail["body"] == "the cause"
    assert failed.detail["retry_after_ms"] == 7_000
    assert failed.detail.get("location") == ("/x" if status == 301 else None)


async def test_a_workflow_may_see_statuses_differently(run: Tasks) -> None:
    assert (await refused(run, "404 Not Yet", retry_statuses=[404])).retryable
    assert await answered(run, "404 Gone", b"x", accept_statuses=[404], full=True) == {
        "status": 404, "headers": {"content-length": "1", "connection": "close"}, "body": "x"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("head", "body", "expect"),
    [
        (JSON, b"{", "auto"),
        (JSON, b"\xff", "auto"),
        ("200 OK\r\ncontent-type: text/plain; charset=no-such", b"x", "auto"),
        ("200 OK", b"{}\nx", "jsonl"),
        (JSON + "\r\ncontent-encoding: gzip", b"no gzip", "auto"),
        (JSON + "\r\ncontent-encoding: gzip", gzip.compress(b"[1, 2, 3]")[:-9], "auto"),
        (JSON + "\r\ncontent-encoding: br", b"x", "auto"),
    ],
)
async def test_a_body_that_is_not_what_it_says_is_a_failure(run: Tasks, head: str, body: bytes, expect: str) -> None:
    assert (await refused(run, head, body, expect=expect)).type == "InvalidResponse"


async def test_a_large_body_is_refused_also_when_it_is_packed(run: Tasks) -> None:
    large = json.dumps("x" * 100_000).encode()
    assert await answered(run, JSON + "\r\ncontent-encoding: gzip", gzip.compress(large)) == "x" * 100_000
    for head, body in ((JSON, large), (JSON + "\r\ncontent-encoding: gzip", gzip.compress(large))):
        failed = await refused(run, head, body, max_bytes=99_999)
        assert (failed.type, failed.retryable) == ("TooLarge", False)


async def test_a_server_that_hangs_is_given_up(run: Tasks) -> None:
    ended = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        await writer.drain()
        await ended.wait()

    async with listening(silent) as url:
        failed = await run.failure("source.http", url=url, timeout_s=0.3)
        assert (failed.type, failed.retryable) == ("HttpTimeout", True)
        failed = await run.failure("sink.http", [{"a": 1}], url=url, timeout_s=0.3)
        assert (failed.type, failed.retryable) == ("HttpTimeout", True)
        ended.set()


async def test_a_server_that_breaks_off_or_speaks_nonsense_is_worth_another_attempt(run: Tasks) -> None:
    for said in (b"", b"NONSENSE\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"):

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: bytes = said) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(said)
            await writer.drain()

        async with listening(talk) as url:
            failed = await run.failure("source.http", url=url, timeout_s=20)
            assert (failed.type, failed.retryable) == ("HttpUnavailable", True)
    failed = await run.failure("source.http", url=f"http://user:s3cret@127.0.0.1:{free_port()}/p?token=s3cret")
    assert (failed.type, failed.retryable) == ("HttpUnavailable", True)
    assert "s3cret" not in failed.message


@pytest.mark.parametrize("url", ["ftp://x/", "file:///etc/hosts", "no url", "http://", "http://[::1", "//x"])
async def test_a_url_that_is_none_is_refused(run: Tasks, url: str) -> None:
    failed = await run.failure("source.http", url=url)
    assert (failed.type, failed.retryable) == ("InvalidUrl", False)


async def test_private_addresses_are_refused_unless_allowed(tmp_path: Path) -> None:
    async with serving(Webhook()) as hook, tasks(tmp_path, allow_private_addresses=False) as run:
        for type_ in ("source.http", "sink.http"):
            for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433"):
                failed = await run.failure(type_, [{"a": 1}], url=f"http://{host}:{hook.port}/")
                assert (failed.type, failed.retryable) == ("PrivateAddress", False), (host, failed)
        assert hook.requests == []


async def test_a_header_that_is_none_is_refused(run: Tasks) -> None:
    failed = await run.failure("source.http", url="http://127.0.0.1:1/", headers={"x": "a\r\nb: c"})
    assert failed.type in {"InvalidRequest", "HttpUnavailable"}


async def test_a_cookie_of_one_task_is_not_sent_by_another(run: Tasks) -> None:
    async with serving(Webhook(answers=[(200, {"set-cookie": "session=s3cret; Path=/"})])) as hook:
        for _ in range(2):
            await run.run("source.http", url=hook.url, method="POST", json=[])
        assert all("cookie" not in request for request in hook.requests)


# ---- sink.http


async def test_a_request_carries_the_effects_key_whatever_the_headers_say(run: Tasks) -> None:
    async with serving(Webhook()) as hook:
        told = await run.run(
            "sink.http",
            [{"a": 1}, {"a": 2}],
            url=hook.url,
            effect="e-1/tell",
            headers={"IDEMPOTENCY-KEY": "mine", "X-A": "b"},
        )
        assert told == {"requests": 1, "rows": 2, "status": 200, "body": None}
        assert hook.documents == [{"a": 1}, {"a": 2}]
        assert (hook.requests[0]["idempotency-key"], hook.requests[0]["x-a"]) == ("e-1/tell", "b")


async def test_each_row_may_have_its_own_request_and_key(run: Tasks) -> None:
    async with serving(Webhook(answers=[(200, {}), (503, {})])) as hook:
        failed = await run.failure("sink.http", [1, 2, 3], url=hook.url, send="row", effect="e/t")
        assert (failed.detail["status"], failed.detail["requests_sent"]) == (503, 1)
        assert (await run.run("sink.http", [1, 2, 3], url=hook.url, send="row", effect="e/t"))["requests"] == 3
        keys = [request["idempotency-key"] for request in hook.requests]
        assert keys == ["e/t/0", "e/t/1", "e/t/0", "e/t/1", "e/t/2"]


async def test_no_row_is_no_request_unless_it_is_asked_for(run: Tasks) -> None:
    async with serving(Webhook()) as hook:
        assert (await run.run("sink.http", [], url=hook.url))["requests"] == 0
        assert (await run.run("sink.http", [], url=hook.url, when_empty="send"))["requests"] == 1
        await run.run("sink.http", [1, 2], url=hook.url, body={"text": "two"})
        assert hook.documents == [{"text": "two"}]


async def test_a_key_that_no_header_can_hold_is_escaped(run: Tasks) -> None:
    async with serving(Webhook()) as hook:
        for effect in ("käse/t", "a\nb: c/t"):
            await run.run("sink.http", [1], url=hook.url, effect=effect)
        assert [request["idempotency-key"] for request in hook.requests] == ["k\\xe4se/t", "a\\nb: c/t"]


async def test_time_outs_in_hundreds_leave_connections_for_those_who_come_after(tmp_path: Path) -> None:
    is_slow = [True]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                if is_slow[0]:
                    await asyncio.sleep(0.02)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1\r\n\r\n7")

    async with listening(talk) as url, tasks(tmp_path, http_connections=4) as run:
        for _ in range(5):
            given_up = [run.run("source.http", url=url, timeout_s=0.001 * (1 + number % 60)) for number in range(200)]
            await asyncio.gather(*given_up, return_exceptions=True)
        is_slow[0] = False
        assert await asyncio.gather(*(run.run("source.http", url=url, timeout_s=20) for _ in range(50))) == [7] * 50
