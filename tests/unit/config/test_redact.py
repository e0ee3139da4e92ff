"""Laws of redaction: no secret survives, whatever it is wrapped in, and other text does."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.redact import REDACTED, is_sensitive, redact_text, redact_value

SECRET = "hunter2"


@pytest.mark.parametrize(
    "text",
    [
        "password=hunter2",
        "Password: hunter2, user: x",
        "sasl_password = 'hunter2'",
        'token="hunter2"',
        "--api-key=hunter2",
        "apiKey: hunter2",
        "api_key=hunter2&x=1",
        "client_secret=>hunter2",
        "Authorization: Bearer hunter2hunter2",
        "sent header Bearer hunter2hunter2 to them",
        "Basic aHVudGVyMg== hunter2".replace(" hunter2", ""),
        "{'password': 'hunter2'}",
        '{"password": "hunter2 with blanks"}',
        '{\\"password\\": \\"hunter2\\"}',
        "{'authorization': b'hunter2'}",
        "postgresql://bob:hunter2@host:5432/db",
        "postgresql://bob:hun/ter2@hunter2@host/db",
        "redis://:hunter2@host",
        "amqp://a:hunter2@h,amqp://b:hunter2@h",
        "Driver=x;PASSWORD=hunter2;Server=y",
        "token=hunter2\npassword=hunter2",
    ],
)
def test_a_secret_is_hidden(text: str) -> None:
    shown = redact_text(text)
    assert SECRET not in shown
    assert "aHVudGVyMg" not in shown
    assert REDACTED in shown


@pytest.mark.parametrize(
    "text",
    [
        "kafka://broker:9092/topic",
        "http://127.0.0.1:8080/docs",
        "max_tokens=5 token_count=7",
        "the password is not shown",
        "read 5 records from device.telemetry[3]@17: fine",
        "a@b.example wrote",
    ],
)
def test_other_text_is_untouched(text: str) -> None:
    assert redact_text(text) == text


def test_what_surrounds_a_secret_stays() -> None:
    assert redact_text("u=1 password=x y=2") == f"u=1 password={REDACTED} y=2"
    assert redact_text("postgresql://bob:x@host/db?a=1") == f"postgresql://bob:{REDACTED}@host/db?a=1"
    assert redact_text("amqp://a:x@h,amqp://b:y@i") == f"amqp://a:{REDACTED}@h,amqp://b:{REDACTED}@i"


@given(st.recursive(st.just(SECRET), lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner)))
def test_nested_values_under_a_sensitive_name_are_hidden_whole(value: object) -> None:
    assert SECRET not in json.dumps(redact_value({"outer": [{"X-Api-Key": value, "n": 1}]}))


def test_a_cycle_and_a_deep_value_end() -> None:
    cycle: dict[str, object] = {}
    cycle["again"] = cycle
    assert "again" in str(redact_value(cycle))


def test_names_are_sensitive_by_their_end() -> None:
    for name in (
        "password",
        "SASL_PASSWORD",
        "apiKey",
        "api_key",
        "x-api-key",
        "token",
        "Authorization",
        "client_secret",
    ):
        assert is_sensitive(name), name
    for name in ("secrets_dir", "password_file", "tokens_per_second", "key", "author"):
        assert not is_sensitive(name), name


@given(st.text())
def test_redaction_is_repeatable(text: str) -> None:
    assert redact_text(redact_text(text)) == redact_text(text)


@pytest.mark.parametrize(
    "text", ["password" * 20_000, "://" * 60_000, "a" * 500_000, '"\\' * 100_000, "token= " * 30_000]
)
def test_a_hostile_text_costs_no_more_than_linear_time(text: str) -> None:
    started = time.perf_counter()
    redact_text(text)
    assert time.perf_counter() - started < 2
