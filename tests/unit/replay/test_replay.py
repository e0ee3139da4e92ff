"""Laws of the replay: every row once, in order, at its pace; what is wrong becomes a dead letter."""

import asyncio
import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.ledger import Books
from agents.replay import ReplayDone, ReplayLimits, limits_of, replay
from app.adapters.csv_replay import MAX_LINE_BYTES, BadRow, Recording, open_recording
from app.domain.replay import Recorded
from app.errors import ConfigError, UserError
from config.mapping import ReplayMapping, load_mapping, shipped
from config.replay import ReplaySettings
from tests.helpers.fleet import T0, ManualClock, RoomySender

TELEMETRY, TRUTH, METADATA, LETTERS = "device.telemetry", "device.truth", "device.metadata", "device.deadletter"
FAST = ReplayLimits(speed=0)
SHARED = Path(__file__).parents[3].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded data is not at ../shared/data")

MAPPING = ReplayMapping.model_validate(
    {
        "time": {"column": "at"},
        "device": {"id": "rec-{file}", "site": "lab"},
        "metrics": [{"metric": "temperature", "column": "temp", "unit": "CEL"}],
        "labels": {"columns": {"anomaly": "bad"}},
    }
)
FIRST = 1_577_836_800_000  # 2020-01-01 00:00:00


def a_file(folder: Path, *lines: str | bytes, name: str = "one.csv", head: str = "at,temp,bad") -> Path:
    path = folder / name
    rows = [line.encode() if isinstance(line, str) else line for line in (head, *lines)]
    path.write_bytes(b"\n".join(rows) + b"\n")
    return path


def seconds(count: int, labelled: range = range(0)) -> list[str]:
    return [f"2020-01-01 00:{n // 60:02d}:{n % 60:02d},{n / 4},{1 if n in labelled else 0}" for n in range(count)]


class Scene:
    def __init__(self, recording: Recording, limits: ReplayLimits = FAST, room: int = 1 << 30) -> None:
        self.recording = recording
        self.limits = limits
        self.clock = ManualClock()
        self.sender = RoomySender(room)
        self.books = Books(TELEMETRY)
        self.stop = asyncio.Event()
        self.each: Callable[[], Any] = lambda: None

    async def run(self) -> ReplayDone:
        async def pause(pause_s: float) -> None:
            self.clock.move(max(round(pause_s * 1000), 1) if pause_s else 0)
            self.each()
            await asyncio.sleep(0)

        return await replay(self.recording, self.sender, self.clock, self.books, self.limits, self.stop, pause)

    def telemetry(self) -> list[Any]:
        return [each.json for each in self.sender.of(TELEMETRY)]


async def test_every_row_is_one_sample_in_order(tmp_path: Path) -> None:
    scene = Scene(open_recording([a_file(tmp_path, *seconds(50))], MAPPING), FAST._replace(chunk_rows=7))
    assert await scene.run() == ReplayDone(50, 0, 0, finished=True)
    samples = scene.telemetry()
    assert [each["seq"] for each in samples] == list(range(1, 51))
    assert [each["metrics"][0]["value"] for each in samples] == [n / 4 for n in range(50)]
    assert {each["device_id"] for each in samples} == {"rec-one"}
    scene.sender.acknowledge(scene.books)
    assert scene.books.balances(0)
    assert scene.books.ledger.acknowledged == 50


async def test_times_are_kept_or_shifted_so_that_the_last_is_now(tmp_path: Path) -> None:
    recording = open_recording([a_file(tmp_path, *seconds(11))], MAPPING)
    kept, shifted = Scene(recording, FAST._replace(times="keep")), Scene(recording)
    await kept.run()
    await shifted.run()
    assert [each["source_timestamp"] for each in kept.telemetry()] == [FIRST + n * 1000 for n in range(11)]
    assert [each["source_timestamp"] for each in shifted.telemetry()] == [T0 - 10_000 + n * 1000 for n in range(11)]


async def test_a_record_s_own_time_is_the_row_s_unless_the_broker_would_delete_or_refuse_it(tmp_path: Path) -> None:
    recording = open_recording([a_file(tmp_path, *seconds(3))], MAPPING)
    kept, shifted = Scene(recording, FAST._replace(times="keep")), Scene(recording)
    await kept.run()
    await shifted.run()
    assert {each.timestamp_ms for each in kept.sender.of(TELEMETRY)} == {T0}
    assert [each.timestamp_ms for each in shifted.sender.of(TELEMETRY)] == [T0 - 2000, T0 - 1000, T0]


@pytest.mark.parametrize("speed", [1.0, 10.0])
async def test_rows_are_sent_at_their_pace(tmp_path: Path, speed: float) -> None:
    scene = Scene(open_recording([a_file(tmp_path, *seconds(11))], MAPPING), ReplayLimits(speed=speed))
    await scene.run()
    intended = [each.intended_ms for each in scene.sender.of(TELEMETRY)]
    assert intended == [T0 + n * 1000 / speed for n in range(11)]
    for each in scene.telemetry():
        assert 0 <= each["recorded_timestamp"] - (T0 + (each["seq"] - 1) * 1000 / speed) <= 1
    if speed == 1.0:
        assert [each["source_timestamp"] for each in scene.telemetry()] == intended


async def test_labels_are_truth_as_their_time_passes(tmp_path: Path) -> None:
    scene = Scene(open_recording([a_file(tmp_path, *seconds(20, range(5, 9)))], MAPPING))
    assert (await scene.run()).truths == 2
    shift = T0 - FIRST - 19_000
    truth = [each.json for each in scene.sender.of(TRUTH)]
    assert [(each["kind"], each["from_ts"], each["to_ts"]) for each in truth] == [
        ("anomaly", FIRST + shift + 5_000, None),
        ("anomaly", FIRST + shift + 5_000, FIRST + shift + 9_000),
    ]
    order = [(each.topic, each.json.get("seq")) for each in scene.sender.sent if each.topic != METADATA]
    assert order.index((TRUTH, None)) == 5
    assert order[6] == (TELEMETRY, 6)


async def test_truth_is_not_in_the_readings(tmp_path: Path) -> None:
    scene = Scene(open_recording([a_file(tmp_path, *seconds(20, range(5, 9)))], MAPPING))
    await scene.run()
    assert len({(tuple(each), tuple(each["metrics"][0])) for each in scene.telemetry()}) == 1


async def test_the_recorded_device_is_made_known_with_the_range_it_had(tmp_path: Path) -> None:
    scene = Scene(open_recording([a_file(tmp_path, *seconds(9))], MAPPING))
    await scene.run()
    online, offline = [each.json for each in scene.sender.of(METADATA)]
    assert (online["device_id"], online["device_type"], online["site"]) == ("rec-one", "recorded", "lab")
    assert online["metrics"][0]["eu_range"] == {"low": 0.0, "high": 2.0}
    assert online["metrics"][0]["sample_interval_ms"] == 1000
    assert (online["state"], offline["state"]) == ("ONLINE", "OFFLINE")


async def test_a_malformed_row_is_a_dead_letter_with_its_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    bad = {
        3: (b"2020-01-01 00:00:01,warm,0", "malformed_row"),
        4: (b'2020-01-01 00:00:01,"1,0', "malformed_row"),
        5: (b"2020-01-01 00:00:01,\xff,0", "invalid_utf8"),
        7: (b"2020-01-01 00:00:01,1", "malformed_row"),
    }
    lines: list[str | bytes] = [
        *seconds(1),
        *(bad[n][0] for n in (3, 4, 5)),
        *seconds(3)[2:],
        bad[7][0],
        *seconds(4)[3:],
    ]
    scene = Scene(open_recording([a_file(tmp_path, *lines)], MAPPING))
    assert await scene.run() == ReplayDone(3, 4, 0, finished=True)
    letters = {each.json["line"]: each.json for each in scene.sender.of(LETTERS)}
    assert {line: (base64.b64decode(each["original"]), each["reason"]) for line, each in letters.items()} == bad
    assert {each["file"] for each in letters.values()} == {"one.csv"}
    scene.sender.acknowledge(scene.books)
    assert scene.books.balances(0)
    assert (scene.books.ledger.generated, scene.books.ledger.dead_lettered) == (7, 4)


async def test_a_line_without_end_is_one_dead_letter_of_bounded_size(tmp_path: Path) -> None:
    lines = [seconds(1)[0], "9" * (MAX_LINE_BYTES * 3), seconds(2)[1]]
    scene = Scene(open_recording([a_file(tmp_path, *lines)], MAPPING))
    assert await scene.run() == ReplayDone(2, 1, 0, finished=True)
    (letter,) = [each.json for each in scene.sender.of(LETTERS)]
    assert (letter["line"], letter["reason"]) == (3, "too_large")
    assert len(base64.b64decode(letter["original"])) == MAX_LINE_BYTES


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.binary(max_size=40).map(lambda row: row.replace(b"\n", b"").replace(b"\r", b"")), max_size=20))
def test_every_line_that_is_not_blank_is_a_sample_or_a_dead_letter(
    rows: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = a_file(tmp_path_factory.mktemp("rows"), *seconds(1), *rows)
    recording = open_recording([path], MAPPING)
    found = list(recording.rows())
    assert len(found) == 1 + sum(1 for row in rows if row.strip())
    assert isinstance(found[0], Recorded)


async def test_a_full_producer_makes_the_replay_wait_and_nothing_is_dropped(tmp_path: Path) -> None:
    scene = Scene(open_recording([a_file(tmp_path, *seconds(40))], MAPPING), room=0)

    def trickle() -> None:
        waiting = scene.books.ledger.generated - len(scene.sender.of(TELEMETRY))
        assert scene.books.balances(waiting)
        scene.sender.room += 1

    scene.each = trickle
    assert await scene.run() == ReplayDone(40, 0, 0, finished=True)
    assert not scene.books.ledger.dropped


async def test_a_stopped_replay_says_so_and_accounts_for_the_row_at_hand(tmp_path: Path) -> None:
    scene = Scene(open_recording([a_file(tmp_path, *seconds(40))], MAPPING), room=10)
    scene.each = scene.stop.set
    done = await scene.run()
    assert not done.finished
    assert done.samples == len(scene.telemetry()) < 10
    scene.sender.acknowledge(scene.books)
    assert scene.books.balances(0)
    assert scene.books.ledger.dropped == {"stopped": 1}


async def test_files_are_merged_by_time(tmp_path: Path) -> None:
    even = a_file(tmp_path, *seconds(20)[::2], name="even.csv")
    odd = a_file(tmp_path, *seconds(20)[1::2], name="odd.csv")
    scene = Scene(open_recording([odd, even], MAPPING))
    await scene.run()
    times = [each["source_timestamp"] for each in scene.telemetry()]
    assert times == sorted(times)
    assert [each["device_id"] for each in scene.telemetry()] == ["rec-even", "rec-odd"] * 10


async def test_a_file_whose_times_step_back_keeps_its_order(tmp_path: Path) -> None:
    rows = seconds(9)
    rows[3], rows[4] = rows[4], rows[3]
    other = a_file(tmp_path, *seconds(9), name="other.csv")
    scene = Scene(open_recording([a_file(tmp_path, *rows), other], MAPPING))
    await scene.run()
    values = [each["metrics"][0]["value"] for each in scene.telemetry() if each["device_id"] == "rec-one"]
    assert values == [float(row.split(",")[1]) for row in rows]


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_are_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "dos.csv"
    path.write_bytes(b"\xef\xbb\xbfat,temp,bad\r\n\r\n" + "\r\n".join(seconds(3)).encode() + b"\r\n\r\n")
    assert len(list(open_recording([path], MAPPING).rows())) == 3


# ---- what cannot be replayed


def test_every_problem_of_every_file_is_named_at_once(tmp_path: Path) -> None:
    wrong = a_file(tmp_path, *seconds(1), head="when,temp,bad")
    with pytest.raises(ConfigError) as refused:
        open_recording([wrong, tmp_path / "absent.csv"], MAPPING)
    text = str(refused.value)
    assert "one.csv:1: there is no column 'at'; there are when, temp, bad" in text
    assert "absent.csv: cannot be read: No such file or directory" in text


@pytest.mark.parametrize("content", [b"", b"at,temp,bad\n", b"at,temp,bad\nx,y,z\n"])
def test_a_file_without_a_usable_row_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.csv"
    path.write_bytes(content)
    with pytest.raises(UserError):
        open_recording([path], MAPPING)


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        (None, "labels cannot be read"),
        ("{", "labels are not JSON"),
        ("[]", "there are no labels for 'one'"),
        ('{"one": [["2020-01-01"]]}', "a list of two times"),
        ('{"one": [["2020-01-01", "soon"]]}', "no time of the format"),
    ],
)
def test_labels_that_cannot_be_read_are_named(tmp_path: Path, labels: str | None, part: str) -> None:
    mapping = MAPPING.model_validate(
        MAPPING.model_dump() | {"labels": {"windows": {"file": "labels.json", "key": "{file}"}}}
    )
    path = a_file(tmp_path, *seconds(1))
    if labels is not None:
        (tmp_path / "labels.json").write_text(labels)
    with pytest.raises(ConfigError, match=part):
        open_recording([path], mapping)


def test_a_mapping_is_refused_with_every_problem_and_its_line(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("delimiter: ';;'\ntime: {column: at, zone: Mars/Olympus}\ndevice: {}\nmetrics: []\ncolour: red\n")
    with pytest.raises(ConfigError) as refused:
        load_mapping(path)
    text = str(refused.value)
    for part in (":1: delimiter", "Mars/Olympus", "give either id or column", "metrics", ":5: colour"):
        assert part in text


@pytest.mark.parametrize("text", ["", "{", "[]", "time: {column: at}"])
def test_no_text_of_a_mapping_ends_in_a_traceback(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_mapping(path)


def test_a_mapping_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ConfigError, match="skab-valve"):
        load_mapping("nowhere.yaml")


def test_the_shipped_mappings_are_valid() -> None:
    assert set(shipped()) >= {"nab-machine-temperature", "nab-ambient-temperature", "skab-valve"}
    for name in shipped():
        assert load_mapping(name).metrics


def test_settings_make_the_limits() -> None:
    assert limits_of(ReplaySettings(speed=2.5, times="keep")) == ReplayLimits(2.5, "keep", 1000, 5)


# ---- the shared recordings


@needs_shared
@pytest.mark.parametrize(
    ("mapping", "names", "samples", "intervals"),
    [
        ("nab-machine-temperature", ["nab/machine_temperature_system_failure.csv"], 22_695, 4),
        ("nab-ambient-temperature", ["nab/ambient_temperature_system_failure.csv"], 7_267, 2),
        ("skab-valve", ["skab/valve1_0.csv", "skab/valve1_1.csv"], 2_292, 10),
    ],
)
async def test_the_shared_recordings_are_replayed_whole_with_their_labels(
    mapping: str, names: list[str], samples: int, intervals: int
) -> None:
    recording = open_recording([SHARED / name for name in names], load_mapping(mapping))
    scene = Scene(recording)
    assert await scene.run() == ReplayDone(samples, 0, 2 * intervals, finished=True)
    assert max(each["source_timestamp"] for each in scene.telemetry()) == T0


@needs_shared
def test_nab_windows_are_where_its_labels_file_has_them() -> None:
    recording = open_recording(
        [SHARED / "nab/machine_temperature_system_failure.csv"], load_mapping("nab-machine-temperature")
    )
    first = min(recording.survey.intervals(), key=lambda each: each.from_ms)
    assert (first.kind, first.metric, first.from_ms) == ("anomaly", "temperature", 1_386_656_700_000)


@needs_shared
def test_a_bad_row_in_a_copy_of_shared_data_is_found_by_its_line(tmp_path: Path) -> None:
    lines = (SHARED / "skab/valve1_0.csv").read_bytes().splitlines()
    lines[99] = lines[99].replace(b";", b",", 1)
    path = tmp_path / "valve1_0.csv"
    path.write_bytes(b"\n".join(lines))
    bad = [row for row in open_recording([path], load_mapping("skab-valve")).rows() if isinstance(row, BadRow)]
    assert [(row.line, row.reason) for row in bad] == [(100, "malformed_row")]


async def test_headers_are_cloudevents_when_they_are_on(tmp_path: Path) -> None:
    scene = Scene(open_recording([a_file(tmp_path, *seconds(2))], MAPPING), FAST._replace(cloudevents_headers=True))
    await scene.run()
    sent = scene.sender.of(TELEMETRY)[0]
    headers = dict(sent.headers)
    assert headers["ce_id"] == f"rec-one:{sent.json['session_id']}:1".encode()
    assert headers["ce_source"].startswith(b"urn:plant:")
