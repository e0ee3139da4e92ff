"""`headrace executions`: what became of executions, their histories, and orders to them."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final

import orjson
import typer

from app.cli.api import Api, Url
from app.cli.broker import Since, as_time, since_ms
from app.cli.execution_orders import add_orders
from app.cli.execution_outcome import FINAL, outcome, print_outcome, status_text, took
from app.cli.options import AsJson, ConfigFile, SetFlags, console, print_json
from app.cli.tables import show_table

if TYPE_CHECKING:
    from rich.text import Text

app = typer.Typer()

PAGE: Final = 1000
_AGAIN_S: Final = 0.5
_DETAIL_CHARS: Final = 120
_TASK_DETAILS: Final = ("reason", "waits_for", "items", "items_done", "child_id")
_NOTHING: Final[tuple[Any, ...]] = (None, "", {}, [])
_SHOWN_ELSEWHERE: Final = frozenset({"seq", "at", "type", "task", "item", "attempt"})

ExecutionId = Annotated[str, typer.Argument(metavar="EXECUTION", help="Its id.")]
OfWorkflow = Annotated[str | None, typer.Option("--workflow", "-w", metavar="WORKFLOW", help="Only of this workflow.")]
OfStatus = Annotated[
    list[str] | None,
    typer.Option(
        "--status",
        "-s",
        metavar="STATUS",
        help="Only in this status: queued, running, paused, succeeded, failed, cancelled, timed_out or skipped;"
        " repeatable.",
    ),
]
OfKey = Annotated[str | None, typer.Option("--key", metavar="KEY", help="Only with this concurrency key.")]
Until = Annotated[str | None, typer.Option("--until", metavar="WHEN", help="Only those asked for before; as --since.")]


@app.command("list")
def list_executions(
    workflow: OfWorkflow = None,
    status: OfStatus = None,
    key: OfKey = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="The newest N.")] = 20,
    url: Url = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """List executions, newest first."""
    query = {"workflow": workflow, "status": status or None, "key": key}
    times = {"since": since_ms(since), "until": since_ms(until, "--until")}
    api = Api(url, config, flags)
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    complete = True
    while len(found) < limit:
        page = api.get("executions", **query, **times, cursor=cursor, limit=min(PAGE, limit - len(found)))
        found += page["items"]
        complete &= page["complete"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    if as_json:
        print_json({"items": found, "more": cursor is not None, "complete": complete})
        return
    if found:
        show_table(("execution", "workflow", "status", "created", ">took", ">attempts", "error"), map(_cells, found))
    else:
        print("No execution matches.")
    if cursor is not None:
        print("There are more; --limit shows them.")
    if not complete:
        print("The index is being made or is not fed: executions may be missing, or shown as they were.")


@app.command()
def show(
    execution_id: ExecutionId,
    url: Url = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Show one execution with its tasks, input and result."""
    found = Api(url, config, flags).get("executions", execution_id)
    if as_json:
        print_json(found)
        return
    print_outcome(found)
    if found["tasks"]:
        show_table(("task", "status", ">attempts", "started", ">took", "detail"), map(_task_cells, found["tasks"]))
    for name in ("input", "result"):
        if found[name] is not None:
            console().print(f"{name}:", _pretty(found[name]), markup=False)


@app.command()
def history(
    execution_id: ExecutionId,
    after: Annotated[int, typer.Option("--after", metavar="SEQ", min=-1, help="Only events after this one.")] = -1,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="At most so many.")] = 1000,
    url: Url = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Show the events of one execution, in order."""
    api = Api(url, config, flags)
    events: list[dict[str, Any]] = []
    go_on: int | None = after
    while go_on is not None and len(events) < limit:
        path = ("executions", execution_id, "history")
        page = api.get(*path, after_seq=go_on, limit=min(PAGE, limit - len(events)))
        events += page["events"]
        go_on = page["next_after_seq"]
    if as_json:
        print_json({"execution_id": execution_id, "events": events, "more": go_on is not None})
        return
    show_table((">seq", "at", "event", "task", "detail"), map(_event_cells, events))
    if go_on is not None:
        print(f"There are more; --after {go_on} shows them.")


@app.command()
def watch(
    execution_id: ExecutionId,
    url: Url = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document a line, an event each.")] = False,
) -> None:
    """Show the events of one execution as they come, until it ends; exit code 1 unless it succeeded."""
    api = Api(url, config, flags)
    last: int | None = None
    kind = ""
    while True:
        headers = None if last is None else {"Last-Event-ID": str(last)}
        with api.lines("executions", execution_id, "stream", headers=headers) as lines:
            for event in _events(lines):
                last, kind = event["seq"], event["type"]
                if as_json:
                    print(orjson.dumps(event).decode(), flush=True)
                else:
                    _print_event(event)
        found = api.get("executions", execution_id)
        is_final = found["status"] in FINAL
        if is_final and kind == "execution_ended":
            break
        if not is_final:  # else the API had to end the stream before it had told everything
            time.sleep(_AGAIN_S)
    if not as_json:
        print_outcome(found)
    raise typer.Exit(outcome(found))


add_orders(app)


def _cells(found: dict[str, Any]) -> "tuple[str | Text, ...]":
    return (
        found["execution_id"],
        found["workflow"],
        status_text(found["status"]),
        as_time(found["created_at"]),
        took(found["duration_ms"]),
        f"{found['attempts']:,}",
        _short(found["error"] or ""),
    )


def _task_cells(task: dict[str, Any]) -> "tuple[str | Text, ...]":
    ended = task["ended_at"]
    error = task.get("error") or {}
    details = [f"{error.get('type')}: {error.get('message')}" if error and task["status"] != "succeeded" else ""]
    details += [
        f"{name} {task[name]}" for name in ("reason", "waits_for", "items", "items_done", "child_id") if name in task
    ]
    return (
        task["task"],
        status_text(task["status"]),
        str(task["attempts"]),
        as_time(task["started_at"]),
        took(None if ended is None else ended - task["started_at"]),
        _short(", ".join(filter(None, details))),
    )


def _event_cells(event: dict[str, Any]) -> tuple[str, ...]:
    return str(event["seq"]), as_time(event["at"]), event["type"], _task_of(event), _short(_details(event))


def _task_of(event: dict[str, Any]) -> str:
    """The task, the item of its map, and which attempt it is from the second on."""
    item = event.get("item")
    attempt = event.get("attempt") or 1
    name = f"{event.get('task') or ''}{'' if item is None else f'[{item}]'}"
    return f"{name} #{attempt}" if attempt > 1 else name


def _details(event: dict[str, Any]) -> str:
    """The fields that are the event's own."""
    own = {name: value for name, value in event.items() if name not in _SHOWN_ELSEWHERE and value not in _NOTHING}
    return " ".join(f"{name}={_inline(value)}" for name, value in own.items())


def _inline(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _print_event(event: dict[str, Any]) -> None:
    seq, at, kind, task, detail = _event_cells(event)
    text = f"{at}  {seq:>5}  {kind:<20} {task:<20} {detail}"
    console().print(text.rstrip(), markup=False)


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: "):
            yield orjson.loads(line.removeprefix("data: "))


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _DETAIL_CHARS else f"{flat[: _DETAIL_CHARS - 1]}…"


def _pretty(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
