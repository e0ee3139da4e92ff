"""JSON Schemas of the values on the topics of telemetry and of the cluster."""

import json
from collections.abc import Mapping
from typing import Any, get_args

from config.device import DeviceType

Schema = Mapping[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MAX_EXACT_INT = 2**53 - 1  # larger integers are not exact in readers that know only doubles

_TIME: Schema = {"type": "integer", "minimum": 0, "maximum": MAX_EXACT_INT}


def _record(title: str, description: str, properties: Schema, optional: tuple[str, ...] = ()) -> Schema:
    """A record of the given properties; readers ignore what they do not know, so that records may grow."""
    return {
        "$schema": DIALECT,
        "title": title,
        "description": description,
        **_object(properties, optional),
    }


def _object(properties: Schema, optional: tuple[str, ...] = ()) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
    }


def _text(description: str, **bounds: Any) -> Schema:
    return {"type": "string", "description": description, "minLength": 1, "maxLength": 128, **bounds}


def _time(description: str) -> Schema:
    return {**_TIME, "description": f"{description} Milliseconds since 1970, UTC."}


def _or_null(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


def _one_of(description: str, *values: str) -> Schema:
    return {"type": "string", "description": description, "enum": list(values)}


_DEVICE_ID = _text("Identity of the device; the key of the record.")
_METRIC = _text("Name of the metric.")
_UNIT = _text("UNECE Rec 20 code of the unit: CEL, BAR, RPM, …", maxLength=16)

_READING = _object(
    {
        "metric": _METRIC,
        "value": {"type": ["number", "null"], "description": "The value, null when there is none; never NaN."},
        "unit": _UNIT,
        "quality": _one_of("What the value is worth (OPC UA severity).", "GOOD", "UNCERTAIN", "BAD", "STALE"),
        "status_code": {
            "type": "integer",
            "description": "OPC UA StatusCode.",
            "minimum": 0,
            "maximum": 2**32 - 1,
        },
    }
)

TELEMETRY = _record(
    "Sample",
    "One device at one instant with all its metrics. The Kafka timestamp is source_timestamp.",
    {
        "device_id": _DEVICE_ID,
        "session_id": {**_TIME, "description": "Grows with every start of the device (Sparkplug bdSeq)."},
        "seq": {
            "type": "integer",
            "description": "1 for the first sample of a session, then one more each (Sparkplug seq).",
            "minimum": 1,
            "maximum": MAX_EXACT_INT,
        },
        "source_timestamp": _time("When it was measured (OPC UA sourceTimestamp)."),
        "recorded_timestamp": _time("When it was accepted (CloudEvents recordedtime)."),
        "is_historical": {"type": "boolean", "description": "Sent late from the spool (Sparkplug is_historical)."},
        "metrics": {"type": "array", "items": _READING, "maxItems": 256},
    },
)


def _range(description: str) -> Schema:
    return {**_object({"low": {"type": "number"}, "high": {"type": "number"}}), "description": description}


DEVICE_METADATA = _record(
    "Device metadata",
    "What a device is and how it is: its birth certificate, on a compacted topic. A tombstone takes it out of service.",
    {
        "device_id": _DEVICE_ID,
        "device_type": _one_of("Type of the device.", *get_args(DeviceType), "recorded"),
        "manufacturer": _text("Maker.", minLength=0),
        "model": _text("Model of the maker.", minLength=0),
        "serial": _text("Serial number.", minLength=0),
        "site": _text("Site (ISA-95).", minLength=0),
        "area": _text("Area of the site.", minLength=0),
        "line": _text("Production line.", minLength=0),
        "session_id": {**_TIME, "description": "The session under way or the last one."},
        "metrics": {
            "type": "array",
            "items": _object(
                {
                    "metric": _METRIC,
                    "unit": _UNIT,
                    "eu_range": _range("Where it is in normal operation (OPC UA EURange)."),
                    "instrument_range": _range("What the sensor can show (OPC UA InstrumentRange)."),
                    "sample_interval_ms": {
                        "type": "integer",
                        "description": "Time between two samples.",
                        "minimum": 1,
                    },
                }
            ),
        },
        "health": _one_of(
            "Health by NAMUR NE 107 (OPC UA DeviceHealthEnumeration).",
            "NORMAL",
            "FAILURE",
            "CHECK_FUNCTION",
            "OFF_SPEC",
            "MAINTENANCE_REQUIRED",
        ),
        "state": _one_of("Whether it sends.", "ONLINE", "OFFLINE"),
        "since": _time("Since when it is in that state."),
    },
)

_FAULTS = (
    "spike",
    "stuck",
    "drift",
    "dropout",
    "out_of_range",
    "clock_skew",
    "late",
    "out_of_order",
    "duplicate",
    "burst",
)

DEVICE_COMMAND: Schema = {
    **_record(
        "Device command",
        "An order to a device or a group of devices. A field that a command does not use is left out or null.",
        {
            "command_id": _text("Identity of the command; the same id injects the same fault once."),
            "command": _one_of("What to do.", "start", "stop", "set_interval", "inject_fault", "clear_fault"),
            "scope": _one_of("What the target names.", "device", "type", "site", "line", "all"),
            "target": _or_null(_text("The device, type, site or line; none when the scope is all.")),
            "issued_at": _time("When it was given."),
            "interval_ms": {
                "type": ["integer", "null"],
                "description": "set_interval: time between two samples.",
                "minimum": 10,
                "maximum": 86_400_000,
            },
            "kind": {
                "type": ["string", "null"],
                "description": "inject_fault, clear_fault: kind of the fault.",
                "enum": [*_FAULTS, None],
            },
            "metric": _or_null(_text("inject_fault: the metric that is hit; without it all, or the device itself.")),
            "magnitude": {
                "type": ["number", "null"],
                "description": "inject_fault: shares of the normal range (spike, drift, out_of_range), "
                "milliseconds (clock_skew, late) or copies (duplicate).",
            },
            "duration_ms": {
                "type": ["integer", "null"],
                "description": "inject_fault: how long; without it until it is cleared.",
                "minimum": 1,
                "maximum": 86_400_000,
            },
            "fault_id": _or_null(_text("clear_fault: the one fault to end.", maxLength=256)),
        },
        ("target", "interval_ms", "kind", "metric", "magnitude", "duration_ms", "fault_id"),
    ),
    "additionalProperties": False,
    "allOf": [
        {
            "if": {"properties": {"command": {"const": "set_interval"}}},
            "then": {"required": ["interval_ms"], "properties": {"interval_ms": {"type": "integer"}}},
        },
        {
            "if": {"properties": {"command": {"const": "inject_fault"}}},
            "then": {"required": ["kind"], "properties": {"kind": {"type": "string"}}},
        },
        {
            "if": {"properties": {"scope": {"const": "all"}}},
            "then": {"properties": {"target": {"type": "null"}}},
            "else": {"required": ["target"], "properties": {"target": {"type": "string"}}},
        },
    ],
}

TRUTH = _record(
    "Truth",
    "A fault as it truly was: one record when it begins and one when it ends. Of recorded data, a label.",
    {
        "fault_id": _text("Identity of the fault, the same in both records.", maxLength=300),
        "device_id": _DEVICE_ID,
        "kind": _text("Kind of the fault (" + ", ".join(_FAULTS) + "), or the name of a label."),
        "metric": _or_null(_text("The metric that is hit; null for the whole device.")),
        "from_ts": _time("When it began."),
        "to_ts": _or_null(_time("When it ended; null in the record of its beginning.")),
        "magnitude": {"type": ["number", "null"], "description": "Its size as the command has it; null for a label."},
        "seed": {"type": ["integer", "null"], "description": "The fleet's seed; null for a label."},
    },
)

_NUMBER_OR_NULL: Schema = {"type": ["number", "null"]}
_COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": MAX_EXACT_INT}


def _value(description: str) -> Schema:
    return {**_NUMBER_OR_NULL, "description": f"{description} Null when no value came."}


def _count(description: str) -> Schema:
    return {**_COUNT, "description": description}


ROLLUP = _record(
    "Rollup",
    "One revision of the aggregate of one device's metric over one window of event time, its start included and its "
    "end not. (device_id, metric, window_start, window_ms) is its identity, revision orders its versions.",
    {
        "device_id": _DEVICE_ID,
        "metric": _METRIC,
        "window_start": _time("Start of the window, included."),
        "window_end": _time("End of the window, not included."),
        "window_ms": {**_COUNT, "description": "Length of the window.", "minimum": 1},
        "open": _value("The first value by source_timestamp and seq."),
        "high": _value("The greatest value."),
        "low": _value("The least value."),
        "close": _value("The last value by source_timestamp and seq."),
        "open_ts": _or_null(_time("When the first value was measured.")),
        "high_ts": _or_null(_time("When the greatest value was first measured.")),
        "low_ts": _or_null(_time("When the least value was first measured.")),
        "close_ts": _or_null(_time("When the last value was measured.")),
        "count": _count("Values aggregated: those of quality GOOD and UNCERTAIN."),
        "sum": {"type": "number", "description": "Sum of the values."},
        "mean": _value("Mean of the values."),
        "variance": _value("Variance of the values as a population: m2 / count."),
        "m2": {"type": "number", "description": "Sum of the squared distances from the mean.", "minimum": 0},
        "good_count": _count("Readings of quality GOOD that have a value."),
        "bad_count": _count("All other readings."),
        "late_count": _count("Readings that came after the window's end, within the grace."),
        "gaps": _count("Samples of the device missing between the first and the last one of the window."),
        "seq_first": _count("The lowest seq of the device in the window, of its first session."),
        "seq_last": _count("The highest seq of the device in the window, of its last session."),
        "unit": _text("Unit of the last value.", minLength=0),
        "revision": _count("0 for the first emission of the window, then one more each."),
        "is_final": {"type": "boolean", "description": "No further revision will come."},
    },
)

LATE_READING = _record(
    "Late reading",
    "A sample that came after the grace of its windows and is in no rollup.",
    {
        **TELEMETRY["properties"],
        "late_by_ms": _count("How far its device had gone on when it came, in milliseconds of event time."),
        "late_reason": _one_of(
            "beyond_grace: its windows are final; forgotten: its seq is older than the memory for duplicates.",
            "beyond_grace",
            "forgotten",
        ),
        "watermark": _time("The greatest source_timestamp of the device so far."),
        "topic": _text("Where it stood: topic.", maxLength=249),
        "partition": _count("Where it stood: partition."),
        "offset": _count("Where it stood: offset."),
    },
)

_KINDS = (
    "threshold",
    "rate_of_change",
    "z_score",
    "moving_average_crossover",
    "stuck",
    "quality",
    "silence",
    "condition",
)

SIGNAL = _record(
    "Signal",
    "A rule began to hold (raised) or no longer holds (cleared): both records of one signal carry the same signal_id, "
    "(signal_id, state) is a record's identity, and the cleared one replaces the raised one.",
    {
        "signal_id": {
            "type": "string",
            "format": "uuid",
            "description": "Identity of the signal, made from its cause: the same on every replay.",
        },
        "rule": _text("Id of the rule."),
        "kind": _one_of("Kind of the rule.", *_KINDS),
        "severity": _one_of("How much it matters.", "info", "warning", "critical"),
        "device_id": _DEVICE_ID,
        "metric": _or_null(_METRIC),
        "state": _one_of("Whether it begins or ends here.", "raised", "cleared"),
        "at": _time("When it was raised or cleared, by the event; for windows the window's end."),
        "raised_at": _time("When it was raised."),
        "cleared_at": _or_null(_time("When it was cleared; null in the record that raises it.")),
        "value": {
            **_NUMBER_OR_NULL,
            "description": "The value that decided; for silence its length in seconds; null when there was none.",
        },
        "threshold": {**_NUMBER_OR_NULL, "description": "The rule's limit; null for conditions and quality."},
        "unit": _text("Unit of the value.", minLength=0),
        "evidence": {"type": "object", "description": "What the rule saw; its fields depend on the kind."},
        "trigger": {
            "type": ["object", "null"],
            "description": "The workflow that a raised signal starts; null where none is.",
            "properties": {
                "workflow": _text("Id of the workflow.", maxLength=255),
                "input": {"type": "object", "description": "Its input."},
                "key": {"type": "string", "description": "What debounce_s and concurrency are counted by."},
                "debounce_s": {"type": "number", "description": "Signals of one key within this time start it once."},
                "concurrency": {"type": "integer", "minimum": 1, "description": "Executions of one key at most."},
            },
            "required": ["workflow", "input", "key", "debounce_s", "concurrency"],
        },
    },
)

_BASE64: Schema = {"type": ["string", "null"], "contentEncoding": "base64"}

DEAD_LETTER = _record(
    "Dead letter",
    "A record that cannot be used, with where it stood and why it was refused: a Kafka record has topic, partition and "
    "offset, a row of a recording has file and line.",
    {
        "stage": _text("The stage that refused it."),
        "reason": _text("Why, in one word, as in the metric's label."),
        "detail": _text("Why, in one sentence.", minLength=0, maxLength=1_000),
        "topic": _or_null(_text("Topic of the record.", maxLength=249)),
        "partition": {**_or_null(_COUNT), "description": "Partition of the record."},
        "offset": {**_or_null(_COUNT), "description": "Offset of the record."},
        "timestamp": {"type": ["integer", "null"], "description": "Kafka timestamp of the record."},
        "key": {**_BASE64, "description": "Key of the record."},
        "original": {**_BASE64, "description": "Value of the record, or its beginning; null for a tombstone."},
        "value_bytes": _count("Length of the whole value."),
        "truncated": {"type": "boolean", "description": "`original` is only the beginning: read it at its offset."},
        "headers": {
            "type": "array",
            "description": "Headers of the record: name and value.",
            "items": {"type": "array", "prefixItems": [{"type": "string"}, _BASE64], "minItems": 2, "maxItems": 2},
        },
        "attempt": _count("How often it was tried."),
        "first_seen": _time("When it was first refused."),
        "line": {**_or_null(_COUNT), "description": "Line of the recording."},
        "file": _or_null(_text("File of the recording.", maxLength=4_096)),
    },
    ("stage", "timestamp", "key", "value_bytes", "truncated", "headers", "attempt", "first_seen", "line", "file"),
)

_PARTITIONS: Schema = {"type": "array", "items": {"type": "string", "pattern": "^.+-[0-9]+$"}}
_SEAT = _object(
    {
        "group": _text("The consumer group.", maxLength=249),
        "member_id": _text("What the group's protocol calls the member.", minLength=0, maxLength=1_000),
        "generation": {"type": "integer", "description": "Of the group when it was assigned; -1 when unknown."},
        "partitions": {**_PARTITIONS, "description": "Partitions owned, each as topic-number."},
        "standbys": {**_PARTITIONS, "description": "Partitions whose state is kept warm."},
    },
    ("generation", "partitions", "standbys"),
)
_PROCESS = _object(
    {
        "role": _text("What the process does."),
        "pid": _count("Its process id on its own machine."),
        "ready": {"type": "boolean", "description": "Whether it can do its work."},
        "seats": {"type": "array", "description": "Its places in consumer groups.", "items": _SEAT},
    },
    ("ready", "seats"),
)
CLUSTER_MEMBER: Schema = _record(
    "Cluster member",
    "What a node of the cluster says of itself: at its start, when something changes, and every few seconds. A node "
    "that left in order has no value.",
    {
        "node_id": _text("Name of the node; the key of the record.", maxLength=200),
        "epoch": _time("When it was started: of two records of one node the later start counts."),
        "version": _text("Version of the program."),
        "state": _one_of("How far it is.", "joining", "ready", "leaving", "gone"),
        "beats": _text("host:port of its heartbeats, empty without any.", minLength=0, maxLength=300),
        "api": _text("Where its HTTP API answers, empty without one.", minLength=0, maxLength=300),
        "clock_ms": _time("Its wall clock when it said so."),
        "processes": {"type": "array", "description": "Its processes, one a role.", "items": _PROCESS},
        "facts": {
            "type": "object",
            "description": "Further facts, by name: `instance`, one start of a node; `settled`, taken in; "
            "`clock_ahead_ms` of the broker's; `unreachable`, the nodes that it does not reach.",
            "additionalProperties": {"type": "string"},
        },
    },
    ("beats", "api", "clock_ms", "processes", "facts"),
)

SCHEMAS: Mapping[str, Schema] = {
    "telemetry": TELEMETRY,
    "device-metadata": DEVICE_METADATA,
    "device-command": DEVICE_COMMAND,
    "truth": TRUTH,
    "rollup": ROLLUP,
    "signal": SIGNAL,
    "late-reading": LATE_READING,
    "dead-letter": DEAD_LETTER,
    "cluster-member": CLUSTER_MEMBER,
}


def rendered(schema: Schema) -> str:
    """The text of a schema's file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
