"""Commands to devices, as they are read from `device.commands`."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from app.domain.device import Device
from app.domain.faults import MAX_FAULT_MS, problem_of

COMMANDS = ("start", "stop", "set_interval", "inject_fault", "clear_fault")
SCOPES = ("device", "type", "site", "line", "all")
MIN_INTERVAL_MS = 10
MAX_INTERVAL_MS = 86_400_000
_FIELDS = frozenset(
    {
        "command_id",
        "command",
        "scope",
        "target",
        "issued_at",
        "interval_ms",
        "kind",
        "metric",
        "magnitude",
        "duration_ms",
        "fault_id",
    }
)


class DeviceCommand(NamedTuple):
    """One order to a device or a group: `scope` says what `target` names, "all" names nothing.

    `interval_ms` belongs to set_interval; `kind`, `metric`, `magnitude` and `duration_ms` to
    inject_fault (no duration: until cleared); `fault_id` or `kind` to clear_fault (neither: every
    fault).
    """

    command_id: str
    command: str
    scope: str
    target: str | None
    issued_at: int
    interval_ms: int | None = None
    kind: str | None = None
    metric: str | None = None
    magnitude: float | None = None
    duration_ms: int | None = None
    fault_id: str | None = None


class CommandRefused(NamedTuple):
    """Why a command cannot be obeyed."""

    detail: str


def read_command(raw: object) -> DeviceCommand | CommandRefused:
    """A command from decoded JSON."""
    if not isinstance(raw, Mapping):
        return CommandRefused("a command is a JSON object")
    unknown = sorted(str(key) for key in raw if key not in _FIELDS)
    if unknown:
        return CommandRefused(f"a command has no field {', '.join(unknown)}")
    problem = _wrong_type(raw)
    if problem:
        return CommandRefused(problem)
    command = DeviceCommand(
        command_id=raw["command_id"],
        command=raw["command"],
        scope=raw["scope"],
        target=raw.get("target"),
        issued_at=raw["issued_at"],
        interval_ms=raw.get("interval_ms"),
        kind=raw.get("kind"),
        metric=raw.get("metric"),
        magnitude=raw.get("magnitude"),
        duration_ms=raw.get("duration_ms"),
        fault_id=raw.get("fault_id"),
    )
    problem = _nonsense(command)
    return CommandRefused(problem) if problem else command


def _wrong_type(raw: Mapping[str, Any]) -> str | None:
    for name in ("command_id", "command", "scope"):
        if not isinstance(raw.get(name), str) or not raw[name]:
            return f"{name} is a text that must be there"
    if not _whole(raw.get("issued_at")) or raw["issued_at"] < 0:
        return "issued_at is whole milliseconds since 1970, UTC"
    for name in ("target", "kind", "metric", "fault_id"):
        if raw.get(name) is not None and not isinstance(raw[name], str):
            return f"{name} is a text"
    for name in ("interval_ms", "duration_ms"):
        if raw.get(name) is not None and not _whole(raw[name]):
            return f"{name} is whole milliseconds"
    magnitude = raw.get("magnitude")
    if magnitude is not None and not (
        isinstance(magnitude, (int, float)) and not isinstance(magnitude, bool) and math.isfinite(magnitude)
    ):
        return "magnitude is a finite number"
    return None


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _nonsense(command: DeviceCommand) -> str | None:
    if command.command not in COMMANDS:
        return f"there is no command {command.command!r}; there are {', '.join(COMMANDS)}"
    if command.scope not in SCOPES:
        return f"there is no scope {command.scope!r}; there are {', '.join(SCOPES)}"
    if (command.target is None) != (command.scope == "all"):
        return "a target is named unless the scope is all"
    if command.command == "set_interval" and not MIN_INTERVAL_MS <= (command.interval_ms or 0) <= MAX_INTERVAL_MS:
        return f"interval_ms is from {MIN_INTERVAL_MS} to {MAX_INTERVAL_MS}"
    if command.duration_ms is not None and not 1 <= command.duration_ms <= MAX_FAULT_MS:
        return f"duration_ms is from 1 to {MAX_FAULT_MS}"
    if command.command == "inject_fault":
        if command.kind is None:
            return "inject_fault names its kind"
        return problem_of(command.kind, command.metric, command.magnitude)
    return None


def concerns(command: DeviceCommand, device: Device) -> bool:
    """Whether the command is meant for this device."""
    match command.scope:
        case "device":
            return device.device_id == command.target
        case "type":
            return device.device_type == command.target
        case "site":
            return device.site == command.target
        case "line":
            return device.line == command.target
        case _:
            return True
