"""Records of the topics that the read model reads, as (topic, key, value)."""

from typing import Any

import orjson

from config.topics import DEVICE_METADATA, DEVICE_ROLLUPS, DEVICE_SIGNALS, DEVICE_TELEMETRY

Taken = tuple[str, bytes, bytes]


def _taken(topic: str, fields: dict[str, Any]) -> Taken:
    return topic, fields["device_id"].encode(), orjson.dumps(fields)


def metadata(device_id: str, device_type: str = "press", site: str = "north", **more) -> Taken:
    fields = {
        "device_id": device_id,
        "device_type": device_type,
        "site": site,
        "health": "NORMAL",
        "state": "ONLINE",
        "since": 0,
        "metrics": [{"metric": "temperature", "unit": "CEL", "sample_interval_ms": 1000}],
    }
    return _taken(DEVICE_METADATA.name, fields | more)


def sample(device_id: str, seq: int, session_id: int = 1, at: int = 1000) -> Taken:
    reading = {"metric": "temperature", "value": 70.0 + seq, "unit": "CEL", "quality": "GOOD", "status_code": 0}
    fields = {
        "device_id": device_id,
        "session_id": session_id,
        "seq": seq,
        "source_timestamp": at,
        "recorded_timestamp": at,
        "is_historical": False,
        "metrics": [reading],
    }
    return _taken(DEVICE_TELEMETRY.name, fields)


def rollup(device_id: str, metric: str, start: int, size: int = 10, revision: int = 0) -> Taken:
    fields = {
        "device_id": device_id,
        "metric": metric,
        "window_start": start,
        "window_end": start + size,
        "window_ms": size,
        "count": 1,
        "sum": 1.0,
        "revision": revision,
        "is_final": False,
    }
    return _taken(DEVICE_ROLLUPS.name, fields)


def signal(signal_id: str, at: int, state: str = "raised", device_id: str = "press-1") -> Taken:
    fields = {
        "signal_id": signal_id,
        "rule": "overheat",
        "severity": "critical",
        "device_id": device_id,
        "state": state,
        "at": at,
    }
    return _taken(DEVICE_SIGNALS.name, fields)
