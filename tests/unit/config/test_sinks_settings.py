"""The laws of the sinks' settings."""

from typing import Any

import pytest
from pydantic import ValidationError

from app.adapters.producer import ProducerLimits
from app.adapters.sinks import build
from app.adapters.sinks.rows import rows_of
from app.adapters.sinks.sql import SqlSink
from config.sinks import SinkSettings, SinksSettings
from tests.helpers.sinks import FixedClock


def test_the_default_is_one_sqlite_file_fed_by_rollups_and_signals() -> None:
    (target,) = SinksSettings().targets
    assert (target.name, target.kind, target.topics) == ("local", "sql", ("device.rollups", "device.signals"))
    sink = build(target, clock=FixedClock(), kafka=ProducerLimits(bootstrap_servers="127.0.0.1:1"))
    assert isinstance(sink, SqlSink)
    assert sink._url.render_as_string() == "sqlite+aiosqlite:///.headrace/headrace.db"


def test_every_default_topic_has_rows() -> None:
    assert callable(rows_of(SinksSettings().targets[0].topics))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"kind": "sql"}, "a sql sink needs `url`"),
        ({"kind": "http"}, "a http sink needs `url`"),
        ({"kind": "kafka"}, "a kafka sink needs `topic`"),
        ({"kind": "jsonl"}, "a jsonl sink needs `path`"),
        ({"kind": "parquet"}, "a parquet sink needs `path`"),
        ({"kind": "jsonl", "path": "x", "retry_first_ms": 40_000}, "retry_first_ms is more than retry_max_ms"),
        ({"kind": "http", "url": "http://x", "http_retry_statuses": [500]}, "500, which is not within 400 to 499"),
        ({"kind": "jsonl", "path": "x", "batch_size": 0}, "batch_size"),
        ({"kind": "jsonl", "path": "x", "unknown": 1}, "unknown"),
        ({"kind": "jsonl", "path": "x", "name": "Not A Name"}, "name"),
        ({"kind": "jsonl", "path": "x", "topics": []}, "topics"),
        ({"kind": "tape", "path": "x"}, "kind"),
    ],
)
def test_what_does_not_hold_together_is_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SinkSettings(**{"name": "t", **fields})
    assert problem in str(caught.value)


def test_two_sinks_of_one_name_are_refused() -> None:
    target = SinkSettings(name="t", kind="jsonl", path="x")
    with pytest.raises(ValidationError, match="same name: t"):
        SinksSettings(targets=(target, target))


def test_a_url_and_headers_are_never_shown() -> None:
    target = SinkSettings(name="t", kind="http", url="http://u:hidden@h/", http_headers={"Authorization": "hidden"})
    assert "hidden" not in repr(target) + target.model_dump_json()


@pytest.mark.parametrize("kind", ["sql", "http", "kafka", "jsonl", "parquet"])
def test_every_kind_is_built(kind: str) -> None:
    url = "http://example.com/" if kind == "http" else "sqlite:///x.db"
    spec = SinkSettings(name="t", kind=kind, url=url, path="x", topic="x")
    assert build(spec, clock=FixedClock(), kafka=ProducerLimits(bootstrap_servers="127.0.0.1:1")).name == "t"
