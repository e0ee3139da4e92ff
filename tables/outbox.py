"""What a restart must send again, as bytes: the keys of changed rows and the outputs of one transaction."""

from collections.abc import Iterable, Sequence

import orjson

from app.ports import OutRecord


def pack_outbox(keys: Iterable[bytes], outputs: Sequence[OutRecord]) -> bytes:
    """What a restart must send again: the keys of changed rows (their values are in the store) and the outputs."""
    heads = [
        [
            record.topic,
            -1 if record.key is None else len(record.key),
            -1 if record.value is None else len(record.value),
            record.timestamp_ms,
            [[name, content.hex()] for name, content in record.headers],
            record.partition,
        ]
        for record in outputs
    ]
    changed = list(keys)
    head = orjson.dumps([[len(key) for key in changed], heads])
    parts = [len(head).to_bytes(4, "big"), head, *changed]
    for record in outputs:
        parts += (record.key or b"", record.value or b"")
    return b"".join(parts)


def unpack_outbox(packed: bytes) -> tuple[list[bytes], list[OutRecord]]:
    """The keys and outputs of an outbox entry."""
    size = int.from_bytes(packed[:4], "big")
    at = 4 + size
    sizes, heads = orjson.loads(packed[4:at])

    def take(length: int) -> bytes | None:
        nonlocal at
        if length < 0:
            return None
        at += length
        return packed[at - length : at]

    keys = [packed[at : (at := at + length)] for length in sizes]
    outputs = []
    for topic, key_bytes, value_bytes, timestamp_ms, headers, partition in heads:
        key, value = take(key_bytes), take(value_bytes)
        pairs = tuple((name, bytes.fromhex(content)) for name, content in headers)
        outputs.append(OutRecord(topic, key, value, timestamp_ms, pairs, partition))
    return keys, outputs
