"""Laws of reading a telemetry record: a sample or one reason, never an exception."""

import json
from dataclasses import replace
from typing import get_args

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.codec import decode_sample, encode_sample
from app.domain.reading import EARLIEST_MS, Limits, Reason, Rejected, Sample, validate
from app.wire import healthy_sample
from config.schemas import TELEMETRY
from tests.helpers.telemetry import START_MS, sequences

NOW_MS = START_MS + 3_600_000
LIMITS = Limits()
TELEMETRIES = jsonschema.Draft202012Validator(TELEMETRY)
KEY = b"press-0001"


def record(**changes: object) -> dict[str, object]:
    return {
        "device_id": "press-0001",
        "session_id": START_MS,
        "seq": 1,
        "source_timestamp": START_MS,
        "recorded_timestamp": START_MS + 1,
        "is_historical": False,
        "metrics": [reading()],
        **changes,
    }


def reading(**changes: object) -> dict[str, object]:
    return {"metric": "t", "value": 71.25, "unit": "CEL", "quality": "GOOD", "status_code": 0, **changes}


def without(fields: dict[str, object], name: str) -> dict[str, object]:
    return {key: value for key, value in fields.items() if key != name}


def decode(value: object, key: bytes | None = KEY, limits: Limits = LIMITS) -> Sample | Rejected:
    raw = value if isinstance(value, bytes | None) else json.dumps(value, ensure_ascii=False).encode()
    return decode_sample(raw, key, limits, NOW_MS)


BAD: list[tuple[str, object]] = [
    ("tombstone", None),
    ("too_large", b'"' + b"x" * 1_000_000 + b'"'),
    ("malformed_json", b""),
    ("malformed_json", b"{"),
    ("malformed_json", b"not json"),
    ("malformed_json", b"\xef\xbb\xbf{}"),
    ("malformed_json", b"[" * 10_000),
    ("malformed_json", b'{"seq": 01}'),
    ("malformed_json", b'"\\ud800"'),
    ("invalid_utf8", b"\xff\xfe"),
    ("invalid_utf8", b'{"device_id": "\xc3\x28"}'),
    ("not_finite", b'{"value": NaN}'),
    ("not_finite", b"[Infinity, -Infinity]"),
    ("not_finite", b'{"value": 1e999}'),
    ("wrong_type", []),
    ("wrong_type", 5),
    ("wrong_type", b"null"),
    *[("missing_field", without(record(), name)) for name in record()],
    *[("missing_field", record(metrics=[without(reading(), name)])) for name in reading()],
    *[("wrong_type", record(**{name: {}})) for name in record()],
    *[("wrong_type", record(metrics=[reading(**{name: []})])) for name in reading()],
    ("wrong_type", record(metrics=[7])),
    ("wrong_type", record(seq=True)),
    ("wrong_type", record(seq=1.0)),
    ("wrong_type", record(seq="1")),
    ("wrong_type", record(is_historical=0)),
    ("wrong_type", record(metrics=[reading(value="NaN")])),
    ("wrong_type", record(metrics=[reading(value=True)])),
    ("wrong_type", record(metrics=[reading(status_code=False)])),
    ("wrong_type", record(source_timestamp=2**70)),  # read as a double
    ("out_of_bounds", record(seq=0)),
    ("out_of_bounds", record(seq=-5)),
    ("out_of_bounds", record(seq=2**53)),
    ("out_of_bounds", record(session_id=-1)),
    ("out_of_bounds", record(metrics=[reading(value=1e16)])),
    ("out_of_bounds", record(metrics=[reading(value=10**30)])),
    ("out_of_bounds", record(metrics=[reading(quality="FINE")])),
    ("out_of_bounds", record(metrics=[reading(status_code=2**32)])),
    ("out_of_bounds", record(metrics=[reading(metric="")])),
    ("out_of_bounds", record(metrics=[reading(metric="a\u0000b")])),
    ("out_of_bounds", record(metrics=[reading(metric="m" * 129)])),
    ("out_of_bounds", record(metrics=[reading(unit="u" * 129)])),
    ("out_of_bounds", record(metrics=[reading(metric=f"m{n}") for n in range(257)])),
    ("out_of_bounds", record(device_id="")),
    ("out_of_bounds", record(device_id="a\nb")),
    ("absurd_timestamp", record(source_timestamp=0)),
    ("absurd_timestamp", record(source_timestamp=EARLIEST_MS - 1)),
    ("absurd_timestamp", record(source_timestamp=NOW_MS + LIMITS.max_future_ms + 1)),
    ("absurd_timestamp", record(recorded_timestamp=2**52)),
    ("key_mismatch", record(device_id="press-0002")),
    ("duplicate_metric", record(metrics=[reading(), reading()])),
]


@pytest.mark.parametrize(("reason", "value"), BAD, ids=lambda item: repr(item)[:60])
def test_every_bad_record_is_rejected_for_its_own_reason(reason, value) -> None:
    rejected = decode(value)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == reason, rejected.detail
    assert rejected.detail


def test_every_reason_has_a_record() -> None:
    assert {reason for reason, _ in BAD} | {"unknown_device"} == set(get_args(Reason))


@pytest.mark.parametrize("key", [None, b"", b"press-0002", b"\xff"])
def test_a_record_under_another_key_is_rejected(key) -> None:
    rejected = decode(record(), key)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "key_mismatch"


def test_only_known_devices_pass_where_there_is_a_registry() -> None:
    assert isinstance(decode(record(), limits=replace(LIMITS, known_devices={"press-0001"})), Sample)
    rejected = decode(record(), limits=replace(LIMITS, known_devices=frozenset()))
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "unknown_device"


def test_limits_hold_for_names_that_passed_wider_limits() -> None:
    long = record(metrics=[reading(metric="m" * 100)])
    assert isinstance(decode(long), Sample)
    assert isinstance(decode(long, limits=replace(LIMITS, max_name_length=99)), Rejected)


def test_a_metric_may_change_its_unit_and_what_passed_before_is_tested_still() -> None:
    for unit in ("CEL", "FAH", "CEL"):
        assert isinstance(decode(record(metrics=[reading(unit=unit)])), Sample)
    for changes in ({"unit": None}, {"unit": 5}, {"metric": None, "unit": None}, {"metric": True}):
        assert isinstance(decode(record(metrics=[reading(**changes)])), Rejected)
    assert isinstance(decode(record(device_id=None), None), Rejected)


def test_a_whole_number_is_a_value_and_unknown_fields_are_ignored() -> None:
    found = decode(record(metrics=[reading(value=71, more=1)], more={}))
    assert isinstance(found, Sample)
    assert found.metrics[0].value == 71.0
    assert isinstance(found.metrics[0].value, float)


@given(sequences())
def test_what_was_encoded_is_decoded_and_fits_its_schema(samples) -> None:
    for item in samples:
        raw = encode_sample(item)
        assert decode_sample(raw, item.device_id.encode(), LIMITS, NOW_MS) == item
        TELEMETRIES.validate(json.loads(raw))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.just("GOOD"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*record(), *reading()]), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(list(record())), JUNK), st.none() | st.binary())
def test_no_record_raises(changes, key) -> None:
    for value in ({**record(), **changes}, changes):
        raw = json.dumps(value).encode()
        assert isinstance(decode_sample(raw, key, LIMITS, NOW_MS), Sample | Rejected)
        assert isinstance(decode_sample(raw, KEY, LIMITS, NOW_MS), Sample | Rejected)


@given(st.binary() | st.text().map(str.encode))
def test_no_bytes_raise(raw) -> None:
    assert isinstance(decode_sample(raw, KEY, LIMITS, NOW_MS), Rejected)


@given(
    st.dictionaries(st.sampled_from(list(record())), JUNK, max_size=2),
    st.dictionaries(st.sampled_from(list(reading())), JUNK, max_size=2),
)
def test_the_fast_way_says_what_the_slow_way_says_or_nothing(changes, of_reading) -> None:
    """Whatever the fast way accepts, the slow way accepts with the same sample; it never raises."""
    limits = Limits()
    decode(record(), limits=limits)  # the device and the unit are known from here on
    raw = json.dumps(record(**{"metrics": [reading(**of_reading)], **changes})).encode()
    fast = healthy_sample(raw, KEY, limits, NOW_MS)
    assert fast is None or fast == validate(json.loads(raw), KEY, limits, NOW_MS)


def test_the_fast_way_takes_a_healthy_sample_that_is_known() -> None:
    limits = Limits()
    known = decode(record(), limits=limits)
    assert healthy_sample(json.dumps(record()).encode(), KEY, limits, NOW_MS) == known
