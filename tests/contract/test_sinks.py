"""The laws that every sink obeys, and the double with them."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.adapters.producer import ProducerLimits
from app.adapters.sinks import build
from app.errors import SinkRejected
from app.ports import SinkRow
from config.sinks import SinkSettings
from tests.helpers.databases import DatabaseServer, mariadb_server, postgresql_server
from tests.helpers.sinks import (
    FixedClock,
    MemorySink,
    Place,
    Stored,
    Webhook,
    a_rollup,
    a_signal,
    driver_url,
    from_columns,
    json_lines,
    kafka_documents,
    newest,
    newest_of_columns,
    parquet_records,
    serving,
    some_readings,
    sql_rows,
    sql_run,
    without_nulls,
)

__all__ = ["mariadb_server", "postgresql_server"]

KINDS = ("rollups", "signals", "readings")
NO_KAFKA = ProducerLimits(bootstrap_servers="127.0.0.1:1")


def expected(*rows: SinkRow) -> Stored:
    """What is in force after `rows`: the highest version of each identity."""
    return newest([{"kind": r.kind, "key": dict(enumerate(r.key)), "version": r.version, "row": r.row} for r in rows])


def too_long(**changes: Any) -> SinkRow:
    """A rollup whose unit fits no column."""
    return a_rollup(99, unit="x" * 300, **changes)


def memory() -> Place:
    stored: Stored = {}

    async def read() -> Stored:
        return dict(stored)

    async def count() -> int:
        return len(stored)

    return Place(lambda: MemorySink(stored), read, count, too_long())


async def sql(url: str) -> Place:
    spec = SinkSettings(name="t", kind="sql", url=url, connect_timeout_ms=5_000)
    here = driver_url(url)

    async def read() -> Stored:
        return dict([from_columns(kind, record) for kind in KINDS for record in await sql_rows(here, kind)])

    async def count() -> int:
        return sum([len(await sql_rows(here, kind)) for kind in KINDS])

    sink = build(spec, clock=FixedClock(), kafka=NO_KAFKA)
    await sink.open()
    await sink.close()
    await sql_run(here, *(f"DELETE FROM {kind}" for kind in KINDS))
    return Place(lambda: build(spec, clock=FixedClock(), kafka=NO_KAFKA), read, count, too_long())


def jsonl(folder: Path) -> Place:
    spec = SinkSettings(name="t", kind="jsonl", path=str(folder))

    async def read() -> Stored:
        return newest(json_lines(folder))

    async def count() -> int:
        return len(json_lines(folder))

    return Place(lambda: build(spec, clock=FixedClock(), kafka=NO_KAFKA), read, count, a_rollup(99, extra_field={1, 2}))


def parquet(folder: Path) -> Place:
    spec = SinkSettings(name="t", kind="parquet", path=str(folder))

    async def read() -> Stored:
        return newest_of_columns(parquet_records(folder))

    async def count() -> int:
        return len(parquet_records(folder))

    return Place(lambda: build(spec, clock=FixedClock(), kafka=NO_KAFKA), read, count, too_long())


def webhook(receiver: Webhook, body: str) -> Place:
    spec = SinkSettings(name="t", kind="http", url=receiver.url, http_body=body, allow_private_addresses=True)
    receiver.refuse = "refuse-me"

    async def read() -> Stored:
        return newest(receiver.documents)

    return Place(lambda: build(spec, clock=FixedClock(), kafka=NO_KAFKA), read, None, a_rollup(99, unit="refuse-me"))


def kafka(bootstrap: str, topic: str) -> Place:
    spec = SinkSettings(name="t", kind="kafka", topic=topic)
    limits = ProducerLimits(bootstrap_servers=bootstrap)

    async def read() -> Stored:
        return newest(await kafka_documents(bootstrap, topic))

    return Place(lambda: build(spec, clock=FixedClock(), kafka=limits), read, None, a_rollup(99, note="x" * 2_000_000))


BROKER = pytest.mark.broker


@pytest.fixture(
    params=[
        "memory", "sqlite", "postgresql", "mariadb", "jsonl", "parquet", "http-array", "http-row",
        pytest.param("kafka", marks=BROKER),
    ]
)  # fmt: skip
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    kind: str = request.param
    if kind == "memory":
        yield memory()
    elif kind == "sqlite":
        yield await sql(f"sqlite:///{tmp_path}/rows/headrace.db")
    elif kind in {"postgresql", "mariadb"}:
        server: DatabaseServer = request.getfixturevalue(f"{kind}_server")
        yield await sql(server.url)
    elif kind == "jsonl":
        yield jsonl(tmp_path / "lines")
    elif kind == "parquet":
        yield parquet(tmp_path / "parquet")
    elif kind.startswith("http"):
        async with serving(Webhook()) as receiver:
            yield webhook(receiver, kind.removeprefix("http-"))
    else:
        bootstrap = request.getfixturevalue("broker")
        yield kafka(bootstrap, request.getfixturevalue("new_topic")(partitions=1))


async def write(place: Place, *batches: list[SinkRow]) -> None:
    """Write batches one after the other, with a sink of their own."""
    sink = place.connect()
    await sink.open()
    try:
        for batch in batches:
            await sink.write(batch)
    finally:
        await sink.close()


async def test_every_kind_of_row_is_stored_as_it_was(place: Place) -> None:
    rows = [
        a_rollup(0),
        a_rollup(1, note="no column has this name", tags={"a": [1]}),
        a_signal(0),
        *some_readings(1, offset=0),
    ]
    await write(place, rows)
    assert await place.stored() == expected(*rows)


async def test_the_extremes_of_numbers_and_text_come_back_unchanged(place: Place) -> None:
    rows = [
        a_rollup(0, count=(1 << 63) - 1, gaps=-(1 << 63), high=1.7976931348623157e308, low=5e-324, sum=-0.1),
        a_rollup(1, unit="😀" * 255, device_id="Ünïcode % ' \" \\ ;"),
    ]
    await write(place, rows)
    assert await place.stored() == expected(*rows)


async def test_a_repeat_of_a_batch_changes_nothing(place: Place) -> None:
    rows = [a_rollup(i) for i in range(20)]
    await write(place, rows, rows)
    assert await place.stored() == expected(*rows)
    if place.count is not None:
        assert await place.count() == 20


async def test_a_repeat_after_a_crash_between_write_and_acknowledgement_adds_nothing(place: Place) -> None:
    """The repeat comes to a new process, begins earlier and ends later than the batch that was written."""
    rows = [a_rollup(i) for i in range(30)]
    await write(place, rows[:10], rows[10:20])
    await write(place, rows[5:30])
    assert await place.stored() == expected(*rows)
    if place.count is not None:
        assert await place.count() == 30


async def test_a_later_version_replaces_and_an_earlier_one_is_ignored(place: Place) -> None:
    await write(
        place,
        [a_rollup(0, revision=0, offset=0), a_rollup(1, revision=2, offset=1)],
        [a_rollup(0, revision=1, offset=2), a_rollup(1, revision=1, offset=3)],
    )
    assert await place.stored() == expected(a_rollup(0, revision=1), a_rollup(1, revision=2))


async def test_versions_of_one_row_in_one_batch_leave_the_highest(place: Place) -> None:
    batch = [a_rollup(0, revision=revision, offset=offset) for offset, revision in enumerate((1, 3, 0, 2))]
    await write(place, batch)
    assert await place.stored() == expected(a_rollup(0, revision=3))


async def test_a_cleared_signal_is_not_raised_again(place: Place) -> None:
    await write(place, [a_signal(0, "raised", offset=0), a_signal(0, "cleared", offset=1)])
    await write(place, [a_signal(0, "raised", offset=2)])
    assert await place.stored() == expected(a_signal(0, "cleared"))


async def test_keys_that_differ_in_case_or_blanks_are_different(place: Place) -> None:
    names = ("press", "Press", "press ", "PRESS", "preß", "press\t")
    rows = [a_rollup(0, device_id=name, offset=offset) for offset, name in enumerate(names)]
    await write(place, rows)
    assert await place.stored() == expected(*rows)


async def test_a_refused_row_is_named_and_the_others_are_durable(place: Place) -> None:
    rows = [a_rollup(i) for i in range(7)]
    batch = [*rows[:3], place.refused._replace(source=("device.rollups", 0, 3)), *rows[3:]]
    batch = [row._replace(source=("device.rollups", 0, offset)) for offset, row in enumerate(batch)]
    with pytest.raises(SinkRejected) as caught:
        await write(place, batch)
    assert list(caught.value.reasons) == [3]
    assert await place.stored() == expected(*rows)


async def test_an_empty_batch_is_no_batch(place: Place) -> None:
    await write(place, [])
    assert await place.stored() == {}


async def test_a_thousand_rows_go_in_one_batch(place: Place) -> None:
    rows = [a_rollup(i) for i in range(1000)]
    await write(place, rows)
    assert len(await place.stored()) == 1000


async def test_opening_twice_and_again_after_closing_is_harmless(place: Place) -> None:
    sink = place.connect()
    await sink.open()
    await sink.open()
    await sink.write([a_rollup(0)])
    await sink.close()
    await sink.open()
    await sink.write([a_rollup(1)])
    await sink.close()
    await sink.close()
    assert set(await place.stored()) == set(expected(a_rollup(0), a_rollup(1)))


def test_the_double_forgets_nulls_as_the_readers_do() -> None:
    assert without_nulls({"a": None, "b": 0}) == {"b": 0}
