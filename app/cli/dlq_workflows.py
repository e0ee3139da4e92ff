"""`headrace dlq workflows`: executions that failed, commands and records that were refused, and the way back."""

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from app.cli.broker import Bootstrap, Since, as_time, ask_kafka, since_ms
from app.cli.letters import (
    DETAIL_CHARS,
    INTERRUPTED,
    DryRun,
    Everything,
    OfReason,
    Places,
    Yes,
    check_redrive,
    place_of,
    plain,
    sending,
)
from app.cli.options import AsJson, ConfigFile, SetFlags, print_json
from app.cli.tables import show_table
from app.errors import UserError

if TYPE_CHECKING:
    from app.adapters.workflow_letters import LetterIndex, SentBack, WantedLetters, WorkflowLetter
    from config.settings import Settings

app = typer.Typer(help="Dead letters of workflows.")

_KINDS = ("execution", "command", "trigger")
OfKind = Annotated[
    str | None, typer.Option("--kind", metavar="KIND", help="Only execution, command or trigger (a refused record).")
]
OfWorkflow = Annotated[str | None, typer.Option("--workflow", metavar="ID", help="Only of this workflow.")]


@app.command("list")
def list_letters(
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, max=50_000, help="The newest N.")] = 20,
    since: Since = None,
    kind: OfKind = None,
    workflow: OfWorkflow = None,
    reason: OfReason = None,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters of workflows, newest first."""
    from_ms = since_ms(since)
    index, wanted = _find(_named(None, kind, workflow, reason, from_ms), bootstrap, config, flags)
    found = sorted(index.find(wanted), key=lambda each: (each.at_ms, each.place))[::-1][:limit]
    rows = [document(each, redriven=index.redriven(each.place)) for each in found]
    if as_json:
        print_json({"items": rows})
    elif not rows:
        print("No dead letter matches.")
    else:
        headings = ("place", "at", "kind", "workflow", "reason", "execution", "redriven", "detail")
        show_table(headings, ([_cell(row, name) for name in headings] for row in rows))


@app.command()
def redrive(
    places: Places = None,
    everything: Everything = False,
    since: Since = None,
    kind: OfKind = None,
    workflow: OfWorkflow = None,
    reason: OfReason = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Retry executions from their failed tasks, and send refused commands again; each once.

    Records that a trigger refused are left out: mend what wrote them. Exit code 1 when of some commands only
    the beginning was kept.
    """
    chosen_by = bool(places or everything or since or kind or workflow or reason)
    check_redrive(chosen_by, "--kind, --workflow, --reason", yes=yes, dry_run=dry_run)
    index, wanted = _find(_named(places, kind, workflow, reason, since_ms(since)), bootstrap, config, flags)
    chosen = index.to_redrive(wanted)
    executions = sum(each.kind == "execution" for each in chosen)
    selected = {"selected": len(chosen), "dry_run": dry_run}
    if not as_json:
        print(f"{executions:,} executions to retry, {len(chosen) - executions:,} commands to send again.")
    if dry_run or not chosen:
        if as_json:
            print_json({**selected, "executions": 0, "commands": 0, "gone": 0})
        return
    if not yes:
        typer.confirm(f"Send {len(chosen):,} back?", abort=True, err=True)
    done, whole = ask_kafka(config, flags, bootstrap, lambda settings: _redrive(settings, index, chosen))
    if as_json:
        print_json({**selected, **done._asdict()})
    else:
        print(f"{done.executions:,} executions retried, {done.commands:,} commands sent again.")
        if done.gone:
            print(f"{done.gone:,} are gone: the dead letter holds only a beginning.")
    raise typer.Exit(INTERRUPTED if not whole else 1 if done.gone else 0)


def _find(
    wanted: "WantedLetters", bootstrap: str | None, config: Any, flags: list[str] | None
) -> "tuple[LetterIndex, WantedLetters]":
    async def read(settings: "Settings") -> "LetterIndex":
        from app.adapters.topic_reader import TopicReader  # noqa: PLC0415 - `--help` needs no Kafka client
        from app.adapters.workflow_letters import LetterIndex  # noqa: PLC0415 - as above

        index = LetterIndex(TopicReader(settings.kafka))
        await index.refresh()
        return index

    return ask_kafka(config, flags, bootstrap, read), wanted


async def _redrive(
    settings: "Settings", index: "LetterIndex", chosen: "list[WorkflowLetter]"
) -> "tuple[SentBack, bool]":
    """What was done, and whether it was all; a signal stops between two chunks."""
    from app.adapters.workflow_letters import SentBack, redrive  # noqa: PLC0415 - as above
    from config.topics import WORKFLOW_COMMANDS  # noqa: PLC0415 - as above

    done = SentBack()
    async with sending(settings) as (producer, clock, stop):
        partitions = await producer.partitions(WORKFLOW_COMMANDS.name)
        steps = redrive(index, producer, chosen, partitions, now_ms=clock.now_ms, stopped=stop.is_set)
        async for step in steps:
            done = step
    return done, sum(done) == len(chosen)


def _named(
    places: list[str] | None, kind: str | None, workflow: str | None, reason: str | None, from_ms: int | None
) -> "WantedLetters":
    from app.adapters.workflow_letters import Kind, WantedLetters  # noqa: PLC0415 - as above

    if kind is not None and kind not in _KINDS:
        raise UserError(f"--kind {kind}: there is no such kind; there are {', '.join(_KINDS)}.")
    return WantedLetters(frozenset(map(place_of, places or ())), cast("Kind | None", kind), workflow, reason, from_ms)


def document(letter: "WorkflowLetter", *, redriven: bool) -> dict[str, Any]:
    """A dead letter for programs."""
    origin = letter.origin
    return {
        "place": str(letter.place),
        "at": as_time(letter.at_ms),
        "kind": letter.kind,
        "workflow": letter.workflow,
        "reason": letter.reason,
        "detail": letter.detail,
        "execution": letter.execution_id,
        "task": letter.task,
        "origin": None if origin is None else f"{origin[0]} {origin[1]}:{origin[2]}",
        "redriven": redriven,
    }


def _cell(row: dict[str, Any], name: str) -> str:
    if name == "redriven":
        return "yes" if row[name] else ""
    text = str(row[name] or row["origin"] or "") if name == "execution" else str(row[name] or "")
    return plain(text[:DETAIL_CHARS])
