"""Settings of the traces of workflows, exported to an OpenTelemetry collector."""

from pydantic import SecretStr

from config.section import Section, setting


class TracingSettings(Section):
    """Where spans go; without an endpoint there are none."""

    endpoint: str | None = setting(
        None,
        pattern=r"^https?://[^/\s]+(/\S*)?$",
        form="an http:// or https:// URL",
        description="Collector that takes OTLP over HTTP, as http://localhost:4318 (/v1/traces is added where there is"
        " no path); left out: no spans are made.",
    )
    headers: SecretStr | None = setting(
        None, description="Headers of each export, as `name=value,name=value`; values are percent-encoded."
    )
    service_name: str = setting("headrace", min_length=1, max_length=200, description="service.name of every span.")
    sample_ratio: float = setting(
        1.0,
        ge=0.0,
        le=1.0,
        unit="share",
        description="Share of the traces that begin here which are recorded; of others the caller has decided.",
    )
    queue_spans: int = setting(
        8_192,
        ge=1,
        le=1_000_000,
        unit="spans",
        description="Spans of a process that wait for the collector; what comes beyond is dropped and counted.",
    )
    batch_spans: int = setting(512, ge=1, le=100_000, unit="spans", description="Spans of one export at most.")
    flush_interval_ms: int = setting(
        1_000, ge=10, le=60_000, unit="ms", description="Spans wait this long at most before they are exported."
    )
    export_timeout_ms: int = setting(
        10_000, ge=10, le=300_000, unit="ms", description="An export, tries included, is given up after this long."
    )
