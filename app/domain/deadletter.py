"""A record that could not be used, with everything needed to understand it and to send it again."""

from collections.abc import Sequence
from typing import Final, NamedTuple

# A key is a name and headers are a few: more of them is bad input, which must not make a letter that no broker takes.
KEEP_KEY_BYTES: Final = 4_096
KEEP_HEADERS_BYTES: Final = 16_384


class DeadLetter(NamedTuple):
    """The refused record as it was read, where, by which stage and why; times in ms UTC.

    `value` holds at most the first `keep_bytes` of the original (None for a tombstone), `value_bytes` its full length:
    a longer one is read again from (topic, partition, offset). So are a key and headers beyond KEEP_KEY_BYTES and
    KEEP_HEADERS_BYTES, of which the beginning is kept; `is_cut` tells of these.
    """

    stage: str
    reason: str
    detail: str
    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    value_bytes: int
    headers: tuple[tuple[str, bytes], ...]
    attempt: int
    first_seen: int
    is_cut: bool = False

    @property
    def is_truncated(self) -> bool:
        """Whether value, key or headers are only the beginning of the original's."""
        return self.is_cut or (self.value is not None and len(self.value) < self.value_bytes)


class Origin(NamedTuple):
    """A Kafka record as it was read."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


def dead_letter(
    origin: Origin, *, stage: str, reason: str, detail: str, now_ms: int, keep_bytes: int, attempt: int = 1
) -> DeadLetter:
    """Make the dead letter of a record; one bad record never grows past the broker's message limit."""
    value = origin.value
    headers = _kept(origin.headers)
    key = origin.key if origin.key is None else origin.key[:KEEP_KEY_BYTES]
    return DeadLetter(
        stage=stage,
        reason=reason,
        detail=detail[:1_000],
        topic=origin.topic,
        partition=origin.partition,
        offset=origin.offset,
        timestamp=origin.timestamp,
        key=key,
        value=None if value is None else value[:keep_bytes],
        value_bytes=0 if value is None else len(value),
        headers=headers,
        attempt=attempt,
        first_seen=now_ms,
        is_cut=key != origin.key or len(headers) < len(origin.headers),
    )


def _kept(headers: Sequence[tuple[str, bytes]]) -> tuple[tuple[str, bytes], ...]:
    """The first headers, as many as fit into KEEP_HEADERS_BYTES."""
    kept = []
    room = KEEP_HEADERS_BYTES
    for name, content in headers:
        room -= len(name.encode(errors="surrogatepass")) + len(content or b"")
        if room < 0:
            break
        kept.append((name, content or b""))
    return tuple(kept)
