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


class StartsSettings(Section):
    """How executions are started over HTTP."""

    batch_max: int = setting(1000, description="Most starts of one batch.", unit="records", ge=1, le=10_000)
    batch_body_limit_bytes: int = setting(
        8 << 20, description="Largest body of a batch of starts.", unit="bytes", ge=1024, le=1 << 30
    )
    in_flight_max: int = setting(
        20_000,
        description="Starts that may wait for the broker at once; more are answered 503.",
        unit="records",
        ge=1,
        le=1_000_000,
    )
    acknowledge_timeout_s: float = setting(
        10.0,
        description="A start that the broker has not acknowledged by then is answered 503.",
        unit="s",
        gt=0,
        le=600,
    )
    definitions_wait_ms: int = setting(
        2000,
        description="Before an unknown workflow is answered 404, the definitions are read up to their newest for so"
        " long; then 503.",
        unit="ms",
        ge=0,
        le=60_000,
    )
    wait_max_s: float = setting(30.0, description="Longest time that `?wait=` may ask for.", unit="s", gt=0, le=300)
    rate_per_s: float = setting(
        0.0,
        description="Starts that one client (API key, or address) may make; more are answered 429. 0 sets no limit.",
        unit="records/s",
        ge=0,
        le=1_000_000,
    )
    rate_burst: int = setting(
        1000, description="Starts that a client may make at once after a rest.", unit="records", ge=1, le=1_000_000
    )


class ExecutionsSettings(Section):
    """The index of executions: one SQLite file, made from `workflow.events` and made anew when it is lost."""

    directory: str = setting(".headrace/executions", description="Folder of the index.", min_length=1)
    retention_s: int = setting(
        7 * 86_400,
        description="Ended executions are shown for so long after their end.",
        unit="s",
        ge=60,
        le=10 * 365 * 86_400,
    )
    executions_max: int = setting(
        2_000_000,
        description="Executions kept; beyond it the oldest ended ones are forgotten first.",
        unit="records",
        ge=1000,
        le=100_000_000,
    )
    batch_records: int = setting(
        2000, description="Records taken into the index in one transaction.", unit="records", ge=1, le=100_000
    )
    cache_bytes: int = setting(
        64 << 20,
        description="Pages of the index that its writer keeps in memory.",
        unit="bytes",
        ge=1 << 20,
        le=1 << 36,
    )
    catch_up_wait_ms: int = setting(
        2000,
        description="Before an unknown execution is answered 404, the index is brought up to the newest record for so"
        " long; then 503.",
        unit="ms",
        ge=1,
        le=60_000,
    )
    feed_silent_s: float = setting(
        30.0,
        description="The process that feeds the index is killed and started again when it says nothing for so long.",
        unit="s",
        ge=1,
        le=3600,
    )
    history_page_max: int = setting(
        5000, description="Most events of one page of a history.", unit="records", ge=1, le=100_000
    )
    bulk_max: int = setting(
        10_000, description="Most executions that one order by filter may reach.", unit="records", ge=1, le=1_000_000
    )
    streams_max: int = setting(
        500, description="Streams of events served at once; more are answered 503.", unit="connections", ge=1, le=65_535
    )
    stream_heartbeat_s: float = setting(
        15.0, description="A silent stream sends a comment so often.", unit="s", gt=0, le=600
    )
    stream_page_events: int = setting(
        500,
        description="Events of one read of a stream, which is all that is kept of it in memory.",
        unit="records",
        ge=1,
        le=10_000,
    )
    stream_stalled_s: float = setting(
        30.0, description="A stream whose client takes nothing for so long is closed.", unit="s", gt=0, le=3600
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
    head_timeout_s: float = setting(
        10.0,
        description="A connection that has not sent the head of a request by then is closed.",
        unit="s",
        gt=0,
        le=600,
    )
    stalled_s: float = setting(
        30.0,
        description="A connection whose other end takes nothing of an answer for so long is closed.",
        unit="s",
        gt=0,
        le=3600,
    )
    keep_alive_s: int = setting(5, description="An idle connection is closed after this time.", unit="s", ge=1, le=600)
    connections_max: int = setting(
        1000,
        description="Connections served at once; more are answered 503.",
        unit="connections",
        ge=1,
        le=65535,
    )
    rate_per_s: float = setting(
        0.0,
        description="Requests besides starts that one client (API key, or address) may make; more are answered 429."
        " 0 sets no limit.",
        unit="requests/s",
        ge=0,
        le=1_000_000,
    )
    rate_burst: int = setting(
        200, description="Requests that a client may make at once after a rest.", unit="requests", ge=1, le=1_000_000
    )
    page_size: int = setting(
        100, description="Items of a page when the caller names no limit.", unit="records", ge=1, le=1000
    )
    page_size_max: int = setting(1000, description="Most items of one page.", unit="records", ge=1, le=10_000)
    read_model: ReadModelSettings = setting(ReadModelSettings(), description="What the API remembers of the topics.")
    starts: StartsSettings = setting(StartsSettings(), description="How executions are started.")
    executions: ExecutionsSettings = setting(ExecutionsSettings(), description="The index of executions.")
