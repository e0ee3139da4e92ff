"""Laws of `headrace dlq`: the way back is whole, and nobody takes it twice."""

import asyncio
from dataclasses import dataclass

import orjson
import pytest

from app.adapters.clock import SystemClock
from app.adapters.dead_letters import CHUNK, MARK, ORIGIN, Place, Redriven, Wanted, newest, redrive, select
from app.adapters.producer import BatchProducer, ProducerLimits
from app.codec import encode_dead_letter, encode_dead_letter_record
from app.domain.deadletter import Origin, dead_letter
from app.errors import UserError
from app.ports import InRecord, OutRecord
from config.topics import DEVICE_DEADLETTER, DEVICE_TELEMETRY
from tests.helpers.broker import TopicFactory
from tests.helpers.cli import Headrace
from tests.helpers.records import count, reader, records, send

pytestmark = pytest.mark.broker

NOW_MS = 1_763_689_000_000


def a_letter(origin: Origin, reason: str = "malformed_json", keep_bytes: int = 1_000) -> bytes:
    letter = dead_letter(origin, stage="test", reason=reason, detail="no", now_ms=NOW_MS, keep_bytes=keep_bytes)
    return encode_dead_letter_record(letter)


def an_origin(topic: str, offset: int, value: bytes | None = b"oops", key: bytes | None = b"press-0001") -> Origin:
    return Origin(topic, 0, offset, NOW_MS, key, value, (("a", b"\xff"),))


@dataclass
class Bench:
    """A dead-letter topic and a topic of originals, both new."""

    bootstrap: str
    letters: str
    originals: str

    async def bury(self, *letters: bytes | None) -> None:
        await send(
            self.bootstrap, [OutRecord(self.letters, b"press-0001", each, NOW_MS + n) for n, each in enumerate(letters)]
        )

    async def redriven(self, wanted: Wanted = Wanted(), **options: bool) -> tuple[int, int, int]:  # noqa: B008
        found = reader(self.bootstrap)
        selection = await select(found, wanted, None, again=options.get("again", False), topic=self.letters)
        done = Redriven(0, 0, 0)
        async with BatchProducer(ProducerLimits(self.bootstrap)) as producer:
            async for step in redrive(
                found,
                producer,
                selection,
                now_ms=lambda: NOW_MS,
                stopped=lambda: options.get("stop", False),
                record_bytes=100_000,
                timestamp_of=lambda original_ms, now_ms: original_ms or now_ms,
                topic=self.letters,
            ):
                done = step
        return done.sent, done.gone, done.too_large


@pytest.fixture
def bench(broker: str, new_topic: TopicFactory) -> Bench:
    config = {"message.timestamp.before.max.ms": str((1 << 63) - 1)}
    return Bench(broker, new_topic(2, **config), new_topic(2, **config))


async def test_originals_go_back_as_they_were_and_only_once(bench: Bench) -> None:
    origins = [an_origin(bench.originals, n, value) for n, value in enumerate((b"\xff\x00", None, b"{}"))]
    await bench.bury(*(a_letter(each) for each in origins))
    assert await bench.redriven() == (3, 0, 0)
    back = await _all(bench, bench.originals)
    assert [record.value for record in back] == [b"\xff\x00", None, b"{}"]
    assert {(record.key, record.timestamp) for record in back} == {(b"press-0001", NOW_MS)}
    assert [list(record.headers) for record in back] == [[("a", b"\xff"), (ORIGIN, b"0:%d" % n)] for n in range(3)]
    assert await bench.redriven() == (0, 0, 0)
    assert len(await _all(bench, bench.originals)) == 3


async def test_a_selection_is_by_place_reason_device_topic_and_stage(bench: Bench) -> None:
    here, there = an_origin(bench.originals, 0), an_origin(bench.originals, 1, key=b"pump-0001")
    await bench.bury(a_letter(here), a_letter(there, "too_large"), a_letter(there))
    found = reader(bench.bootstrap)

    async def chosen(**wanted: object) -> set[int]:
        selection = await select(found, Wanted(**wanted), None, again=False, topic=bench.letters)  # type: ignore[arg-type]
        return {place.offset for place in selection.places}

    assert await chosen() == {0, 1, 2}
    assert await chosen(reason="too_large") == {1}
    assert await chosen(device="press-0001") == {0}
    assert await chosen(topic="other") == set()
    assert await chosen(stage="test", device="pump-0001", reason="malformed_json") == {2}
    assert await chosen(places=frozenset({Place(0, 2)})) == {2}
    assert await bench.redriven(Wanted(reason="too_large")) == (1, 0, 0)
    assert await chosen() == {0, 2}, "only what was sent is marked"


async def test_a_beginning_is_completed_from_its_topic_and_told_when_that_is_gone(bench: Bench) -> None:
    whole = b"x" * 5_000
    await send(bench.bootstrap, [OutRecord(bench.originals, b"press-0001", whole, NOW_MS)])
    kept = a_letter(an_origin(bench.originals, 0, whole), "too_large", keep_bytes=10)
    gone = a_letter(an_origin(bench.originals, 77, whole), "too_large", keep_bytes=10)
    huge = a_letter(an_origin(bench.originals, 1, b"y" * 200_000), "too_large", keep_bytes=300_000)
    await bench.bury(kept, gone, huge)
    assert await bench.redriven() == (1, 1, 1)
    assert [record.value for record in await _all(bench, bench.originals)] == [whole, whole]
    selection = await select(reader(bench.bootstrap), Wanted(), None, again=False, topic=bench.letters)
    assert {place.offset for place in selection.places} == {1, 2}, "what was not sent can be tried again"


async def test_what_comes_back_is_left_out_unless_asked_for(bench: Bench) -> None:
    await bench.bury(a_letter(an_origin(bench.originals, 0)))
    await bench.redriven()
    (again,) = await _all(bench, bench.originals)
    origin = Origin(again.topic, 0, again.offset, NOW_MS, again.key, again.value, tuple(again.headers))
    await bench.bury(a_letter(origin))
    selection = await select(reader(bench.bootstrap), Wanted(), None, again=False, topic=bench.letters)
    assert (selection.redriven_before, selection.came_back, len(selection.places)) == (1, 1, 0)
    assert await bench.redriven() == (0, 0, 0)
    assert await bench.redriven(again=True) == (1, 0, 0)
    assert await bench.redriven(again=True) == (0, 0, 0)
    _, last = await _all(bench, bench.originals)
    assert [name for name, _ in last.headers] == ["a", ORIGIN], "one origin, the newest"


async def test_rows_of_files_and_strangers_are_left_out_and_counted(bench: Bench) -> None:
    row = encode_dead_letter("malformed_row", "no", b"a;b", line=7, file="one.csv")
    await bench.bury(row, b"not json", b"[]", None, a_letter(an_origin(bench.originals, 0)))
    selection = await select(reader(bench.bootstrap), Wanted(), None, again=False, topic=bench.letters)
    assert (len(selection.places), selection.of_files) == (1, 1)
    listed = await newest(reader(bench.bootstrap), Wanted(), 10, None, bench.letters)
    assert ([each.line for each in listed.letters], listed.unreadable) == ([None, 7], 3)


async def test_a_stop_ends_between_chunks_and_the_rest_follows_later(bench: Bench) -> None:
    origins = [an_origin(bench.originals, n, b"%d" % n) for n in range(CHUNK + 5)]
    await bench.bury(*(a_letter(each) for each in origins))
    assert await bench.redriven(stop=True) == (CHUNK, 0, 0)
    assert await bench.redriven() == (5, 0, 0)
    assert sorted(int(record.value or b"") for record in await _all(bench, bench.originals)) == list(range(CHUNK + 5))


async def test_a_topic_that_is_gone_is_told_and_nothing_is_marked(bench: Bench) -> None:
    await bench.bury(a_letter(an_origin("no-such-topic", 0)))
    with pytest.raises(UserError, match="no topic no-such-topic"):
        await bench.redriven()
    assert not [record for record in await _all(bench, bench.letters) if dict(record.headers).get(MARK)]


async def test_the_newest_are_found_however_far_back_they_are(bench: Bench) -> None:
    rare = a_letter(an_origin(bench.originals, 0), "rare")
    await bench.bury(rare, *[a_letter(an_origin(bench.originals, n)) for n in range(1_500)])
    found = reader(bench.bootstrap)
    few = await newest(found, Wanted(), 3, None, bench.letters)
    assert [each.place.offset for each in few.letters] == [1_500, 1_499, 1_498]
    assert [
        each.place.offset for each in (await newest(found, Wanted(reason="rare"), 3, None, bench.letters)).letters
    ] == [0]
    since = await newest(found, Wanted(), 2_000, NOW_MS + 1_490, bench.letters)
    assert [each.place.offset for each in since.letters] == list(range(1_500, 1_489, -1))


async def _all(bench: Bench, topic: str) -> list[InRecord]:
    return await asyncio.to_thread(records, bench.bootstrap, topic)


# ---- as a process ----


@pytest.fixture
def buried(headrace: Headrace) -> Headrace:
    """Two dead letters of telemetry on the broker of the module, dated now: the topic forgets what is old."""
    assert headrace("topics", "declare").code == 0
    letters = [a_letter(an_origin(DEVICE_TELEMETRY.name, n)) for n in (0, 1)]
    now_ms = SystemClock().now_ms()
    asyncio.run(
        send(headrace.bootstrap, [OutRecord(DEVICE_DEADLETTER.name, b"press-0001", each, now_ms) for each in letters])
    )
    return headrace


def test_the_round_trip_at_a_prompt(buried: Headrace) -> None:
    dlq = buried
    found = dlq("dlq", "list", "--json").json["items"]
    assert [each["place"] for each in found] == ["0:1", "0:0"]
    assert {each["redriven"] for each in found} == {False}
    shown = dlq("dlq", "show", "0:1")
    assert shown.code == 0
    assert "malformed_json" in shown.out
    assert shown.out.rstrip().endswith("oops")
    plan = dlq("dlq", "redrive", "--reason", "malformed_json", "--dry-run", "--json").json
    assert (plan["selected"], plan["sent"], plan["by_topic"]) == (2, 0, {DEVICE_TELEMETRY.name: 2})
    nobody = dlq("dlq", "redrive", "--all")
    assert nobody.code == 2
    assert "--yes" in nobody.err
    done = dlq("dlq", "redrive", "--reason", "malformed_json", "--yes")
    assert done.code == 0, done.err
    assert "2 sent back." in done.out
    again = dlq("dlq", "redrive", "--all", "--yes", "--json").json
    assert (again["sent"], again["redriven_before"]) == (0, 2)
    assert count(dlq.bootstrap, DEVICE_TELEMETRY.name) == 2
    assert {each["redriven"] for each in dlq("dlq", "list", "--json").json["items"]} == {True}
    table = dlq("dlq", "list").out
    assert "malformed_json" in table
    assert "\x1b" not in table
    missing = dlq("dlq", "show", "0:999")
    assert (missing.code, missing.err.count("\n")) == (2, 1)
    assert orjson.loads(dlq("dlq", "show", "0:0", "--json").out)["redriven"] is True
