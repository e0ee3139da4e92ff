"""What only a webhook does: answers, redirects, slow receivers, addresses that must not be reached."""

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from app.adapters.sinks.http import HttpLimits, HttpSink, is_private
from app.errors import SinkRejected, SinkUnavailable, UserError
from tests.helpers.databases import free_port
from tests.helpers.sinks import START_MS, FixedClock, Webhook, a_rollup, serving

OPEN = HttpLimits(allow_private_addresses=True, connect_timeout_s=2, write_timeout_s=5)


@pytest.fixture
async def hook() -> AsyncIterator[Webhook]:
    async with serving(Webhook()) as receiver:
        yield receiver


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(talk: Talk) -> AsyncIterator[str]:
    """Serve raw connections; leave when each of them is closed."""
    connections: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(cast("asyncio.Task[None]", asyncio.current_task()))
        try:
            await talk(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):  # the client has given it up
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    await asyncio.gather(*connections)


async def outcome(url: str, limits: HttpLimits = OPEN, rows: int = 3) -> Exception | None:
    """Write rows once and return what came of it."""
    sink = HttpSink("t", url, FixedClock(), limits)
    try:
        await sink.write([a_rollup(i) for i in range(rows)])
    except (SinkRejected, SinkUnavailable) as error:
        return error
    finally:
        await sink.close()
    return None


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 300, 304])
async def test_answers_that_may_pass_are_unavailable(hook: Webhook, status: int) -> None:
    hook.answers = [(status, {})]
    assert isinstance(await outcome(hook.url), SinkUnavailable)
    assert len(hook.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 413, 422])
async def test_answers_that_blame_the_request_refuse_every_row(hook: Webhook, status: int) -> None:
    hook.answers = [(status, {})] * 5
    error = await outcome(hook.url)
    assert isinstance(error, SinkRejected)
    assert error.reasons == dict.fromkeys(range(3), f"the webhook answered {status}")


async def test_statuses_to_retry_are_a_setting(hook: Webhook) -> None:
    hook.answers = [(401, {})]
    limits = HttpLimits(allow_private_addresses=True, retry_statuses=frozenset({401}))
    assert isinstance(await outcome(hook.url, limits), SinkUnavailable)


@pytest.mark.parametrize(
    ("value", "wait_ms"),
    [
        ("7", 7_000),
        ("Fri, 21 Nov 2025 01:37:00 GMT", 1_763_689_020_000 - START_MS),
        ("Fri, 21 Nov 2020 01:37:00 GMT", 0),
        ("soon", 0),
        ("-5", 0),
        ("9" * 400, 999_999_999_000),
    ],
)
async def test_retry_after_is_told_to_the_caller(hook: Webhook, value: str, wait_ms: int) -> None:
    hook.answers = [(503, {"retry-after": value})]
    error = await outcome(hook.url)
    assert isinstance(error, SinkUnavailable)
    assert error.facts["retry_after_ms"] == wait_ms


async def test_a_redirect_is_not_followed(hook: Webhook) -> None:
    hook.answers = [(307, {"location": f"http://127.0.0.1:{hook.port}/elsewhere"})]
    assert isinstance(await outcome(hook.url), SinkUnavailable)
    assert len(hook.requests) == 1


async def test_a_receiver_that_never_answers_is_unavailable() -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    limits = HttpLimits(allow_private_addresses=True, write_timeout_s=0.2)
    async with listening(swallow) as url:
        error = await outcome(url, limits)
    assert isinstance(error, SinkUnavailable)


@pytest.mark.parametrize("answer", [b"garbage\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort"])
async def test_an_answer_that_is_no_http_is_unavailable(answer: bytes) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    async with listening(babble) as url:
        error = await outcome(url)
    assert isinstance(error, SinkUnavailable)


async def test_nobody_at_the_address_is_unavailable_and_no_secret_of_the_url_is_told() -> None:
    error = await outcome(f"http://user:pass-word@127.0.0.1:{free_port()}/hooks/T0KEN?key=s3cret")
    assert isinstance(error, SinkUnavailable)
    for secret in ("pass-word", "T0KEN", "s3cret"):
        assert secret not in str(error)


PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "198.18.0.1",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "fd12::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "2002:a00:1::",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.215.14", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_known_in_every_disguise(address: str) -> None:
    assert is_private(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_not_private(address: str) -> None:
    assert not is_private(ipaddress.ip_address(address))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "0x7f000001", "2130706433", "[::ffff:127.0.0.1]"])
async def test_a_private_address_is_refused_before_anything_is_sent(hook: Webhook, host: str) -> None:
    error = await outcome(f"http://{host}:{hook.port}/hook", HttpLimits(connect_timeout_s=2))
    assert isinstance(error, SinkUnavailable)
    assert "allow_private_addresses" in str(error)
    assert hook.requests == []


class Names:
    """A resolver whose answers change from one question to the next, as in DNS rebinding."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked.append(host)
        return [(2, 1, 6, "", (address, port)) for address in self.answers.pop(0)]


async def test_the_address_that_was_checked_is_the_one_that_is_called(
    hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is resolved once a request; the receiver still sees the name as Host."""
    names = Names(["127.0.0.1"])
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", names)
    assert await outcome(f"http://hooks.example:{hook.port}/hook") is None
    assert names.asked == ["hooks.example"]
    assert hook.requests[0]["host"] == f"hooks.example:{hook.port}"


async def test_a_name_with_one_private_address_is_refused(hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", Names(["93.184.215.14", "127.0.0.1"]))
    error = await outcome(f"http://hooks.example:{hook.port}/hook", HttpLimits())
    assert isinstance(error, SinkUnavailable)
    assert "127.0.0.1" in str(error)
    assert hook.requests == []


async def test_an_address_that_refuses_is_followed_by_the_next(hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", Names(["127.0.0.2", "127.0.0.1"]))
    assert await outcome(f"http://hooks.example:{hook.port}/hook") is None


async def test_a_repeat_has_the_same_idempotency_key_and_other_rows_another(hook: Webhook) -> None:
    sink = HttpSink("t", hook.url, FixedClock(), OPEN)
    for rows in ([a_rollup(0)], [a_rollup(0)], [a_rollup(0, revision=1)], [a_rollup(0), a_rollup(1)]):
        await sink.write(rows)
    await sink.close()
    keys = [request["idempotency-key"] for request in hook.requests]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


async def test_headers_of_the_settings_are_sent(hook: Webhook) -> None:
    limits = HttpLimits(headers={"Authorization": "Bearer abc"}, allow_private_addresses=True)
    assert await outcome(hook.url, limits) is None
    assert hook.requests[0]["authorization"] == "Bearer abc"
    assert hook.requests[0]["content-type"] == "application/json"


async def test_revisions_of_one_row_are_posted_in_their_order(hook: Webhook) -> None:
    sink = HttpSink("t", hook.url, FixedClock(), HttpLimits(body="row", allow_private_addresses=True))
    await sink.write([a_rollup(index, revision) for revision in range(6) for index in range(10)])
    await sink.close()
    for index in range(10):
        start = START_MS + index * 10_000
        versions = [d["version"] for d in hook.documents if d["key"]["window_start"] == start]
        assert versions == list(range(6))


@pytest.mark.parametrize("url", ["", "ftp://host/", "http://", "/path", "file:///etc/passwd"])
def test_a_url_that_is_no_web_address_is_the_users_mistake(url: str) -> None:
    with pytest.raises(UserError):
        HttpSink("t", url, FixedClock())
