"""Laws of what roles share: hot settings reach what runs."""

import asyncio
from dataclasses import replace

from app.adapters.clock import SystemClock
from app.adapters.producer import ProducerLimits
from app.codec import encode_dead_letter_record
from app.domain.deadletter import Origin, dead_letter
from app.http.health import HealthRegistry
from app.roles.context import Context, hot_limits
from app.roles.worker import terms_of
from config.producer import ProducerSettings
from config.settings import Settings


def a_context(settings: Settings) -> Context:
    return Context(settings, lambda: settings, HealthRegistry(frozenset(), "1"), asyncio.Event(), SystemClock())


async def test_only_what_may_change_while_a_producer_runs_does() -> None:
    before = ProducerLimits("localhost:9092", batch_records=10, flush_interval_ms=1, buffer_records=7)
    changed = ProducerSettings(batch_size=20, flush_interval_ms=2, buffer_records=8)
    assert hot_limits(before, changed) == replace(before, batch_records=20, flush_interval_ms=2)


async def test_kafka_patience_reaches_the_consumers() -> None:
    settings = Settings(
        kafka={"bootstrap_servers": "localhost:9", "rebalance_timeout_ms": 4_500, "max_poll_interval_ms": 90_000}
    )
    conf = a_context(settings).faust_app("a").conf
    assert (conf.broker_rebalance_timeout, conf.broker_max_poll_interval) == (4.5, 90.0)


def test_no_dead_letter_and_no_late_sample_is_larger_than_a_request() -> None:
    small = Settings(
        producer={"max_request_bytes": 100_000, "max_batch_bytes": 50_000},
        transform={"max_value_bytes": 16 << 20, "dead_letter_keep_bytes": 700_000},
    )
    terms = terms_of(small)
    assert terms.limits.max_value_bytes == 50_000
    value = b"x" * 5_000_000
    headers = tuple((f"h{number}", b"x" * 1_000) for number in range(100))
    origin = Origin("t" * 249, 0, 0, 0, b"k" * 1_000_000, value, headers)
    letter = dead_letter(
        origin, stage="s", reason="r", detail="d" * 2_000, now_ms=0, keep_bytes=terms.dead_letter_keep_bytes
    )
    written = encode_dead_letter_record(letter)
    assert len(written) + len(letter.key or b"") < 100_000
    assert letter.is_truncated
    assert terms_of(Settings()).dead_letter_keep_bytes == 524_288
