"""The webhook sink: rows as JSON over HTTP, each request with an Idempotency-Key.

The receiver sees a row at least once and must keep the highest `version` of each `key`; a repeat of
a request carries the same Idempotency-Key.
"""

import asyncio
import hashlib
import ipaddress
import logging
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Literal

import httpx
import orjson

from app.errors import SinkRejected, SinkUnavailable, UserError
from app.ports import Clock, SinkRow
from config.redact import redact_text

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """How the webhook is called; `retry_statuses` are the 4xx answers that are worth a retry."""

    body: Literal["array", "row"] = "array"
    headers: Mapping[str, str] = field(default_factory=dict)
    concurrency: int = 8
    retry_statuses: frozenset[int] = frozenset({408, 425, 429})
    allow_private_addresses: bool = False
    connect_timeout_s: float = 5.0
    write_timeout_s: float = 30.0


class _Refused(Exception):
    """The receiver answers that it will never take this request."""


class HttpSink:
    """Posts a JSON array for a batch, or a JSON object for each row; follows no redirect.

    An array that is refused is halved until the refused row stands alone.
    """

    def __init__(self, name: str, url: str, clock: Clock, limits: HttpLimits | None = None) -> None:
        self.name = name
        self._url = _checked_url(name, url)
        self._clock = clock
        self._limits = limits or HttpLimits()
        self._client: httpx.AsyncClient | None = None

    async def open(self) -> None:
        """Prepare the connections; the receiver is first called by a write."""
        if self._client is not None:
            return
        limits = self._limits
        # At INFO the client logs each URL whole, and a webhook's URL is often its secret.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._client = httpx.AsyncClient(
            transport=CheckedTransport(limits.allow_private_addresses, limits.concurrency),
            headers={**limits.headers, "content-type": "application/json"},
            timeout=httpx.Timeout(limits.write_timeout_s, connect=limits.connect_timeout_s),
            follow_redirects=False,
            # A proxy from the environment would connect to addresses that nobody checked.
            trust_env=False,
        )

    async def write(self, rows: Sequence[SinkRow]) -> None:
        """Post `rows`; see `app.ports.Sink`."""
        await self.open()
        indexed = list(enumerate(rows))
        if self._limits.body == "row":
            reasons = await self._post_each(indexed)
        else:
            reasons = await self._post_array(indexed)
        if reasons:
            raise SinkRejected(reasons)

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _post_array(self, rows: list[tuple[int, SinkRow]]) -> dict[int, str]:
        if not rows:
            return {}
        try:
            body = orjson.dumps([_document(row) for _, row in rows])
            await self._post(body, _idempotency_key([row for _, row in rows]))
        except _Refused as refused:
            if len(rows) == 1:
                return {rows[0][0]: str(refused)}
        else:
            return {}
        half = len(rows) // 2
        return {**await self._post_array(rows[:half]), **await self._post_array(rows[half:])}

    async def _post_each(self, rows: list[tuple[int, SinkRow]]) -> dict[int, str]:
        """Post rows `concurrency` at a time; rows of one identity never overtake each other."""
        reasons: dict[int, str] = {}
        lanes: list[list[tuple[int, SinkRow]]] = [[] for _ in range(self._limits.concurrency)]
        for index, row in rows:
            lanes[hash((row.kind, row.key)) % len(lanes)].append((index, row))

        async def post(lane: list[tuple[int, SinkRow]]) -> None:
            for index, row in lane:
                try:
                    await self._post(orjson.dumps(_document(row)), _idempotency_key([row]))
                except _Refused as refused:
                    reasons[index] = str(refused)

        outcomes = await asyncio.gather(*(post(lane) for lane in lanes if lane), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return reasons

    async def _post(self, body: bytes, idempotency_key: str) -> None:
        """Send one request. Raises `_Refused` or `SinkUnavailable`."""
        assert self._client is not None
        try:
            async with (
                asyncio.timeout(self._limits.connect_timeout_s + self._limits.write_timeout_s),
                self._client.stream(
                    "POST", self._url, content=body, headers={"idempotency-key": idempotency_key}
                ) as response,
            ):
                status, headers = response.status_code, response.headers
                # The answer's body is of no use; a short one is read so that the connection can be used again.
                if int(headers.get("content-length") or 0) <= 65_536 and "transfer-encoding" not in headers:
                    await response.aread()
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError, ValueError) as error:
            text = redact_text(str(error)) or type(error).__name__
            raise SinkUnavailable(f"sink {self.name}: {self._where} does not answer: {text}") from error
        if 200 <= status < 300:
            return
        if 400 <= status < 500 and status not in self._limits.retry_statuses:
            raise _Refused(f"the webhook answered {status}")
        raise SinkUnavailable(
            f"sink {self.name}: {self._where} answered {status}",
            status=status,
            retry_after_ms=retry_after_ms(headers.get("retry-after"), self._clock.now_ms()),
        )

    @property
    def _where(self) -> str:
        """The webhook's scheme and host; user, path and query may be secrets."""
        return f"{self._url.scheme}://{self._url.netloc.decode('ascii')}"


class PrivateAddress(httpx.ConnectError):
    """A name leads to an address that is not one of the public internet."""


class CheckedTransport(httpx.AsyncBaseTransport):
    """Connects only to addresses that were checked: the name is resolved here, once, and the address dialled.

    A check before a second resolution by the HTTP client could be undone in between (DNS rebinding).
    The certificate is still checked against the name.
    """

    def __init__(
        self,
        allow_private_addresses: bool,
        connections: int | None,
        *,
        keep_alive: int | None = None,
        trust: ssl.SSLContext | bool = True,
    ) -> None:
        """At most so many `connections` at once (None: who calls sees to that), and so many kept for later.

        `trust` spares whoever builds many of these the 16 ms that reading the certificates takes.
        """
        self._allow_private = allow_private_addresses
        kept = connections if keep_alive is None else keep_alive
        self._inner = httpx.AsyncHTTPTransport(
            verify=trust,
            trust_env=False,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=kept),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request to the first of the name's addresses that takes the connection."""
        host = request.url.host
        addresses = await _resolve(host, request.url.port or (443 if request.url.scheme == "https" else 80))
        if not self._allow_private:
            for address in addresses:
                if is_private(address):
                    raise PrivateAddress(
                        f"{host} is the private address {address}; `allow_private_addresses` permits it"
                    )
        for position, address in enumerate(addresses):
            dialled = httpx.Request(
                request.method,
                request.url.copy_with(host=str(address)),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": host},
            )
            try:
                return await self._inner.handle_async_request(dialled)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                # Nothing was sent yet, so the next address may be tried.
                if position == len(addresses) - 1:
                    raise
        raise httpx.ConnectError(f"{host} has no address")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


async def _resolve(host: str, port: int) -> list[IpAddress]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpx.ConnectError(f"{host} has no address: {error}") from error
    return list(dict.fromkeys(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))


def is_private(address: IpAddress) -> bool:
    """Tell whether an address is not one of the public internet, also when it hides in an IPv6 one."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_private(inner)
    return not address.is_global or address.is_multicast


def _checked_url(name: str, text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise UserError(f"sink {name}: its url cannot be read") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise UserError(f"sink {name}: its url must begin with http:// or https:// and name a host")
    return url


def _document(row: SinkRow) -> dict[str, object]:
    topic, partition, offset = row.source
    return {
        "kind": row.kind,
        "key": dict(zip(row.key_fields, row.key, strict=True)),
        "version": row.version,
        "row": row.row,
        "source": {"topic": topic, "partition": partition, "offset": offset},
    }


def _idempotency_key(rows: Sequence[SinkRow]) -> str:
    """Return the same key for the same rows: a digest of their identities and versions."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(orjson.dumps([row.kind, row.key, row.version]))
    return digest.hexdigest()


def retry_after_ms(value: str | None, now_ms: int) -> int:
    """Return the wait that a Retry-After header asks for: seconds or a date; 0 when there is none."""
    if value is None:
        return 0
    if value.strip().isdecimal():
        return int(value.strip()[:9]) * 1000
    try:
        return max(0, round(parsedate_to_datetime(value).timestamp() * 1000) - now_ms)
    except (ValueError, OverflowError):
        return 0
