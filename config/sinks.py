"""Settings of the sinks: where rollups, signals and readings are written to."""

from typing import Literal

from pydantic import SecretStr, model_validator

from config.section import Section, setting

SinkKind = Literal["sql", "kafka", "http", "jsonl", "parquet"]

_NEEDS: dict[SinkKind, tuple[str, ...]] = {
    "sql": ("url",),
    "kafka": ("topic",),
    "http": ("url",),
    "jsonl": ("path",),
    "parquet": ("path",),
}


class SinkSettings(Section):
    """One named sink; each has its own consumer group, so that a slow one holds up no other."""

    name: str = setting(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$",
        form="lower-case letters, digits, - and _, 63 at most",
        description="Name of the sink: the label of its metrics and part of its consumer group's name.",
    )
    kind: SinkKind = setting(description="What the sink writes to: sql, kafka, http, jsonl or parquet.")
    enabled: bool = setting(default=True, description="False leaves the sink out; its offsets stay where they are.")
    topics: tuple[str, ...] = setting(
        ("device.rollups", "device.signals"), min_length=1, description="Topics that feed the sink."
    )
    url: SecretStr | None = setting(
        None,
        description="sql: sqlite:///file, postgresql://user:password@host/database or mysql://…; http: the webhook.",
    )
    path: str | None = setting(None, min_length=1, description="jsonl, parquet: the folder of the files.")
    topic: str | None = setting(None, min_length=1, description="kafka: the topic written to.")
    bootstrap_servers: str | None = setting(
        None, min_length=1, description="kafka: another cluster's servers; the service's own cluster when left out."
    )

    min_window_ms: int = setting(
        0,
        ge=0,
        le=604_800_000,
        unit="ms",
        description="Rollups of shorter windows are left out; windows of 1 s are most of all rollups.",
    )
    batch_size: int = setting(1000, ge=1, le=1_000_000, unit="records", description="Rows of one write at most.")
    batch_bytes: int = setting(
        4 << 20, ge=1024, le=1 << 30, unit="bytes", description="Bytes of Kafka values behind one write at most."
    )
    flush_interval_ms: int = setting(
        500, ge=0, le=3_600_000, unit="ms", description="A batch that is not full is written after this long."
    )
    retry_first_ms: int = setting(
        100, ge=1, le=600_000, unit="ms", description="Wait before the first retry; each further one doubles it."
    )
    retry_max_ms: int = setting(
        30_000, ge=1, le=3_600_000, unit="ms", description="Longest wait between retries, which never end."
    )
    connect_timeout_ms: int = setting(
        5_000, ge=1, le=600_000, unit="ms", description="A connection that is not up by then counts as failed."
    )
    write_timeout_ms: int = setting(
        30_000, ge=1, le=3_600_000, unit="ms", description="A write that is not done by then is retried."
    )

    sqlite_synchronous: Literal["NORMAL", "FULL", "EXTRA"] = setting(
        "FULL",
        description="sql on SQLite: FULL syncs each batch to disk; NORMAL can lose the last batches at a power cut.",
    )
    http_body: Literal["array", "row"] = setting(
        "array", description="http: one request for a batch (a JSON array), or one for each row (a JSON object)."
    )
    http_headers: dict[str, SecretStr] = setting(
        default_factory=dict, description="http: further headers of each request, for example Authorization."
    )
    http_concurrency: int = setting(
        8, ge=1, le=256, unit="requests", description="http: requests under way at once when each row has its own."
    )
    http_retry_statuses: tuple[int, ...] = setting(
        (401, 403, 404, 408, 425, 429),
        description="http: answers of 400 to 499 that mean 'try again'; all others of them refuse the row for good."
        " An expired token or a webhook not yet deployed is no fault of the row.",
    )
    allow_private_addresses: bool = setting(
        default=False,
        description="http: allow a webhook on a loopback or private address; off keeps inner services safe.",
    )
    rotate_bytes: int = setting(
        256 << 20, ge=1024, le=1 << 40, unit="bytes", description="jsonl: a file of this size is followed by another."
    )
    rotate_daily: bool = setting(default=True, description="jsonl: begin another file at midnight UTC.")
    parquet_compression: Literal["zstd", "snappy", "lz4", "gzip", "none"] = setting(
        "zstd", description="parquet: codec of the columns."
    )

    @model_validator(mode="after")
    def _holds_together(self) -> "SinkSettings":
        problems = [f"a {self.kind} sink needs `{name}`" for name in _NEEDS[self.kind] if getattr(self, name) is None]
        if self.retry_first_ms > self.retry_max_ms:
            problems.append("retry_first_ms is more than retry_max_ms")
        problems += [
            f"http_retry_statuses holds {code}, which is not within 400 to 499"
            for code in self.http_retry_statuses
            if not 400 <= code <= 499
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self


class SinksSettings(Section):
    """All sinks of the service."""

    targets: tuple[SinkSettings, ...] = setting(
        (
            SinkSettings(
                name="local", kind="sql", url=SecretStr("sqlite:///.headrace/headrace.db"), min_window_ms=10_000
            ),
        ),
        description="The sinks by name; the default is one SQLite file beside the service, for windows from 10 s.",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> "SinksSettings":
        names = [target.name for target in self.targets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sinks have the same name: {', '.join(twice)}")
        return self
