"""source.http and sink.http against servers that mean harm or are set up wrongly: what it was, and whether to retry."""

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_http_sink import Names
from tests.helpers.sinks import Webhook, serving
from tests.helpers.task_calls import Tasks, tasks

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
TYPES = ("source.http", "sink.http")


@contextlib.asynccontextmanager
async def server(talk: Talk, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Each connection gets `talk`; what a client does that has had enough is no error."""
    talks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
            await talk(reader, writer)
        writer.transport.abort()

    def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.get_running_loop().create_task(serve(reader, writer)))

    listening = await asyncio.start_server(served, "127.0.0.1", 0, ssl=tls)
    async with listening:
        yield listening.sockets[0].getsockname()[1]
        for one in talks:
            one.cancel()
        await asyncio.gather(*talks)


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)


def endless(head: bytes, more: bytes) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + head)
        while not writer.is_closing():
            writer.write(more)
            await writer.drain()
            await asyncio.sleep(0)

    return talk


async def failure(run: Tasks, type_: str, url: str, **params: Any) -> tuple[str, bool, str]:
    failed = await run.failure(type_, [{"a": 1}], url=url, **{"timeout_s": 20, **params})
    return failed.type, failed.retryable, failed.message


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Tasks]:
    async with tasks(tmp_path, http_connect_timeout_ms=2_000) as types:
        yield types


@pytest.fixture
def untrusted(tmp_path: Path) -> ssl.SSLContext:
    """A certificate that nobody has signed but itself."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    subprocess.run([openssl, *words, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@pytest.mark.parametrize("type_", TYPES)
async def test_certificate_that_is_not_trusted_is_not_tried_again(
    run: Tasks, untrusted: ssl.SSLContext, type_: str
) -> None:
    async with server(say_nothing, untrusted) as port:
        kind, retryable, message = await failure(run, type_, f"https://127.0.0.1:{port}/x?token=s3cret")
    assert (kind, retryable) == ("HttpCertificate", False)
    assert "CERTIFICATE_VERIFY_FAILED" in message
    assert "s3cret" not in message


@pytest.mark.parametrize("type_", TYPES)
async def test_port_that_speaks_no_tls_is_unavailable(run: Tasks, type_: str) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 No TLS\r\n\r\n")
        await writer.drain()

    async with server(plain) as port:
        kind, retryable, message = await failure(run, type_, f"https://127.0.0.1:{port}/")
    assert (kind, retryable) == ("HttpUnavailable", True)
    assert "SSL" in message


@pytest.mark.parametrize("type_", TYPES)
async def test_body_that_drips_is_given_up_at_the_time_of_the_whole(run: Tasks, type_: str) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with server(drip) as port:
        kind, retryable, _ = await failure(run, type_, f"http://127.0.0.1:{port}/", timeout_s=0.3)
    assert (kind, retryable) == ("HttpTimeout", True)


async def test_body_without_end_is_too_large_for_a_source_and_cut_by_a_sink(run: Tasks) -> None:
    async with server(endless(b"\r\n", b"x" * 65_536)) as port:
        url = f"http://127.0.0.1:{port}/"
        kind, retryable, _ = await failure(run, "source.http", url)
        assert (kind, retryable) == ("TooLarge", False)
        told = await run.run("sink.http", [1], url=url, answer_bytes=10)
        assert told["body"] == "x" * 10


@pytest.mark.parametrize("type_", TYPES)
async def test_head_without_end_is_given_up(run: Tasks, type_: str) -> None:
    async with server(endless(b"", b"x-more: " + b"y" * 8_000 + b"\r\n")) as port:
        kind, retryable, _ = await failure(run, type_, f"http://127.0.0.1:{port}/")
    assert (kind, retryable) == ("HttpUnavailable", True)


@pytest.mark.parametrize("type_", TYPES)
async def test_redirect_into_the_private_network_is_not_followed(run: Tasks, type_: str) -> None:
    async with serving(Webhook()) as inside:
        answers = [(302, {"location": inside.url})] * 2
        async with serving(Webhook(answers=answers)) as hook:
            kind, retryable, message = await failure(run, type_, hook.url, **_post(type_))
        assert (kind, retryable) == ("HttpStatus", False)
        assert "redirects are not followed" in message
        assert inside.requests == []


def _post(type_: str) -> dict[str, Any]:
    return {"method": "POST", "json": []} if type_ == "source.http" else {}


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["10.0.0.1"], ["93.184.215.14", "169.254.169.254"], ["::1"]])
async def test_name_that_leads_inside_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type_: str, addresses: list[str]
) -> None:
    """It is looked up once; that the address dialled is the one that was checked is a law of the sink's transport."""
    names = Names(addresses)
    async with serving(Webhook()) as hook, tasks(tmp_path, allow_private_addresses=False) as run:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", names)
        kind, retryable, message = await failure(run, type_, f"http://inside.example:{hook.port}/")
        assert hook.requests == []
    assert (kind, retryable, names.asked) == ("PrivateAddress", False, ["inside.example"])
    assert addresses[-1] in message


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("port", [0, 65_536, 99_999])
async def test_port_that_is_none_is_refused(run: Tasks, type_: str, port: int) -> None:
    kind, retryable, message = await failure(run, type_, f"http://127.0.0.1:{port}/")
    assert (kind, retryable) == ("InvalidUrl", False)
    assert str(port) in message


@pytest.mark.parametrize("type_", TYPES)
async def test_name_that_does_not_exist_is_worth_another_attempt(run: Tasks, type_: str) -> None:
    kind, retryable, message = await failure(run, type_, "http://no-such-host.invalid/")
    assert (kind, retryable) == ("HttpUnavailable", True)
    assert "no-such-host.invalid" in message
