"""Laws of what the API remembers."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.http.read_model import ReadModel
from config.http import ReadModelSettings
from config.topics import DEVICE_METADATA, DEVICE_ROLLUPS, DEVICE_SIGNALS, DEVICE_TELEMETRY
from tests.helpers.reads import metadata, rollup, sample, signal

NOW_MS = 10_000


def _model(*records, **limits) -> ReadModel:
    model = ReadModel(ReadModelSettings(**limits))
    for record in records:
        model.take(*record)
    return model


def _device(model: ReadModel, device_id: str, now_ms: int = NOW_MS) -> dict[str, Any]:
    found = model.device(device_id, now_ms)
    assert found is not None
    return found


def test_a_device_is_its_metadata_and_its_last_sample():
    model = _model(metadata("press-1"), sample("press-1", 1), sample("press-1", 2, at=2000))
    found = _device(model, "press-1", NOW_MS)
    assert (found["site"], found["last_sample"]["seq"], found["samples"]) == ("north", 2, 2)


def test_an_older_sample_that_comes_later_is_not_the_last():
    found = _device(_model(sample("press-1", 1), sample("press-1", 3), sample("press-1", 2)), "press-1", NOW_MS)
    assert found["last_sample"]["seq"] == 3
    assert (found["gaps"], found["duplicates"]) == (0, 0)


def test_a_sample_seen_before_is_a_duplicate():
    found = _device(_model(sample("press-1", 1), sample("press-1", 1)), "press-1", NOW_MS)
    assert (found["samples"], found["duplicates"]) == (1, 1)


def test_sequence_numbers_that_never_come_are_gaps():
    records = [sample("press-1", seq) for seq in range(1, 300) if seq not in {5, 6}]
    assert _device(_model(*records), "press-1", NOW_MS)["gaps"] == 2


def test_skipped_telemetry_is_no_gap():
    model = _model(sample("press-1", 1))
    model.forget_sequences()
    for seq in range(5000, 5400):
        model.take(*sample("press-1", seq))
    assert _device(model, "press-1", NOW_MS)["gaps"] == 0


@pytest.mark.parametrize(
    ("records", "now_ms", "state"),
    [
        ([metadata("d")], 0, "ONLINE"),
        ([sample("d", 1, at=1000)], 1000 + 15_000, "ONLINE"),
        ([sample("d", 1, at=1000)], 1001 + 15_000, "OFFLINE"),
        ([metadata("d", state="OFFLINE"), sample("d", 1, at=1000)], 1000, "OFFLINE"),
        ([metadata("d", metrics=[{"sample_interval_ms": 60_000}]), sample("d", 1, at=1000)], 100_000, "ONLINE"),
    ],
)
def test_a_device_is_online_while_it_is_heard_at_its_own_pace(records, now_ms, state):
    assert _device(_model(*records), "d", now_ms)["state"] == state


def test_devices_are_found_by_type_site_and_state():
    model = _model(metadata("a"), metadata("b", device_type="pump"), metadata("c", site="south"), sample("x", 1, at=0))
    ids = lambda **wanted: [d["device_id"] for d in model.devices(NOW_MS, **wanted)[0]]  # noqa: E731
    assert ids() == ["a", "b", "c", "x"]
    assert ids(device_type="press") == ["a", "c"]
    assert ids(device_type="press", site="north") == ["a"]
    assert ids(state="OFFLINE") == []


def test_a_tombstone_of_metadata_forgets_the_device():
    model = _model(metadata("a"))
    model.take(DEVICE_METADATA.name, b"a", None)
    assert model.device("a", NOW_MS) is None


@given(st.permutations([0, 1, 2, 3]))
def test_the_latest_revision_wins_in_any_order(revisions):
    model = _model(*(rollup("a", "t", 0, revision=revision) for revision in revisions))
    found, _ = model.rollups()
    assert [row["revision"] for row in found] == [3]


def test_rollups_are_found_by_each_parameter():
    model = _model(*(rollup(d, m, s, w) for d in "ab" for m in "tv" for s in (0, 60) for w in (10, 60)))
    count = lambda **wanted: len(model.rollups(**wanted)[0])  # noqa: E731
    assert count() == 16
    assert count(device_id="a") == 8
    assert count(device_id="nobody") == 0
    assert count(device_id="a", metric="t", window_ms=10) == 2
    assert count(since=60) == count(until=60) == 8
    assert count(since=60, until=60) == 0


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abc")), max_size=200))
def test_what_is_remembered_stays_within_its_limits(windows):
    model = _model(rollups_max=10, windows_per_series=5)
    for start, device_id in windows:
        model.take(*rollup(device_id, "t", start))
    found, _ = model.rollups(limit=1000)
    assert len(found) == model.sizes["rollups"] <= 10
    for device_id in "abc":
        assert len(model.rollups(device_id=device_id, limit=1000)[0]) <= 5
    assert len(found) == sum(len(model.rollups(device_id=d, limit=1000)[0]) for d in "abc")


def test_a_series_keeps_its_newest_windows():
    model = _model(*(rollup("a", "t", start) for start in (3, 1, 2, 5, 4)), windows_per_series=3)
    assert [row["window_start"] for row in model.rollups()[0]] == [5, 4, 3]


def test_devices_and_signals_beyond_the_limit_push_out_the_oldest():
    model = _model(
        *(metadata(name) for name in "abc"), *(signal(name, 1) for name in "abc"), devices_max=2, signals_max=2
    )
    assert [d["device_id"] for d in model.devices(NOW_MS)[0]] == ["b", "c"]
    assert [s["signal_id"] for s in model.signals()[0]] == ["b", "c"]


def test_a_signal_repeated_by_a_replay_is_one_signal_and_clearing_is_another_record():
    model = _model(signal("s", 1), signal("s", 1), signal("s", 2, state="cleared"))
    assert [(s["signal_id"], s["state"]) for s in model.signals()[0]] == [("s", "cleared"), ("s", "raised")]
    assert len(model.signals(state="raised")[0]) == 1


@given(
    st.sampled_from([t.name for t in (DEVICE_METADATA, DEVICE_ROLLUPS, DEVICE_SIGNALS, DEVICE_TELEMETRY)]),
    st.one_of(
        st.none(),
        st.binary(max_size=30),
        st.sampled_from([b"[]", b"1", b"null", b'"x"', b"{}", b'{"device_id":1}', b'{"device_id":"a","seq":null}']),
    ),
    st.one_of(st.none(), st.binary(max_size=3)),
)
def test_nothing_that_cannot_be_read_stops_the_model(topic, value, key):
    model = _model()
    model.take(topic, key, value)
    model.devices(NOW_MS)
    model.rollups()
    model.signals()
