"""Laws of the mapping from rows to samples and from labels to truth."""

import math
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.device import BAD_NO_DATA
from app.domain.replay import (
    Interval,
    MetricColumn,
    Recorded,
    RowMapping,
    RowReader,
    RowRejected,
    Survey,
    expanded,
    missing_columns,
    read_time,
)

HEADER = ["at", "temp", "flow", "bad"]
BERLIN = ZoneInfo("Europe/Berlin")


def a_mapping(**fields: object) -> RowMapping:
    mapping = RowMapping(
        time_column="at",
        time_format="iso",
        zone=UTC,
        device_id="rec-{file}",
        device_column=None,
        metrics=(MetricColumn("temperature", "temp", "CEL"), MetricColumn("flow", "flow", "MQH")),
        labels=(("anomaly", "bad"),),
        decimal=".",
        missing=frozenset({"", "NaN"}),
        delimiter=",",
    )
    return mapping._replace(**fields)  # type: ignore[arg-type]


def read(cells: list[str], **fields: object) -> Recorded | RowRejected:
    return RowReader(a_mapping(**fields), HEADER, "one").read(cells)


@given(
    st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
)
def test_a_row_is_its_time_device_readings_and_labels(at: datetime, temp: float, flow: float, labelled: bool) -> None:
    row = read([at.isoformat(" "), repr(temp), f" {flow!r} ", "1.0" if labelled else "0.0"])
    assert isinstance(row, Recorded)
    assert row.at_ms == (at.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert row.device_id == "rec-one"
    assert [(each.metric, each.value, each.unit, each.quality) for each in row.readings] == [
        ("temperature", temp, "CEL", "GOOD"),
        ("flow", flow, "MQH", "GOOD"),
    ]
    assert row.labels == ({"anomaly"} if labelled else set())


@given(st.lists(st.text(max_size=30), max_size=6))
def test_no_row_makes_the_reader_fail_and_no_value_is_ever_without_bounds(cells: list[str]) -> None:
    row = read(cells)
    if isinstance(row, Recorded):
        assert all(each.value is None or math.isfinite(each.value) for each in row.readings)
    else:
        assert row.detail


@pytest.mark.parametrize("text", ["", "NaN", " "])
def test_a_value_that_was_not_measured_is_bad_and_null(text: str) -> None:
    row = read(["2020-01-01 00:00:00", text, "1", "0"])
    assert isinstance(row, Recorded)
    assert row.readings[0] == ("temperature", None, "CEL", "BAD", BAD_NO_DATA)
    assert row.readings[1].value == 1.0


@pytest.mark.parametrize(
    ("cells", "part"),
    [
        (["2020-01-01 00:00:00", "1", "2"], "3 columns"),
        (["2020-01-01 00:00:00", "1", "2", "0", "9"], "5 columns"),
        (["yesterday", "1", "2", "0"], "no time"),
        (["", "1", "2", "0"], "no time"),
        (["2020-02-30 00:00:00", "1", "2", "0"], "no time"),
        (["2020-01-01 00:00:00", "warm", "2", "0"], "not a finite number"),
        (["2020-01-01 00:00:00", "inf", "2", "0"], "not a finite number"),
        (["2020-01-01 00:00:00", "1e999", "2", "0"], "not a finite number"),
        (["2020-01-01 00:00:00", "1_000", "2", "0"], "not a finite number"),
        (["2020-01-01 00:00:00", "٣", "2", "0"], "not a finite number"),
        (["2020-01-01 00:00:00", "1", "2", "maybe"], "label anomaly"),
    ],
)
def test_a_malformed_row_is_refused_with_its_reason(cells: list[str], part: str) -> None:
    row = read(cells)
    assert isinstance(row, RowRejected)
    assert part in row.detail


def test_a_decimal_comma_is_read_where_the_file_has_it() -> None:
    row = read(["2020-01-01 00:00:00", "3,5", "-1,25e2", "0"], decimal=",")
    assert isinstance(row, Recorded)
    assert [each.value for each in row.readings] == [3.5, -125.0]
    assert isinstance(read(["2020-01-01 00:00:00", "1.000,5", "1", "0"], decimal=","), RowRejected)


def test_a_device_may_be_named_by_a_column() -> None:
    row = read(["2020-01-01 00:00:00", "1", "2", "7"], device_column="bad", labels=())
    assert isinstance(row, Recorded)
    assert row.device_id == "7"
    assert isinstance(read(["2020-01-01 00:00:00", "1", "2", " "], device_column="bad", labels=()), RowRejected)


def test_columns_that_are_not_there_are_all_named() -> None:
    mapping = a_mapping(time_column="when", device_column="who")
    assert missing_columns(mapping, HEADER) == ["when", "who"]
    assert missing_columns(a_mapping(), HEADER) == []


@given(st.integers(-(10**15), 10**15))
def test_epoch_times_are_milliseconds_or_seconds(at_ms: int) -> None:
    in_ms, in_s = read_time(str(at_ms), "epoch_ms", UTC), read_time(str(at_ms), "epoch_s", UTC)
    if abs(at_ms) < 6 * 10**13:
        assert in_ms == at_ms
    if abs(at_ms) < 6 * 10**10:
        assert in_s == at_ms * 1000


@given(st.text(max_size=40), st.sampled_from(["iso", "epoch_s", "epoch_ms", "%Y-%m-%d %H:%M", "%d.%m.%Y"]))
def test_no_text_makes_the_time_fail(text: str, time_format: str) -> None:
    assert isinstance(read_time(text, time_format, BERLIN), int | RowRejected)


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("2024-07-01 12:00:00", BERLIN, "2024-07-01T10:00:00+00:00"),
        ("2024-01-01 12:00:00", BERLIN, "2024-01-01T11:00:00+00:00"),
        ("2024-01-01 12:00:00", UTC, "2024-01-01T12:00:00+00:00"),
        ("2024-01-01T12:00:00-05:00", BERLIN, "2024-01-01T17:00:00+00:00"),
        ("2024-01-01T12:00:00.250Z", BERLIN, "2024-01-01T12:00:00.250+00:00"),
        ("2024-10-27 02:30:00", BERLIN, "2024-10-27T00:30:00+00:00"),  # it was half past two twice: the first
    ],
)
def test_a_time_is_read_in_its_zone(text: str, zone: tzinfo, expected: str) -> None:
    assert read_time(text, "iso", zone) == int(datetime.fromisoformat(expected).timestamp() * 1000)


def test_a_time_that_its_zone_skipped_is_refused() -> None:
    rejected = read_time("2024-03-31 02:30:00", "iso", BERLIN)
    assert isinstance(rejected, RowRejected)
    assert "does not exist" in rejected.detail


# ---- labels


def a_row(at_ms: int, *labels: str, device_id: str = "d") -> Recorded:
    return Recorded(at_ms, device_id, (), frozenset(labels))


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_intervals_hold_exactly_the_labelled_rows(flags: list[bool]) -> None:
    survey = Survey()
    for at_ms, flag in enumerate(flags):
        survey.add(a_row(at_ms, *(["anomaly"] if flag else [])))
    survey.end_file()
    held = {at for each in survey.intervals() for at in range(each.from_ms, max(each.to_ms, each.from_ms + 1))}
    labelled = {at for at, flag in enumerate(flags) if flag}
    # A label on the last row has no following row to end it: its interval ends at that row.
    assert held | {len(flags) - 1} == labelled | {len(flags) - 1}
    runs = sum(flag and not before for before, flag in zip([False, *flags], flags, strict=False))
    assert len(survey.intervals()) == runs


def test_kinds_and_devices_are_labelled_apart() -> None:
    survey = Survey()
    survey.add(a_row(0, "anomaly"))
    survey.add(a_row(1, "anomaly", "changepoint"))
    survey.add(a_row(1, device_id="e"))
    survey.add(a_row(2))
    survey.end_file()
    assert sorted(survey.intervals(), key=str) == [
        Interval("d", "anomaly", None, 0, 2),
        Interval("d", "changepoint", None, 1, 2),
    ]


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), max_size=20), st.integers(-(10**12), 10**12))
def test_truth_is_a_beginning_and_an_end_of_each_label_in_order(pairs: list[tuple[int, int]], shift_ms: int) -> None:
    intervals = [Interval(f"d{n}", "anomaly", None, min(pair), max(pair)) for n, pair in enumerate(pairs)]
    records = expanded(intervals, shift_ms)
    assert [at for at, _ in records] == sorted(at for at, _ in records)
    for each in intervals:
        mine = [fault for _, fault in records if fault.device_id == each.device_id]
        assert {fault.fault_id for fault in mine} == {mine[0].fault_id}
        assert {fault.from_ts for fault in mine} == {each.from_ms + shift_ms}
        assert {fault.to_ts for fault in mine} == {None, each.to_ms + shift_ms}
        assert (mine[0].magnitude, mine[0].seed) == (None, None)


def test_a_label_of_no_length_begins_before_it_ends() -> None:
    records = expanded([Interval("d", "changepoint", None, 5, 5)], 0)
    assert [fault.to_ts for _, fault in records] == [None, 5]
