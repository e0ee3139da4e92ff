"""Laws of the index of executions over records that no engine writes: passed over, counted, and never its end."""

from pathlib import Path

import orjson
import pytest

from app.adapters.execution_reader import ExecutionReader, Wanted
from app.adapters.execution_store import ExecutionStore
from tests.helpers.executions import run, started

START = {"type": "start", "execution_id": "p", "workflow": "w", "version": "v", "at_ms": 1_763_689_000_000}
RUN = {"execution_id": "p", "workflow": "w", "version": "v", "epoch": 1, "first_seq": 0}
EVENT = {"type": "execution_started", "seq": 0, "at": 1_763_689_000_000}
BEYOND = ("9223372036854775808", "-9223372036854775809", "18446744073709551616", "1e400", "1.5", "9" * 400)


def written(document: dict[str, object], **raw: str) -> bytes:
    fields = {name: orjson.dumps(value).decode() for name, value in document.items()} | raw
    return ("{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}").encode()


def starts() -> list[bytes]:
    odd = [written(START, **{name: number}) for name in ("priority", "at_ms") for number in BEYOND]
    texts = [written(START, **{name: '"\\ud800 x"'}) for name in ("execution_id", "workflow", "key")]
    held = [written(START, execution_id=f'"a{n}"', at_ms=str(n)) for n in (-(1 << 63), -1, 0, 1 << 52, (1 << 63) - 1)]
    deep = written(START, input="[" * 5000 + "]" * 5000)
    return [*odd, *texts, *held, deep, b"", b"\xff", b"null", b"[]", written(START, type="7"), b'{"type":"start"}']


def runs() -> list[bytes]:
    def of(**raw: str) -> bytes:
        return written(RUN, events="[" + written(EVENT).decode() + "]", **raw)

    odd = [of(**{name: number}) for name in ("epoch", "first_seq") for number in (*BEYOND, "-1")]
    events = [
        written(RUN, events="[" + written(EVENT, **{name: number}).decode() + "]")
        for name in ("at", "seq", "asked_at", "priority")
        for number in (*BEYOND, "-1", str(1 << 52))
    ]
    return [*odd, *events, written(RUN, events="[]"), written(RUN, events="7"), of(first_seq=str(1 << 24)), b"", b"{}"]


@pytest.mark.parametrize("together", [True, False])
def test_no_record_of_whatever_content_ends_the_feed(tmp_path: Path, *, together: bool) -> None:
    store = ExecutionStore(tmp_path)
    good = run("good", started())
    if together:
        store.apply([*starts(), *starts()], [*runs(), good], [])
    else:
        for command in starts():
            store.apply([command], [], [])
        for value in (*runs(), good):
            store.apply([], [value], [])
    assert store.unreadable > 0
    store.close()
    reader = ExecutionReader(tmp_path)
    assert "good" in {row.id for row in reader.page(Wanted(), None, 100)}
    assert [reader.detail(row.id) is not None for row in reader.page(Wanted(), None, 100)]
    reader.close()
