"""`headrace dlq`: what was refused and why, and the way back once the cause is mended."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.broker import Bootstrap, Since, as_time, ask_kafka, since_ms
from app.cli.dlq_workflows import app as workflows
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
    from app.adapters.dead_letters import Letter, Listed, Redriven, Selection
    from config.settings import Settings

app = typer.Typer()
app.add_typer(workflows, name="workflows")

OfDevice = Annotated[str | None, typer.Option("--device", metavar="DEVICE", help="Only originals with this key.")]
OfTopic = Annotated[str | None, typer.Option("--topic", metavar="TOPIC", help="Only originals of this topic.")]
OfStage = Annotated[str | None, typer.Option("--stage", metavar="STAGE", help="Only what this stage refused.")]


@app.command("list")
def list_letters(
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, max=100_000, help="The newest N.")] = 20,
    since: Since = None,
    reason: OfReason = None,
    device: OfDevice = None,
    topic: OfTopic = None,
    stage: OfStage = None,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters, newest first."""
    from_ms = since_ms(since)

    async def work(settings: "Settings") -> "Listed":
        from app.adapters.dead_letters import Wanted, newest  # noqa: PLC0415 - `--help` needs no Kafka client

        wanted = Wanted(reason=reason, device=device, topic=topic, stage=stage)
        return await newest(_reader(settings), wanted, limit, from_ms)

    found = ask_kafka(config, flags, bootstrap, work)
    if as_json:
        items = [_document(each, redriven=each.place in found.redriven) for each in found.letters]
        print_json({"items": items, "unreadable": found.unreadable})
        return
    _print_list(found)


@app.command()
def show(
    place: Annotated[str, typer.Argument(metavar="PARTITION:OFFSET", help="Its place, as `list` tells it.")],
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter with the original, decoded."""
    at = place_of(place)

    async def work(settings: "Settings") -> "tuple[Letter, bool] | None":
        from app.adapters import dead_letters  # noqa: PLC0415 - as above

        return await dead_letters.show(_reader(settings), at)

    found = ask_kafka(config, flags, bootstrap, work)
    if found is None:
        raise UserError(f"{place}: there is no dead letter; `headrace dlq list` tells their places.")
    letter, redriven = found
    if as_json:
        print_json(_document(letter, redriven=redriven))
        return
    for name, value in _document(letter, redriven=redriven).items():
        if name != "original" and value not in (None, "", {}):
            print(f"{name:<14} {plain(str(value))}")
    print(f"original       {len(letter.original or b''):,} of {letter.value_bytes:,} bytes")
    print(readable(letter.original))


@app.command()
def redrive(
    places: Places = None,
    everything: Everything = False,
    since: Since = None,
    reason: OfReason = None,
    device: OfDevice = None,
    topic: OfTopic = None,
    stage: OfStage = None,
    dry_run: DryRun = False,
    again: Annotated[bool, typer.Option("--again", help="Also what was redriven before and refused again.")] = False,
    yes: Yes = False,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Send originals back to their topics, each once.

    What was sent back is marked and never sent again; what was refused once more is left out unless --again
    or its place asks for it. Exit code 1 when some could not be sent (their original is gone, or too large).
    """
    selected = bool(places or everything or since or reason or device or topic or stage)
    check_redrive(selected, "--reason, --device, --topic, --stage", yes=yes, dry_run=dry_run)
    from_ms, named = since_ms(since), frozenset(map(place_of, places or ()))

    async def chosen(settings: "Settings") -> "Selection":
        from app.adapters.dead_letters import Wanted, select  # noqa: PLC0415 - as above

        wanted = Wanted(named, reason, device, topic, stage)
        return await select(_reader(settings), wanted, from_ms, again=again)

    selection = ask_kafka(config, flags, bootstrap, chosen)
    if not as_json:
        _print_selection(selection)
    if dry_run or not selection.places:
        _finish(selection, None, as_json=as_json, dry_run=dry_run)
        return
    if not yes:
        typer.confirm(f"Send {len(selection.places):,} back?", abort=True, err=True)
    done, whole = ask_kafka(config, flags, bootstrap, lambda settings: _redrive(settings, selection))
    _finish(selection, done, as_json=as_json, dry_run=False)
    raise typer.Exit(INTERRUPTED if not whole else 1 if done.gone or done.too_large else 0)


async def _redrive(settings: "Settings", selection: "Selection") -> "tuple[Redriven, bool]":
    """What was done, and whether it was all; a signal stops between two chunks."""
    from agents.generate import record_ms  # noqa: PLC0415 - as above
    from app.adapters import dead_letters  # noqa: PLC0415 - as above
    from app.adapters.producer_lane import RECORD_OVERHEAD_BYTES  # noqa: PLC0415 - as above

    done = dead_letters.Redriven(0, 0, 0)
    async with sending(settings) as (producer, clock, stop):
        async for done in dead_letters.redrive(
            _reader(settings),
            producer,
            selection,
            now_ms=clock.now_ms,
            stopped=stop.is_set,
            record_bytes=settings.producer.max_request_bytes - RECORD_OVERHEAD_BYTES,
            timestamp_of=lambda original_ms, now_ms: now_ms if original_ms is None else record_ms(original_ms, now_ms),
        ):
            if sys.stderr.isatty():
                print(f"\r{done.sent:,} of {len(selection.places):,} sent", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return done, done.sent + done.gone + done.too_large == len(selection.places)


def _reader(settings: "Settings") -> Any:
    from app.adapters.topic_reader import TopicReader  # noqa: PLC0415 - as above

    return TopicReader(settings.kafka)


def readable(content: bytes | None) -> str:
    """Bytes as people read them: JSON laid out, else text with escapes for what is none."""
    import json  # noqa: PLC0415 - `--help` needs no JSON

    if content is None:
        return "(no value: a tombstone)"
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return repr(content)[2:-1]
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)


def _document(letter: "Letter", *, redriven: bool) -> dict[str, Any]:
    origin = None if letter.topic is None else f"{letter.topic} {letter.partition}:{letter.offset}"
    return {
        "place": str(letter.place),
        "at": as_time(letter.at_ms),
        "reason": letter.reason,
        "detail": letter.detail,
        "stage": letter.stage,
        "device": letter.device_id,
        "topic": letter.topic,
        "origin": origin if letter.file is None else f"{letter.file}:{letter.line}",
        "timestamp": letter.timestamp,
        "headers": {name: content.decode(errors="replace") for name, content in letter.headers},
        "value_bytes": letter.value_bytes,
        "truncated": letter.truncated,
        "redriven": redriven,
        "came_back": letter.came_back,
        "original": None if letter.original is None else letter.original.decode(errors="backslashreplace"),
    }


def _print_list(found: "Listed") -> None:
    if not found.letters:
        print("No dead letter matches.")
    else:
        headings = ("place", "at", "reason", "device", "origin", "redriven", "detail")
        rows = (_document(each, redriven=each.place in found.redriven) for each in found.letters)
        show_table(headings, (_cells(row, headings) for row in rows))
    if found.unreadable:
        print(f"{found.unreadable:,} records of the topic are no dead letters.")


def _cells(row: dict[str, Any], headings: tuple[str, ...]) -> list[str]:
    state = "yes" if row["redriven"] else "came back" if row["came_back"] else ""
    shown = {**row, "redriven": state, "detail": row["detail"][:DETAIL_CHARS]}
    return [plain(str(shown[name] or "")) for name in headings]


def _print_selection(selection: "Selection") -> None:
    print(f"{len(selection.places):,} to send back" + (":" if selection.by_topic else "."))
    for name, count in sorted(selection.by_topic.items()):
        print(f"  {count:,} to {name}")
    if selection.redriven_before:
        print(f"{selection.redriven_before:,} were redriven before and are left out.")
    if selection.came_back:
        print(f"{selection.came_back:,} came back from an earlier redrive and are left out; --again sends them too.")
    if selection.of_files:
        print(f"{selection.of_files:,} are rows of files: mend the file and replay it.")


def _finish(selection: "Selection", done: "Redriven | None", *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        print_json(
            {
                "selected": len(selection.places),
                "by_topic": dict(selection.by_topic),
                "redriven_before": selection.redriven_before,
                "came_back": selection.came_back,
                "rows_of_files": selection.of_files,
                "dry_run": dry_run,
                "sent": done.sent if done else 0,
                "gone": done.gone if done else 0,
                "too_large": done.too_large if done else 0,
            }
        )
    elif done is not None:
        print(f"{done.sent:,} sent back.")
        if done.gone:
            print(f"{done.gone:,} are gone: the dead letter holds only a beginning, and the topic no longer the rest.")
        if done.too_large:
            print(f"{done.too_large:,} are larger than producer.max_request_bytes.")
