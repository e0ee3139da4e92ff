"""`headrace backfill`: a workflow for every due time of a range."""

from typing import Annotated, Any

import typer

from app.cli.api import Api, Url
from app.cli.broker import as_time, since_ms
from app.cli.options import AsJson, ConfigFile, SetFlags, print_json
from app.cli.schedules import json_object, seconds, when
from app.cli.tables import show_table

app = typer.Typer()

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the backfill.")]


@app.command()
def start(
    begin: Annotated[str, typer.Option("--from", metavar="WHEN", help="15m, 2h, 7d ago, or 2026-01-31T08:00Z.")],
    end: Annotated[str, typer.Option("--to", metavar="WHEN", help="Likewise; it belongs to the range.")],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Used once; without it one is made.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option("--schedule", metavar="NAME", help="Take workflow, times and input from it.")
    ] = None,
    workflow: Annotated[str | None, typer.Option("--workflow", metavar="ID", help="What it starts.")] = None,
    version: Annotated[str | None, typer.Option("--version", metavar="V", help="Without it the latest.")] = None,
    cron: Annotated[str | None, typer.Option("--cron", metavar="FIELDS", help="Five fields, or @hourly.")] = None,
    every: Annotated[
        str | None, typer.Option("--every", metavar="TIME", help="Instead of --cron: 30s, 5m, 1h.")
    ] = None,
    timezone: Annotated[
        str | None, typer.Option("--timezone", metavar="ZONE", help="Of --cron, as in Europe/Berlin.")
    ] = None,
    given: Annotated[str | None, typer.Option("--input", metavar="JSON", help="Input of each execution.")] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", metavar="N", min=1, help="Executions at once.")] = 10,
    url: Url = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Start an execution for every due time of a range, oldest first; `trigger.due_ms` is the time each is for."""
    body: dict[str, Any] = {
        "id": name,
        "schedule": schedule,
        "workflow": workflow,
        "version": version,
        "cron": cron,
        "every_s": None if every is None else seconds(every),
        "timezone": timezone,
        "from": since_ms(begin, "--from"),
        "to": since_ms(end, "--to"),
        "input": None if given is None else json_object(given, "--input"),
        "concurrency": concurrency,
    }
    told = Api(url, config, flags).post("backfills", body=body)
    if as_json:
        print_json(told)
        return
    found = told["backfill"]
    count = f", {found['total']:,} executions" if found else "; no coordinator has begun it yet"
    print(f"{told['id']} is started{count}; `headrace backfill show {told['id']}` tells how far it is")


@app.command("list")
def list_backfills(
    workflow: Annotated[str | None, typer.Option("--workflow", metavar="ID", help="Only those of it.")] = None,
    status: Annotated[
        str | None, typer.Option("--status", metavar="STATUS", help="running, cancelled or done.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="At most so many.")] = 100,
    url: Url = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """List backfills by name, with their progress."""
    found, more = Api(url, config, flags).pages("backfills", limit=limit, workflow=workflow, status=status)
    if as_json:
        print_json({"items": found, "more": more})
        return
    if not found:
        print("No backfill matches.")
        return
    headings = ("name", "workflow", "when", "status", ">ended", ">failed", ">of")
    show_table(headings, map(_cells, found))
    if more:
        print("There are more; --limit shows them.")


@app.command()
def show(
    name: Name, url: Url = None, config: ConfigFile = None, flags: SetFlags = None, as_json: AsJson = False
) -> None:
    """Show one backfill with its progress."""
    found = Api(url, config, flags).get("backfills", name)
    if as_json:
        print_json(found)
        return
    for field, value in found.items():
        if value in (None, "", [], {}) or field == "command_id":
            continue
        is_time = field.endswith("_at") and isinstance(value, int)
        print(f"{field:<15} {as_time(value) if is_time or field in {'from', 'to', 'taken_until'} else value}")


@app.command()
def cancel(
    name: Name,
    keep: Annotated[bool, typer.Option("--keep-running", help="Let the executions that go on end.")] = False,
    url: Url = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Start no further execution, and cancel those that go on."""
    told = Api(url, config, flags).post("backfills", name, "cancel", body={"running": not keep})
    if as_json:
        print_json(told)
        return
    print(f"{name} is cancelled" if told["applied"] else f"{name}: the order is kept; nobody has obeyed it yet")


def _cells(backfill: dict[str, Any]) -> tuple[str, ...]:
    ended = backfill["succeeded"] + backfill["failed"] + backfill.get("skipped", 0)
    counts = (f"{ended:,}", f"{backfill['failed']:,}", f"{backfill['total']:,}")
    return (backfill["id"], backfill["workflow"], when(backfill), backfill["status"], *counts)
