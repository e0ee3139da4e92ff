"""`headrace check`: hold what the pipeline has made against what it was made from."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import check_executions
from app.cli.broker import Bootstrap, Since, as_time, ask_kafka, since_ms
from app.cli.options import AsJson, ConfigFile, SetFlags, print_json
from app.cli.progress import progress_bar
from app.cli.tables import show_table

if TYPE_CHECKING:
    from app.rollup_check import Checked
    from config.settings import Settings

app = typer.Typer()
app.command("executions")(check_executions.command)


@app.callback()
def _group() -> None:
    """Hold what the pipeline has made against what it was made from."""


@app.command()
def rollups(
    since: Since = None,
    wait_s: Annotated[
        float, typer.Option("--wait-s", metavar="S", min=0, help="Wait so long for the transform to catch up.")
    ] = 60.0,
    memory_mb: Annotated[
        int, typer.Option("--memory-mb", metavar="MB", min=16, help="Memory of the windows; more needs more passes.")
    ] = 1024,
    show: Annotated[int, typer.Option("--show", metavar="N", min=0, help="Differences to print.")] = 20,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Recompute the rollups from the telemetry and tell every difference.

    Runs beside a working pipeline: windows that can still change are left out. Late records, dead letters and
    duplicates are taken into account. The settings must be those of the transform. Exit code 1 on a difference.
    """
    from_ms = since_ms(since)

    async def work(settings: "Settings") -> "Checked":
        from app.adapters.clock import SystemClock  # noqa: PLC0415 - `--help` needs no Kafka client
        from app.adapters.topic_reader import TopicReader  # noqa: PLC0415 - as above
        from app.roles.worker import terms_of  # noqa: PLC0415 - as above
        from app.rollup_check import Terms, check_rollups  # noqa: PLC0415 - as above

        clock = SystemClock()
        transform = terms_of(settings)
        group = f"{settings.kafka.client_id}-transform"
        terms = Terms(transform.spec, transform.limits, group, wait_s, memory_mb << 20)
        with progress_bar() as progress:
            return await check_rollups(
                TopicReader(settings.kafka),
                settings.kafka,
                terms,
                clock=clock,
                since_ms=from_ms,
                progress=progress,
            )

    checked = ask_kafka(config, flags, bootstrap, work)
    if as_json:
        _print_json(checked, show)
    else:
        _print(checked, show)
    raise typer.Exit(0 if checked.is_equal else 1)


def _print_json(checked: "Checked", show: int) -> None:
    from app.rollup_check import kind_of  # noqa: PLC0415 - as above

    print_json(
        {
            "equal": checked.is_equal,
            "records": checked.records,
            "late": checked.late,
            "dead_letters": checked.dead,
            "windows": checked.windows,
            "open_windows": checked.open_windows,
            "from_ms": checked.from_ms,
            "passes": checked.passes,
            "counts": dict(checked.counts),
            "differences": [
                {
                    "kind": kind_of(each),
                    "device_id": each.key[0],
                    "metric": each.key[1],
                    "window_start": each.key[2],
                    "window_ms": each.key[3],
                    "detail": each.detail,
                }
                for each in checked.differences[:show]
            ],
        }
    )


def _print(checked: "Checked", show: int) -> None:
    from app.rollup_check import kind_of  # noqa: PLC0415 - as above

    since = "" if checked.from_ms is None else f" from {as_time(checked.from_ms)} on"
    print(
        f"{checked.windows:,} windows{since} recomputed from {checked.records:,} records"
        f" ({checked.late:,} late, {checked.dead:,} dead letters); {checked.open_windows:,} not settled yet."
    )
    if checked.is_equal:
        print("No difference." if checked.windows else "There is nothing to compare.")
        return
    shown = checked.differences[:show]
    rows = ((kind_of(each), *each.key[:2], as_time(each.key[2]), f"{each.key[3]:,}", each.detail) for each in shown)
    if shown:
        show_table(("difference", "device", "metric", "window", ">size ms", "detail"), rows)
    total = sum(checked.counts.values())
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in checked.counts.most_common())
    print(f"{total:,} differences: {kinds}.")
