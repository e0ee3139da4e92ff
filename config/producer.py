"""Settings of the batched producer."""

from typing import Literal

from pydantic import model_validator

from config.section import Section, setting


class ProducerSettings(Section):
    """How records are gathered into record batches and sent."""

    batch_size: int = setting(
        1000, ge=1, le=1_000_000, unit="records", reload="hot", description="Records in one record batch at most."
    )
    flush_interval_ms: int = setting(
        20, ge=0, le=60_000, unit="ms", reload="hot", description="A batch that is not full is sent after this long."
    )
    worker_count: int = setting(
        8, ge=1, le=1024, unit="partitions", description="Partitions with a record batch in flight at the same time."
    )
    buffer_records: int = setting(
        100_000,
        ge=1,
        le=100_000_000,
        unit="records",
        description="Records that may wait in memory for the broker;"
        " a full buffer makes stages and recordings wait, the fleet as `device.when_full` says.",
    )
    max_batch_bytes: int = setting(
        1_000_000, ge=1024, le=1 << 30, unit="bytes", description="Size of one record batch at most, uncompressed."
    )
    max_request_bytes: int = setting(
        1_048_576, ge=1024, le=1 << 30, unit="bytes", description="Size of one request to the broker at most."
    )
    compression: Literal["none", "lz4", "gzip", "snappy", "zstd"] = setting(
        "lz4", description="Codec of record batches."
    )
    acks: Literal["all", "1", "0"] = setting(
        "all",
        description="Replicas that must hold a record before it counts as sent; anything but 'all' can lose records.",
    )
    idempotence: bool = setting(
        default=True, description="Number the batches so that a retry inside one run never writes a record twice."
    )
    request_timeout_ms: int = setting(
        15_000, ge=100, le=600_000, unit="ms", description="A request that the broker has not answered by then failed."
    )
    cloudevents_headers: bool = setting(
        default=False, reload="hot", description="Add CloudEvents headers (binary mode, `ce_*`) to each record."
    )

    @model_validator(mode="after")
    def _holds_together(self) -> "ProducerSettings":
        if self.idempotence and self.acks != "all":
            raise ValueError("idempotence needs acks 'all'; set idempotence to false or acks to 'all'")
        if self.max_batch_bytes > self.max_request_bytes:
            raise ValueError("max_batch_bytes must not be above max_request_bytes")
        return self
