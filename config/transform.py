"""Settings of the transform stage: what a sample may be, and what is remembered to tell duplicates from gaps."""

from config.section import Section, setting


class TransformSettings(Section):
    """Validation, deduplication and dead letters."""

    max_value_bytes: int = setting(
        65_536,
        ge=256,
        le=16 << 20,
        unit="bytes",
        reload="hot",
        description="Largest sample; a larger value is a dead letter.",
    )
    max_future_ms: int = setting(
        60_000,
        ge=0,
        le=86_400_000,
        unit="ms",
        reload="hot",
        description="How far ahead of this machine's clock a timestamp may be.",
    )
    max_metrics: int = setting(
        256, ge=1, le=10_000, unit="metrics", reload="hot", description="Most metrics of one sample."
    )
    max_name_length: int = setting(
        128, ge=1, le=1_024, unit="characters", reload="hot", description="Longest device id, metric and unit."
    )
    max_abs_value: float = setting(
        1e15,
        gt=0,
        le=1e100,
        reload="hot",
        description="Largest magnitude of a value; the squares of it must not overflow.",
    )
    strict_registry: bool = setting(
        default=False,
        reload="hot",
        description="Refuse devices that device.metadata does not know; they make themselves known there first.",
    )
    dead_letter_keep_bytes: int = setting(
        524_288,
        ge=0,
        le=700_000,
        unit="bytes",
        reload="hot",
        description="How much of a refused value its dead letter keeps, in base64;"
        " less where that would not fit into producer.max_request_bytes.",
    )
    dedupe_sessions: int = setting(
        4, ge=1, le=64, unit="sessions", description="Sessions of a device remembered, by highest id."
    )
    dedupe_missing_ranges: int = setting(
        64,
        ge=1,
        le=10_000,
        unit="ranges",
        description="Holes in a session remembered; a sample older than them is late.",
    )
    reorder_horizon_seqs: int = setting(
        128,
        ge=1,
        le=1_000_000,
        unit="samples",
        description="How far a device must get past a missing seq to make it a gap.",
    )
    state_cache_devices: int = setting(
        20_000,
        ge=1,
        le=10_000_000,
        unit="devices",
        description="Device states kept in memory, all partitions together.",
    )
