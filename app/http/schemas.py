"""The shapes of the API's answers and requests, with examples."""

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(extra="allow", json_schema_extra={"examples": [fields]})


class Page(BaseModel, Generic[T]):
    """One page of a list; `next_cursor` null means that it was the last."""

    items: list[T]
    next_cursor: str | None = Field(None, description="Pass it as `cursor` to get the next page.")


class ReadingView(BaseModel):
    """One metric's value in a sample."""

    model_config = _example(metric="temperature", value=71.25, unit="CEL", quality="GOOD", status_code=0)

    metric: str
    value: float | None
    unit: str = Field(description="UNECE Rec 20 code.")
    quality: str = Field(description="GOOD, UNCERTAIN, BAD or STALE.")
    status_code: int = Field(description="OPC UA StatusCode.")


class SampleView(BaseModel):
    """One device at one instant; times in ms UTC."""

    model_config = ConfigDict(extra="allow")

    device_id: str
    session_id: int
    seq: int
    source_timestamp: int
    recorded_timestamp: int
    is_historical: bool
    metrics: list[ReadingView]


class DeviceView(BaseModel):
    """What is known of one device; metadata fields are null until the device has announced itself."""

    model_config = _example(
        device_id="press-0001",
        device_type="press",
        manufacturer="Kestrel",
        model="KP-400",
        serial="KP400-000001",
        site="north",
        area="stamping",
        line="line-1",
        health="NORMAL",
        state="ONLINE",
        since=1763689000000,
        session_id=1763689000000,
        metrics=[{"metric": "temperature", "unit": "CEL", "sample_interval_ms": 1000}],
        last_sample=None,
        samples=120,
        gaps=0,
        duplicates=0,
    )

    device_id: str
    device_type: str
    manufacturer: str | None = None
    model: str | None = None
    serial: str | None = None
    site: str | None = None
    area: str | None = None
    line: str | None = None
    session_id: int | None = None
    health: str = Field(description="NAMUR NE 107 status.")
    state: str = Field(description="ONLINE, OFFLINE or UNKNOWN.")
    since: int | None = Field(None, description="When the announced state began, ms UTC.")
    metrics: list[dict[str, Any]] = Field(description="Each metric's unit, ranges and sample interval.")
    last_sample: SampleView | None = None
    samples: int = Field(description="Samples seen since this API process started to look.")
    gaps: int = Field(description="Sequence numbers that did not come.")
    duplicates: int = Field(description="Samples seen before.")


class RollupView(BaseModel):
    """The latest revision of one device's metric over one window; times in ms UTC."""

    model_config = _example(
        device_id="press-0001",
        metric="temperature",
        window_start=1763689000000,
        window_end=1763689010000,
        window_ms=10000,
        open=71.1,
        high=72.0,
        low=70.9,
        close=71.4,
        count=10,
        sum=713.2,
        mean=71.32,
        variance=0.09,
        good_count=10,
        bad_count=0,
        late_count=0,
        gaps=0,
        unit="CEL",
        revision=1,
        is_final=True,
    )

    device_id: str
    metric: str
    window_start: int
    window_end: int
    window_ms: int
    open: float | None = None
    high: float | None = None
    low: float | None = None
    close: float | None = None
    count: int
    sum: float | None = None
    mean: float | None = None
    variance: float | None = None
    good_count: int = 0
    bad_count: int = 0
    late_count: int = 0
    gaps: int = 0
    unit: str = ""
    revision: int
    is_final: bool


class SignalView(BaseModel):
    """One signal being raised or cleared; times in ms UTC."""

    model_config = _example(
        signal_id="5f0c2c9e-6b7a-5a1e-9d7e-0d1f6a1b2c3d",
        rule="press-overheat",
        kind="threshold",
        severity="critical",
        device_id="press-0001",
        metric="temperature",
        state="raised",
        at=1763689000000,
        raised_at=1763689000000,
        cleared_at=None,
        value=96.5,
        threshold=90.0,
        unit="CEL",
        evidence={"held_ms": 3000},
    )

    signal_id: str
    rule: str
    kind: str | None = None
    severity: str
    device_id: str
    metric: str | None = None
    state: str = Field(description="raised or cleared.")
    at: int
    raised_at: int | None = None
    cleared_at: int | None = None
    value: float | None = None
    threshold: float | None = None
    unit: str = ""
    evidence: dict[str, Any] = Field(default_factory=dict)


Action = Literal["start", "stop", "set_interval", "inject_fault", "clear_fault"]


class DeviceOrder(BaseModel):
    """A command to one device."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [
                {"command": "inject_fault", "kind": "spike", "metric": "temperature", "duration_ms": 60000},
                {"command": "set_interval", "interval_ms": 500},
                {"command": "stop"},
            ]
        },
    )

    command: Action
    interval_ms: int | None = Field(None, description="For set_interval.")
    kind: str | None = Field(None, description="For inject_fault: the kind of fault; for clear_fault: which to clear.")
    metric: str | None = Field(None, description="For inject_fault: the metric it concerns.")
    magnitude: float | None = Field(None, description="For inject_fault: how strong.")
    duration_ms: int | None = Field(None, description="For inject_fault: how long; without it until cleared.")
    fault_id: str | None = Field(None, description="For clear_fault: which fault.")


class GroupOrder(DeviceOrder):
    """A command to a group of devices."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [
                {"command": "set_interval", "interval_ms": 500, "scope": "type", "target": "press"},
                {"command": "clear_fault", "scope": "all"},
            ]
        },
    )

    scope: Literal["device", "type", "site", "line", "all"]
    target: str | None = Field(None, description="The device, type, site or line; none for all.")


class Accepted(BaseModel):
    """The command is on the topic `device.commands`, acknowledged by every in-sync replica."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "command_id": "0b0f4e0a-8f7f-4f43-b1c7-3f2f6f1c9a11",
                    "command": "stop",
                    "scope": "device",
                    "target": "press-0001",
                }
            ]
        }
    )

    command_id: str
    command: str
    scope: str
    target: str | None


class LedgerView(BaseModel):
    """generated = all outcomes + in flight."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [{"generated": 1000, "outcomes": {"acknowledged": 990}, "in_flight": 10, "balanced": True}]
        },
    )

    generated: int
    outcomes: dict[str, int]
    in_flight: int
    balanced: bool = Field(description="False when something was counted twice.")
    complete: bool = Field(True, description="False once a process was killed before its last words.")
