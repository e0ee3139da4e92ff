"""Settings of the spool: where readings wait on disk while the broker is away."""

from pydantic import model_validator

from config.section import Section, setting


class SpoolSettings(Section):
    """When readings go to the disk, how much of it they may take, and how they come back."""

    enabled: bool = setting(
        default=True,
        description="Keep the fleet's readings on disk while the broker is away; off: in memory,"
        " as far as `producer.buffer_records` goes.",
    )
    directory: str = setting(
        ".headrace/spool", min_length=1, description="Folder of the spool, one sub-folder a producer."
    )
    after_ms: int = setting(
        2_000,
        ge=50,
        le=600_000,
        unit="ms",
        reload="hot",
        description="The broker is taken for away when a batch has not been acknowledged for this long.",
    )
    max_bytes: int = setting(
        4 << 30,
        ge=1 << 20,
        le=1 << 50,
        unit="bytes",
        reload="hot",
        description="Size of the spool at most; the oldest segments are dropped for new ones, and counted.",
    )
    max_age_s: int = setting(
        86_400,
        ge=1,
        le=365 * 86_400,
        unit="s",
        reload="hot",
        description="What has waited for longer is dropped and counted instead of sent.",
    )
    segment_bytes: int = setting(
        16 << 20, ge=65_536, le=1 << 30, unit="bytes", reload="hot", description="Size of one file of the spool."
    )
    write_interval_ms: int = setting(
        50,
        ge=0,
        le=10_000,
        unit="ms",
        reload="hot",
        description="Readings are gathered for this long, or to `producer.batch_size`, before they are written.",
    )
    fsync_interval_ms: int = setting(
        1_000,
        ge=0,
        le=600_000,
        unit="ms",
        reload="hot",
        description="How often what was written is forced to the disk; 0: each write. A killed process loses nothing"
        " that was written, a machine without power what was written since.",
    )
    replay_rate_per_s: int = setting(
        0,
        ge=0,
        le=100_000_000,
        unit="records/s",
        reload="hot",
        description="Readings sent from the spool in a second at most; 0: as many as the broker takes.",
    )

    @model_validator(mode="after")
    def _has_several_segments(self) -> "SpoolSettings":
        if self.segment_bytes * 4 > self.max_bytes:
            raise ValueError("max_bytes must be at least four times segment_bytes")
        return self
