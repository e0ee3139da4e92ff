"""Settings of the HTTP API: address, limits and what the read model keeps."""

from config.section import Section, setting


class ReadModelSettings(Section):
    """What the API remembers of the topics, all of it bounded."""

    lookback_s: int = setting(
        900,
        description="On start, rollups, signals and telemetry are read from this far back.",
        unit="s",
        ge=0,
        le=7 * 86_400,
    )
    lookback_max_records: int = setting(
        200_000,
        description="On start, no more than the newest so many of a topic are read: a busy fleet must not delay it.",
        unit="records",
        ge=1,
    )
    devices_max: int = setting(100_000, description="Devices remembered.", unit="records", ge=1)
    rollups_max: int = setting(
        200_000, description="Rollups remembered over all devices.", unit="records", ge=1, le=10_000_000
    )
    windows_per_series: int = setting(
        120,
        description="Windows remembered of one device, metric and window size.",
        unit="records",
        ge=1,
        le=100_000,
    )
    signals_max: int = setting(10_000, description="Signals remembered.", unit="records", ge=1, le=1_000_000)
    offline_after_ms: int = setting(
        15_000, description="A device silent for longer is shown as offline.", unit="ms", ge=100
    )
    lag_max_records: int = setting(
        200_000,
        description="Telemetry further behind than this is skipped up to the newest; only live values are shown.",
        unit="records",
        ge=1000,
    )
    retry_backoff_ms: int = setting(
        1000, description="Pause before another attempt to reach the broker.", unit="ms", ge=10, le=60_000
    )


class HttpSettings(Section):
    """The API of the role `api-gateway`."""

    host: str = setting("127.0.0.1", description="Address the API listens on.", min_length=1)
    port: int = setting(8080, description="Port of the API; 0 takes a free one.", ge=0, le=65535)
    body_limit_bytes: int = setting(
        1 << 20, description="Largest request body; a larger one is answered 413.", unit="bytes", ge=1024, le=1 << 30
    )
    request_timeout_s: float = setting(
        30.0, description="Longest time one request may take; then 503.", unit="s", gt=0, le=600
    )
    keep_alive_s: int = setting(5, description="An idle connection is closed after this time.", unit="s", ge=1, le=600)
    connections_max: int = setting(
        1000,
        description="Connections served at once; more are answered 503.",
        unit="connections",
        ge=1,
        le=65535,
    )
    page_size: int = setting(
        100, description="Items of a page when the caller names no limit.", unit="records", ge=1, le=1000
    )
    page_size_max: int = setting(1000, description="Most items of one page.", unit="records", ge=1, le=10_000)
    read_model: ReadModelSettings = setting(ReadModelSettings(), description="What the API remembers of the topics.")
