"""One HTTP request of a task: bounded in time and size, its failures told apart."""

import asyncio
import ssl
import zlib
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

import httpx

from app.adapters.sinks.http import PrivateAddress, retry_after_ms
from app.adapters.tasks.resources import Resources
from app.adapters.tasks.spans import CallSpan, call_span, http_call
from app.domain.trace import HEADER
from app.errors import TaskFailed

RETRY_STATUSES: Final = frozenset({408, 425, 429})
_SHOWN_BODY: Final = 1_000
_CHUNK: Final = 65_536


class Request(NamedTuple):
    """What is sent; `retry_statuses` and `accept_statuses` are besides those everybody agrees on."""

    method: str
    url: str
    headers: Mapping[str, str]
    query: Mapping[str, Any] | None = None
    body: bytes | None = None
    timeout_s: float = 30.0
    max_bytes: int = 1 << 20
    retry_statuses: Collection[int] = ()
    accept_statuses: Collection[int] = ()
    must_fit: bool = True


class Response(NamedTuple):
    """What came back."""

    status: int
    headers: httpx.Headers
    body: bytes


async def fetch(request: Request, resources: Resources) -> Response:
    """Send one request. Raises `TaskFailed`.

    Types: `HttpStatus` (500 and above, 408, 425, 429 are retryable), `HttpTimeout`, `HttpUnavailable`,
    `HttpCertificate`, `PrivateAddress`, `InvalidUrl`, `InvalidRequest`, `InvalidResponse`, `TooLarge`. `must_fit`
    False cuts a body that is too large.
    """
    url = _url(request)
    hides_url = False
    with call_span("client", lambda: http_call(request.method, url, hides_url=hides_url)) as span:
        hides_url = span is not None and span.hides_url
        response = await _fetch(request, url, resources, span)
        if span is not None:
            span.attributes["http.response.status_code"] = response.status
        _judge(request, url, response, resources.clock.now_ms())
    return response


async def _fetch(request: Request, url: httpx.URL, resources: Resources, span: CallSpan | None) -> Response:
    try:
        async with resources.http.turn() as client, asyncio.timeout(request.timeout_s):
            return await _exchange(request, url, client, span)
    except TimeoutError as error:
        raise TaskFailed("HttpTimeout", f"{_where(url)} did not answer within {request.timeout_s:g} s") from error
    except PrivateAddress as error:
        raise TaskFailed("PrivateAddress", f"{error} (tasks.allow_private_addresses)", retryable=False) from error
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise TaskFailed("InvalidUrl", f"{_where(url)} cannot be called: {error}", retryable=False) from error
    except httpx.LocalProtocolError as error:
        raise TaskFailed("InvalidRequest", f"the request cannot be sent: {error}", retryable=False) from error
    except (httpx.TimeoutException, OSError) as error:
        raise TaskFailed("HttpTimeout", f"{_where(url)} did not answer: {error or type(error).__name__}") from error
    except httpx.HTTPError as error:
        text = str(error) or type(error).__name__
        if _is_of_certificate(error):
            raise TaskFailed("HttpCertificate", f"{_where(url)} is not trusted: {text}", retryable=False) from error
        raise TaskFailed("HttpUnavailable", f"{_where(url)} does not answer: {text}") from error


async def _exchange(request: Request, url: httpx.URL, client: httpx.AsyncClient, span: CallSpan | None) -> Response:
    context = {} if span is None else {HEADER: span.header}
    try:
        built = client.build_request(
            request.method,
            url,
            headers=merged({"accept-encoding": "gzip", **context}, request.headers),
            params=None if request.query is None else dict(request.query),
            content=request.body,
        )
    except (TypeError, ValueError) as error:
        raise TaskFailed("InvalidRequest", f"the request cannot be made: {error}", retryable=False) from error
    response = await client.send(built, stream=True)
    try:
        return Response(response.status_code, response.headers, await _body(request, response))
    finally:
        await response.aclose()


async def _body(request: Request, response: httpx.Response) -> bytes:
    """The body, unpacked, of at most `max_bytes`: a small packed body may be a large one."""
    coding = response.headers.get("content-encoding", "identity").strip().lower() or "identity"
    limit = request.max_bytes
    if request.method == "HEAD":
        return b""
    if coding not in {"identity", "gzip", "x-gzip", "deflate"}:
        raise TaskFailed("InvalidResponse", f"the body is coded as {coding!r:.60}, which was not asked for")
    unpack = None if coding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)
    body = bytearray()
    async for some in response.aiter_raw(_CHUNK):
        try:
            body += some if unpack is None else unpack.decompress(some, limit + 1 - len(body))
        except zlib.error as error:
            raise TaskFailed("InvalidResponse", f"the body is not {coding}: {error}") from error
        if len(body) > limit:
            if not request.must_fit or response.status_code >= 400:
                return bytes(body[:limit])
            raise TaskFailed(
                "TooLarge",
                f"the body has more than {limit} bytes; the limit is max_bytes, at most tasks.source_bytes",
                retryable=False,
                detail={"max_bytes": limit},
            )
    if unpack is not None and not unpack.eof:
        raise TaskFailed("InvalidResponse", f"the body is not {coding}: it ends too early")
    return bytes(body)


def merged(*layers: Mapping[str, str]) -> dict[str, str]:
    """Headers of which a later layer's replace an earlier one's, however they are spelled."""
    return {name.lower(): value for layer in layers for name, value in layer.items()}


def _judge(request: Request, url: httpx.URL, response: Response, now_ms: int) -> None:
    status = response.status
    if 200 <= status < 300 or status in request.accept_statuses:
        return
    shown = response.body[:_SHOWN_BODY].decode("utf-8", "replace")
    detail: dict[str, Any] = {"status": status, "body": shown}
    if (wait_ms := retry_after_ms(response.headers.get("retry-after"), now_ms)) > 0:
        detail["retry_after_ms"] = wait_ms
    if 300 <= status < 400:
        detail["location"] = response.headers.get("location", "")[:_SHOWN_BODY]
    retryable = status >= 500 or status in RETRY_STATUSES or status in request.retry_statuses
    hint = "; redirects are not followed" if 300 <= status < 400 else ""
    raise TaskFailed("HttpStatus", f"{_where(url)} answered {status}{hint}", retryable=retryable, detail=detail)


def _url(request: Request) -> httpx.URL:
    try:
        url = httpx.URL(request.url)
    except (httpx.InvalidURL, ValueError) as error:
        raise TaskFailed("InvalidUrl", f"the url cannot be read: {error}", retryable=False) from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise TaskFailed("InvalidUrl", "the url must begin with http:// or https:// and name a host", retryable=False)
    if url.port is not None and not 0 < url.port < 65_536:
        raise TaskFailed("InvalidUrl", f"there is no port {url.port}", retryable=False)
    return url


def _is_of_certificate(error: BaseException | None) -> bool:
    """The client wraps what its libraries raise, more than once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _where(url: httpx.URL) -> str:
    """Scheme and host; user, path and query may be secrets."""
    port = "" if url.port is None else f":{url.port}"
    return f"{url.scheme}://{url.host}{port}"
