"""`headrace devices`: what the devices of a running system are doing, and orders to them."""

from typing import Annotated, Any

import typer

from app.cli.api import Api, Url
from app.cli.broker import as_time
from app.cli.options import AsJson, ConfigFile, SetFlags, print_json
from app.cli.tables import show_table
from app.domain.faults import FAULT_KINDS
from app.errors import UserError

app = typer.Typer()

PAGE = 1000

DeviceId = Annotated[str | None, typer.Argument(metavar="DEVICE", help="One device; or name a group.")]
OfType = Annotated[str | None, typer.Option("--type", metavar="TYPE", help="All devices of a type, as in pump.")]
OfSite = Annotated[str | None, typer.Option("--site", metavar="SITE", help="All devices of a site.")]
OfLine = Annotated[str | None, typer.Option("--line", metavar="LINE", help="All devices of a line.")]
Everyone = Annotated[bool, typer.Option("--all", help="All devices.")]


@app.command("list")
def list_devices(
    device_type: Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Only of this type.")] = None,
    site: Annotated[str | None, typer.Option("--site", metavar="SITE", help="Only of this site.")] = None,
    state: Annotated[str | None, typer.Option("--state", metavar="ONLINE|OFFLINE|UNKNOWN", help="Only these.")] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="At most so many.")] = 100,
    url: Url = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """List devices by id, with state, health and last sample."""
    api = Api(url, config, flags)
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(found) < limit:
        page = api.get(
            "devices", type=device_type, site=site, state=state, cursor=cursor, limit=min(PAGE, limit - len(found))
        )
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    if as_json:
        print_json({"items": found, "more": cursor is not None})
        return
    _print_devices(found, more=cursor is not None)


@app.command()
def show(
    device_id: Annotated[str, typer.Argument(metavar="DEVICE", help="Its id, as in press-0001.")],
    url: Url = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Show one device with its metrics and last readings."""
    device = Api(url, config, flags).get("devices", device_id)
    if as_json:
        print_json(device)
        return
    _print_device(device)


@app.command()
def fault(
    device_id: DeviceId = None,
    kind: Annotated[str, typer.Option("--kind", metavar="KIND", help=", ".join(FAULT_KINDS) + ".")] = "",
    metric: Annotated[str | None, typer.Option("--metric", metavar="METRIC", help="Without it one is drawn.")] = None,
    magnitude: Annotated[
        float | None, typer.Option("--magnitude", metavar="X", help="How strong; see devices.md.")
    ] = None,
    duration: Annotated[
        str | None, typer.Option("--duration", metavar="TIME", help="500ms, 30s, 5m or 1h; without it until cleared.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="End faults: those of --kind, or all.")] = False,
    device_type: OfType = None,
    site: OfSite = None,
    line: OfLine = None,
    everyone: Everyone = False,
    url: Url = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Inject a fault into a device or a group, or clear faults."""
    if clear:
        if metric is not None or magnitude is not None or duration is not None:
            raise UserError("--clear takes no --metric, --magnitude or --duration.")
        order: dict[str, Any] = {"command": "clear_fault", "kind": kind or None}
    else:
        order = {
            "command": "inject_fault",
            "kind": _kind(kind),
            "metric": metric,
            "magnitude": magnitude,
            "duration_ms": None if duration is None else duration_ms(duration, "--duration"),
        }
    scope = _scope(device_id, device_type, site, line, everyone=everyone)
    _send(Api(url, config, flags), order, scope, as_json=as_json)


@app.command()
def start(
    device_id: DeviceId = None,
    device_type: OfType = None,
    site: OfSite = None,
    line: OfLine = None,
    everyone: Everyone = False,
    url: Url = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Start devices that were stopped."""
    scope = _scope(device_id, device_type, site, line, everyone=everyone)
    _send(Api(url, config, flags), {"command": "start"}, scope, as_json=as_json)


@app.command()
def stop(
    device_id: DeviceId = None,
    device_type: OfType = None,
    site: OfSite = None,
    line: OfLine = None,
    everyone: Everyone = False,
    url: Url = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Stop devices until they are started again."""
    scope = _scope(device_id, device_type, site, line, everyone=everyone)
    _send(Api(url, config, flags), {"command": "stop"}, scope, as_json=as_json)


@app.command()
def interval(
    time: Annotated[str, typer.Argument(metavar="TIME", help="Between two samples: 500ms, 1s, 1m.")],
    device_id: DeviceId = None,
    device_type: OfType = None,
    site: OfSite = None,
    line: OfLine = None,
    everyone: Everyone = False,
    url: Url = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Set how often devices send."""
    order = {"command": "set_interval", "interval_ms": duration_ms(time, "TIME")}
    scope = _scope(device_id, device_type, site, line, everyone=everyone)
    _send(Api(url, config, flags), order, scope, as_json=as_json)


def duration_ms(text: str, what: str) -> int:
    """Milliseconds of `500ms`, `30s`, `5m`, `1h`. Raises `UserError`."""
    for unit, unit_ms in (("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)):
        number = text.strip().removesuffix(unit)
        if number != text.strip() and number.isdigit():
            return int(number) * unit_ms
    raise UserError(f"{what} {text}: not a length of time; write 500ms, 30s, 5m or 1h.")


def _kind(kind: str) -> str:
    kind = kind.replace("-", "_")
    if kind not in FAULT_KINDS:
        said = f"--kind {kind}: there is no such fault" if kind else "--kind says which fault"
        raise UserError(f"{said}; there are {', '.join(FAULT_KINDS)}.")
    return kind


def _scope(
    device_id: str | None, device_type: str | None, site: str | None, line: str | None, *, everyone: bool
) -> tuple[str, str | None]:
    """What is meant, as (scope, target). Raises `UserError` unless it is exactly one thing."""
    named = [("device", device_id), ("type", device_type), ("site", site), ("line", line)]
    meant = [(scope, target) for scope, target in named if target is not None]
    if everyone:
        meant.append(("all", None))  # type: ignore[arg-type]
    if len(meant) != 1:
        raise UserError("Name one device or one group: DEVICE, --type, --site, --line or --all.")
    return meant[0]


def _send(api: Api, order: dict[str, Any], scope: tuple[str, str | None], *, as_json: bool) -> None:
    body = {name: value for name, value in order.items() if value is not None}
    kind, target = scope
    if kind == "device":
        answer = api.post("devices", str(target), "commands", body=body)
    else:
        group = {"scope": kind} | ({"target": target} if target is not None else {})
        answer = api.post("devices", "commands", body=body | group)
    if as_json:
        print_json(answer)
        return
    whom = "all devices" if kind == "all" else f"{'' if kind == 'device' else kind + ' '}{target}"
    what = body["command"].replace("_", " ")
    print(f"{what} sent to {whom}: command {answer['command_id']} is on device.commands")


def _print_devices(devices: list[dict[str, Any]], *, more: bool) -> None:
    if not devices:
        print("No device matches.")
        return
    headings = ("device", "type", "site", "line", "state", "health", "last sample", ">samples", ">gaps")
    show_table(headings, map(_cells, devices))
    if more:
        print("There are more; --limit shows them.")


def _cells(device: dict[str, Any]) -> tuple[str, ...]:
    last = device.get("last_sample")
    return (
        device["device_id"],
        device["device_type"],
        device.get("site") or "",
        device.get("line") or "",
        device["state"],
        device["health"],
        as_time(last["source_timestamp"]) if last else "–",
        f"{device['samples']:,}",
        f"{device['gaps']:,}",
    )


def _print_device(device: dict[str, Any]) -> None:
    place = " / ".join(device[part] for part in ("site", "area", "line") if device.get(part))
    made = " ".join(device[part] for part in ("manufacturer", "model", "serial") if device.get(part))
    print(f"{device['device_id']}  {device['device_type']}  {device['state']}  {device['health']}")
    counts = ", ".join(f"{device[name]:,} {name}" for name in ("samples", "gaps", "duplicates"))
    for name, text in (("made", made), ("place", place), ("since", as_time(device.get("since"))), ("seen", counts)):
        print(f"  {name:<8} {text or '–'}")
    last = device.get("last_sample")
    readings = {each["metric"]: each for each in last["metrics"]} if last else {}
    title = f"last sample {as_time(last['source_timestamp'])}" if last else None
    headings = ("metric", ">value", "unit", "quality", "normal range")
    show_table(headings, (_metric_cells(metric, readings) for metric in device["metrics"]), title)


def _metric_cells(metric: dict[str, Any], readings: dict[str, Any]) -> tuple[str, ...]:
    reading = readings.get(metric["metric"], {})
    value, eu_range = reading.get("value"), metric.get("eu_range")
    return (
        metric["metric"],
        "–" if value is None else f"{value:,.3f}",
        metric["unit"],
        reading.get("quality", "–"),
        f"{eu_range['low']:g} to {eu_range['high']:g}" if eu_range else "–",
    )
