"""Builds the sink that a section of the settings describes."""

from dataclasses import replace
from pathlib import Path

from app.adapters.producer import BatchProducer, ProducerLimits
from app.ports import Clock, Sink
from config.sinks import SinkSettings


def build(spec: SinkSettings, *, clock: Clock, kafka: ProducerLimits) -> Sink:
    """Return the sink of `spec`, not yet opened; `kafka` is how the service's own cluster is reached.

    A vendor's library is imported only when a sink needs it: pyarrow alone takes 60 MB.
    Raises `UserError` when the sink's URL cannot be used.
    """
    match spec.kind:
        case "sql":
            return _sql(spec)
        case "http":
            return _http(spec, clock)
        case "kafka":
            return _kafka(spec, clock, kafka)
        case "jsonl":
            return _jsonl(spec, clock)
        case "parquet":
            return _parquet(spec)


def _url(spec: SinkSettings) -> str:
    assert spec.url is not None, "the settings refuse a sink without it"
    return spec.url.get_secret_value()


def _folder(spec: SinkSettings) -> Path:
    assert spec.path is not None, "the settings refuse a sink without it"
    return Path(spec.path)


def _sql(spec: SinkSettings) -> Sink:
    from app.adapters.sinks.sql import SqlLimits, SqlSink  # noqa: PLC0415 - see `build`

    limits = SqlLimits(spec.connect_timeout_ms / 1000, spec.write_timeout_ms / 1000, spec.sqlite_synchronous)
    return SqlSink(spec.name, _url(spec), limits)


def _http(spec: SinkSettings, clock: Clock) -> Sink:
    from app.adapters.sinks.http import HttpLimits, HttpSink  # noqa: PLC0415 - see `build`

    limits = HttpLimits(
        body=spec.http_body,
        headers={name: value.get_secret_value() for name, value in spec.http_headers.items()},
        concurrency=spec.http_concurrency,
        retry_statuses=frozenset(spec.http_retry_statuses),
        allow_private_addresses=spec.allow_private_addresses,
        connect_timeout_s=spec.connect_timeout_ms / 1000,
        write_timeout_s=spec.write_timeout_ms / 1000,
    )
    return HttpSink(spec.name, _url(spec), clock, limits)


def _kafka(spec: SinkSettings, clock: Clock, kafka: ProducerLimits) -> Sink:
    from app.adapters.sinks.kafka import KafkaSink  # noqa: PLC0415 - see `build`

    assert spec.topic is not None, "the settings refuse a sink without it"
    limits = replace(
        kafka,
        client_id=f"{kafka.client_id}-sink-{spec.name}",
        start_timeout_s=spec.connect_timeout_ms / 1000,
        # The sink's batches are cut already: waiting for more would only be delay.
        flush_interval_ms=0,
    )
    if spec.bootstrap_servers is not None and spec.bootstrap_servers != kafka.bootstrap_servers:
        # Another cluster has other credentials, and ours are not for it to see.
        limits = replace(limits, bootstrap_servers=spec.bootstrap_servers, security={})
    return KafkaSink(spec.name, spec.topic, lambda: BatchProducer(limits), clock, spec.write_timeout_ms / 1000)


def _jsonl(spec: SinkSettings, clock: Clock) -> Sink:
    from app.adapters.sinks.jsonl import JsonlLimits, JsonlSink  # noqa: PLC0415 - see `build`

    return JsonlSink(spec.name, _folder(spec), clock, JsonlLimits(spec.rotate_bytes, spec.rotate_daily))


def _parquet(spec: SinkSettings) -> Sink:
    from app.adapters.sinks.parquet import ParquetSink  # noqa: PLC0415 - see `build`

    return ParquetSink(spec.name, _folder(spec), spec.parquet_compression)
