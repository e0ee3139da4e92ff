"""`headrace check executions`: hold every execution on Kafka against what the engine promises."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from app.cli.broker import Bootstrap, ask_kafka
from app.cli.options import AsJson, ConfigFile, SetFlags, print_json
from app.cli.progress import progress_bar
from app.cli.tables import show_table
from app.errors import UserError

if TYPE_CHECKING:
    from app.adapters.topic_reader import TopicReader
    from app.executions_check import Checked
    from config.settings import Settings


def command(
    ended: Annotated[bool, typer.Option("--ended", help="Every accepted execution must have ended.")] = False,
    effects_task: Annotated[
        str | None, typer.Option("--effects-task", metavar="TASK", help="The task whose effects are counted.")
    ] = None,
    effects_sql: Annotated[
        str | None, typer.Option("--effects-sql", metavar="URL", help="The database that holds the effects.")
    ] = None,
    effects_table: Annotated[
        str | None, typer.Option("--effects-table", metavar="TABLE.COLUMN", help="Where each names its work.")
    ] = None,
    effects_topic: Annotated[
        str | None, typer.Option("--effects-topic", metavar="TOPIC", help="The topic that holds the effects.")
    ] = None,
    effects_field: Annotated[
        str | None,
        typer.Option(
            "--effects-field", metavar="FIELD", help="JSON field that names the work; else header or key of the record."
        ),
    ] = None,
    effects_by_execution: Annotated[
        bool, typer.Option("--effects-by-execution", help="Effects name the execution, not its idempotency key.")
    ] = False,
    wait_s: Annotated[
        float, typer.Option("--wait-s", metavar="S", min=0, help="Wait so long for the coordinator to catch up.")
    ] = 60.0,
    memory_mb: Annotated[
        int, typer.Option("--memory-mb", metavar="MB", min=16, help="Memory of the histories; more needs more passes.")
    ] = 1024,
    show: Annotated[int, typer.Option("--show", metavar="N", min=0, help="Faults to print.")] = 20,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Read the commands and histories of all executions and tell every promise that was not kept.

    Each accepted start has one history: without a gap, legal by its definition, with one end. With --effects-… each
    task that has succeeded has had its effect once. Runs beside a working engine. Exit code 1 on a fault, also when
    there is nothing to check.
    """
    _judge_options(effects_task, effects_sql, effects_table, effects_topic)

    places = _Places(effects_task, effects_sql, effects_table, effects_topic, effects_field, effects_by_execution)

    async def work(settings: "Settings") -> "Checked":
        return await _check(settings, places, ended, wait_s, memory_mb)

    checked = ask_kafka(config, flags, bootstrap, work)
    if as_json:
        _print_json(checked, show)
    else:
        _print(checked, show)
    raise typer.Exit(0 if checked.is_right else 1)


class _Places(NamedTuple):
    """Where effects are, as the options say."""

    task: str | None
    sql: str | None
    table: str | None
    topic: str | None
    field: str | None
    by_execution: bool


async def _check(settings: "Settings", places: _Places, ended: bool, wait_s: float, memory_mb: int) -> "Checked":
    from app import executions_check as proof  # noqa: PLC0415 - `--help` needs no Kafka client
    from app.adapters.clock import SystemClock  # noqa: PLC0415 - as above
    from app.adapters.topic_reader import TopicReader  # noqa: PLC0415 - as above
    from app.domain.workflow.legal import violations  # noqa: PLC0415 - as above

    reader = TopicReader(settings.kafka)
    effects: proof.Effects | None = None
    if places.task is not None:
        effects = proof.Effects(places.task, _keys(reader, places), "execution" if places.by_execution else "key")
    definitions = await proof.registered(reader)
    terms = proof.Terms(
        violations, lambda workflow, version: definitions.get((workflow, version)), ended, effects, memory_mb << 20
    )

    async def settled(noted: Mapping[int, int]) -> None:
        await proof.until_committed(settings.kafka, SystemClock(), noted, wait_s)

    with progress_bar() as progress:
        return await proof.check_executions(reader, terms, settled=settled, progress=progress)


def _judge_options(task: str | None, sql: str | None, table: str | None, topic: str | None) -> None:
    given = [name for name, value in {"--effects-sql": sql, "--effects-topic": topic}.items() if value is not None]
    if (task is None) != (not given):
        raise UserError("--effects-task goes with --effects-sql or --effects-topic.")
    if len(given) > 1:
        raise UserError("--effects-sql and --effects-topic exclude each other.")
    if (sql is None) != (table is None) or (table is not None and "." not in table):
        raise UserError("--effects-sql goes with --effects-table TABLE.COLUMN.")


def _keys(reader: "TopicReader", places: _Places) -> Callable[[], AsyncIterator[Sequence[str]]]:
    from app.adapters.effects import sql_keys, topic_keys  # noqa: PLC0415 - `--help` needs no database

    def keys() -> AsyncIterator[Sequence[str]]:
        if places.sql is not None and places.table is not None:
            table, _, column = places.table.rpartition(".")
            return sql_keys(places.sql, table, column)
        assert places.topic is not None, "asked for only with a place to read from"
        return topic_keys(reader, places.topic, places.field)

    return keys


def _print_json(checked: "Checked", show: int) -> None:
    print_json(
        {
            "right": checked.is_right,
            "executions": checked.executions,
            "starts": checked.starts,
            "repeated_starts": checked.repeated_starts,
            "refused": checked.refused,
            "debounced": checked.debounced,
            "pending": checked.pending,
            "cut_by_retention": checked.cut,
            "events": checked.events,
            "repeats": checked.repeats,
            "forks": checked.forks,
            "effects": checked.effects,
            "effects_due": checked.effects_due,
            "passes": checked.passes,
            "statuses": dict(checked.statuses),
            "counts": dict(checked.counts),
            "faults": [fault._asdict() for fault in checked.faults[:show]],
        }
    )


def _print(checked: "Checked", show: int) -> None:
    statuses = ", ".join(f"{count:,} {status}" for status, count in checked.statuses.most_common())
    print(f"{checked.executions:,} executions with {checked.events:,} events ({statuses or 'none'}).")
    print(
        f"{checked.starts:,} accepted starts, {checked.repeated_starts:,} repeated, {checked.refused:,} commands"
        f" refused, {checked.debounced:,} debounced, {checked.pending:,} not yet begun;"
        f" {checked.repeats:,} events repeated and {checked.forks:,} replaced by takeovers;"
        f" {checked.cut:,} cut by retention."
    )
    if checked.effects or checked.effects_due:
        print(f"{checked.effects:,} effects, {checked.effects_due:,} due.")
    if checked.is_right:
        print("No fault.")
        return
    shown = checked.faults[:show]
    if shown:
        show_table(("fault", "execution", "detail"), shown)
    total = sum(checked.counts.values())
    print(f"{total:,} faults: {', '.join(f'{count:,} {kind}' for kind, count in checked.counts.most_common())}.")
