"""Settings of the Prometheus port."""

from config.section import Section, setting


class MetricsSettings(Section):
    """Where `/metrics` is served."""

    host: str = setting("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = setting(9095, ge=0, le=65_535, unit="port", description="Port to listen on; 0 takes a free one.")
    loop_lag_interval_ms: int = setting(
        250, ge=10, le=60_000, unit="ms", description="Time between two measurements of the event loop's delay."
    )
