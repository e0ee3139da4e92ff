"""`headrace schedules`: what starts workflows by the clock."""

from typing import Annotated, Any

import typer

from app.cli.api import Api, Url
from app.cli.broker import as_time
from app.cli.options import AsJson, ConfigFile, SetFlags, print_json
from app.cli.tables import show_table
from app.errors import UserError

app = typer.Typer()

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the schedule.")]
OfWorkflow = Annotated[str | None, typer.Option("--workflow", metavar="ID", help="Only those of this workflow.")]


@app.command("list")
def list_schedules(
    workflow: OfWorkflow = None,
    paused: Annotated[bool, typer.Option("--paused", help="Only those that are paused.")] = False,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="At most so many.")] = 100,
    url: Url = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """List schedules by name, with their next time and what became of the last one."""
    api = Api(url, config, flags)
    found, more = api.pages("schedules", limit=limit, workflow=workflow, paused=True if paused else None)
    if as_json:
        print_json({"items": found, "more": more})
        return
    if not found:
        print("No schedule matches.")
        return
    headings = ("name", "workflow", "when", "next", "last", ">started", ">skipped", ">missed", ">failed")
    show_table(headings, map(_cells, found))
    if more:
        print("There are more; --limit shows them.")


@app.command()
def show(
    name: Name, url: Url = None, config: ConfigFile = None, flags: SetFlags = None, as_json: AsJson = False
) -> None:
    """Show one schedule."""
    found = Api(url, config, flags).get("schedules", name)
    if as_json:
        print_json(found)
        return
    for field, value in found.items():
        if value not in (None, "", [], {}) and field != "command_id":
            print(f"{field:<18} {as_time(value) if field.endswith('_at') else value}")


@app.command()
def put(
    name: Name,
    workflow: Annotated[str, typer.Option("--workflow", metavar="ID", help="What it starts.")],
    cron: Annotated[str | None, typer.Option("--cron", metavar="FIELDS", help="Five fields, or @hourly.")] = None,
    every: Annotated[
        str | None, typer.Option("--every", metavar="TIME", help="Instead of --cron: 30s, 5m, 1h.")
    ] = None,
    timezone: Annotated[
        str, typer.Option("--timezone", metavar="ZONE", help="Of --cron, as in Europe/Berlin.")
    ] = "UTC",
    version: Annotated[str | None, typer.Option("--version", metavar="V", help="Without it the latest.")] = None,
    given: Annotated[str, typer.Option("--input", metavar="JSON", help="Input of each execution, an object.")] = "{}",
    overlap: Annotated[
        str, typer.Option("--overlap", metavar="POLICY", help="skip, queue, cancel_running or allow.")
    ] = "skip",
    catch_up: Annotated[str, typer.Option("--catch-up", metavar="POLICY", help="none, last or all.")] = "last",
    url: Url = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Create or change a schedule; a pause stays as it is."""
    body = {
        "workflow": workflow,
        "version": version,
        "cron": cron,
        "every_s": None if every is None else seconds(every),
        "timezone": timezone,
        "input": json_object(given, "--input"),
        "overlap": overlap,
        "catch_up": catch_up,
    }
    _answer(Api(url, config, flags).put("schedules", name, body=body), "is put", as_json=as_json)


@app.command()
def pause(
    name: Name, url: Url = None, config: ConfigFile = None, flags: SetFlags = None, as_json: AsJson = False
) -> None:
    """Start nothing until it is resumed."""
    _answer(Api(url, config, flags).post("schedules", name, "pause", body={}), "is paused", as_json=as_json)


@app.command()
def resume(
    name: Name, url: Url = None, config: ConfigFile = None, flags: SetFlags = None, as_json: AsJson = False
) -> None:
    """Go on; what was due meanwhile is passed over."""
    _answer(Api(url, config, flags).post("schedules", name, "resume", body={}), "is resumed", as_json=as_json)


@app.command()
def run(
    name: Name, url: Url = None, config: ConfigFile = None, flags: SetFlags = None, as_json: AsJson = False
) -> None:
    """Run once, now, also while it is paused."""
    _answer(Api(url, config, flags).post("schedules", name, "run", body={}), "runs", as_json=as_json)


@app.command()
def delete(
    name: Name, url: Url = None, config: ConfigFile = None, flags: SetFlags = None, as_json: AsJson = False
) -> None:
    """Delete a schedule; what runs goes on.

    One that a definition asks for comes back: pause it, or take it out of the definition.
    """
    _answer(Api(url, config, flags).delete("schedules", name), "is deleted", as_json=as_json)


def seconds(text: str) -> float:
    """Seconds of `30s`, `5m`, `1h`. Raises `UserError`."""
    from app.cli.devices import duration_ms  # noqa: PLC0415 - wanted only with the option

    return duration_ms(text, "--every") / 1000


def json_object(text: str, option: str) -> dict[str, Any]:
    """Raises `UserError` for anything else."""
    import json  # noqa: PLC0415 - `--help` needs no JSON

    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"{option}: not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise UserError(f'{option}: an object is wanted, as in {{"device_id": "press-0001"}}.')
    return found


def when(entity: dict[str, Any]) -> str:
    """The times of a schedule or backfill as people read them."""
    if entity["cron"] is None:
        return f"every {entity['every_s']:g} s"
    return str(entity["cron"]) if entity["timezone"] == "UTC" else f"{entity['cron']} ({entity['timezone']})"


def _cells(schedule: dict[str, Any]) -> tuple[str, ...]:
    coming = "paused" if schedule["paused"] else as_time(schedule["next_at"])
    last = schedule["last_status"] or ("running" if schedule["running"] else "–")
    counts = (f"{schedule[name]:,}" for name in ("started", "skipped", "missed", "failed"))
    return (schedule["id"], schedule["workflow"], when(schedule), coming, last, *counts)


def _answer(told: dict[str, Any], done: str, *, as_json: bool) -> None:
    if as_json:
        print_json(told)
    elif told["applied"]:
        coming = (told["schedule"] or {}).get("next_at")
        print(f"{told['id']} {done}" + (f"; next at {as_time(coming)}" if coming else ""))
    else:
        print(f"{told['id']}: the order is kept; no coordinator has obeyed it yet")
