"""`headrace bench`: measure this machine, beside other clients on the same broker."""

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import ConfigFile, SetFlags, console, load_settings
from app.errors import HeadraceError, UserError

if TYPE_CHECKING:
    from app.bench.environments import Say
    from app.bench.result import Result
    from app.bench.side import Progress
    from app.bench.suite import Entry

app = typer.Typer()

JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON.")]
Runs = Annotated[int | None, typer.Option("--runs", min=1, metavar="N", help="Runs of each side; the median counts.")]
Records = Annotated[int | None, typer.Option("--records", min=1, metavar="N", help="Records of a run.")]
Peers = Annotated[
    str | None, typer.Option("--peers", metavar="A,B", help="Only these peers; an empty text means none.")
]
Bootstrap = Annotated[
    str | None,
    typer.Option("--bootstrap", metavar="HOST:PORT", help="The broker to use; without it an embedded one is started."),
]
Seconds = Annotated[int, typer.Option("--seconds", min=1, max=3600, help="How long to send at each load.")]
Kills = Annotated[int | None, typer.Option("--kills", min=1, max=1000, help="How many engines to kill, by turns.")]
EveryS = Annotated[float, typer.Option("--every-s", min=0, help="Seconds from one kill to the next, on average.")]
BrokerKills = Annotated[int | None, typer.Option("--kills", min=1, max=1000, help="How many brokers to kill.")]
TriggerSeconds = Annotated[int, typer.Option("--seconds", min=1, max=3600, help="How long to start executions.")]


@app.command("producer")
def producer(
    json_file: JsonFile = None,
    runs: Runs = None,
    records: Records = None,
    peers: Peers = None,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
) -> None:
    """Records sent and acknowledged a second, beside Kafka's own tool, confluent-kafka and aiokafka."""
    _one("producer", json_file, runs, records, peers, _broker(bootstrap, config, flags))


@app.command("batch-vs-single")
def batch_vs_single(
    json_file: JsonFile = None,
    runs: Runs = None,
    records: Records = None,
    peers: Peers = None,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
) -> None:
    """Batches of a thousand beside one awaited send after the other."""
    _one("batch-vs-single", json_file, runs, records, peers, _broker(bootstrap, config, flags))


@app.command("transform")
def transform(
    json_file: JsonFile = None,
    runs: Runs = None,
    records: Records = None,
    peers: Peers = None,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
) -> None:
    """Map-and-forward beside Kafka Streams, Quix Streams and stock Faust."""
    _one("transform", json_file, runs, records, peers, _broker(bootstrap, config, flags))


@app.command("rollup")
def rollup(
    json_file: JsonFile = None,
    runs: Runs = None,
    records: Records = None,
    peers: Peers = None,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
) -> None:
    """Windows of ten seconds with durable state, beside the same peers."""
    _one("rollup", json_file, runs, records, peers, _broker(bootstrap, config, flags))


@app.command("send-latency")
def send_latency(
    json_file: JsonFile = None,
    runs: Runs = None,
    seconds: Seconds = 60,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
) -> None:
    """10,000 messages/s from 1,000 devices, open loop: intended instant to acknowledgement."""
    _one("send-latency", json_file, runs, seconds * 10_000, None, _broker(bootstrap, config, flags))


@app.command("capacity")
def capacity(
    json_file: JsonFile = None,
    seconds: Seconds = 6,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
) -> None:
    """Memory and CPU of the producer at several loads: the coefficients of `headrace capacity`."""
    _one("capacity", json_file, None, seconds * 10_000, None, _broker(bootstrap, config, flags))


@app.command("spool")
def spool(
    json_file: JsonFile = None,
    runs: Runs = None,
    records: Records = None,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
) -> None:
    """Ten minutes of readings at 10,000/s on disk (--records scales it), sent to a broker that is back."""
    _one("spool", json_file, runs, records, None, _broker(bootstrap, config, flags))


@app.command("workflow")
def workflow(
    json_file: JsonFile = None,
    runs: Runs = None,
    records: Records = None,
    peers: Peers = None,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
) -> None:
    """Source, transform and sink as durable steps, beside Restate and DBOS; --records are executions."""
    _one("workflow", json_file, runs, records, peers, _broker(bootstrap, config, flags))


@app.command("trigger")
def trigger(
    json_file: JsonFile = None,
    seconds: TriggerSeconds = 10,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
) -> None:
    """HTTP starts at 100 to 2,000 a second, open loop: to the 202 and to the first task; and the most there can be."""
    _one("trigger", json_file, None, seconds, None, _broker(bootstrap, config, flags))


@app.command("timers")
def timers(
    json_file: JsonFile = None,
    runs: Runs = None,
    seconds: TriggerSeconds = 20,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
) -> None:
    """1,000 durable timers due each second: how late they fire."""
    _one("timers", json_file, runs, seconds, None, _broker(bootstrap, config, flags))


@app.command("executions")
def executions(
    json_file: JsonFile = None,
    records: Records = None,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
) -> None:
    """A million finished executions and a tenth of that waiting: memory, lists, and a history of 20,000 events."""
    _one("executions", json_file, None, records, None, _broker(bootstrap, config, flags))


@app.command("restore")
def restore(
    json_file: JsonFile = None,
    runs: Runs = None,
    records: Records = None,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
) -> None:
    """Tables of a million rows (--records) opened: from the changelog alone, from their disk, and kept warm."""
    _one("restore", json_file, runs, records, None, _broker(bootstrap, config, flags))


@app.command("failover")
def failover(
    json_file: JsonFile = None,
    records: Kills = None,
    stop: Annotated[bool, typer.Option("--stop", help="SIGSTOP for 1.5 s instead.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Stop them in order instead, as an upgrade does.")] = False,
    every_s: EveryS = 0.0,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
) -> None:
    """SIGKILL of an engine under 500 executions/s: the gap in completions; a plot in bench-results/failover.png."""
    if stop and restart:
        raise UserError("--stop and --restart are two benchmarks; ask for one of them.")
    name = "failover-stop" if stop else "failover-restart" if restart else "failover"
    _one(name, json_file, None, records, None, _broker(bootstrap, config, flags), every_s)


@app.command("broker-loss")
def broker_loss(json_file: JsonFile = None, records: BrokerKills = None) -> None:
    """SIGKILL of one broker of three, by turns a partition's leader and the controller: the gap in completions."""
    _one("broker-loss", json_file, None, records, None, "")


@app.command("all")
def everything(
    output: Annotated[Path, typer.Option("--output", metavar="FOLDER", help="Folder of the JSON files.")] = Path(
        "bench-results"
    ),
    runs: Runs = None,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
) -> None:
    """Every benchmark on one broker but `executions` and `failover`, about twenty minutes; one JSON file each."""
    from app.bench.suite import SUITE  # noqa: PLC0415 - `--help` must not wait for Kafka clients

    entries = tuple(entry for entry in SUITE if not entry.is_long)
    files = {entry.name: output / f"{entry.name}.json" for entry in entries}
    _measured(_run(entries, files, runs, None, None, _broker(bootstrap, config, flags)))


def _broker(bootstrap: str | None, config: Path | None, flags: list[str] | None) -> str:
    """The broker of the option, else of the settings; empty for an embedded one."""
    return str(load_settings(config, flags, kafka__bootstrap_servers=bootstrap).settings.kafka.bootstrap_servers)


def _one(
    name: str,
    json_file: Path | None,
    runs: int | None,
    records: int | None,
    peers: str | None,
    bootstrap: str,
    every_s: float = 0.0,
) -> None:
    from app.bench.suite import SUITE  # noqa: PLC0415 - `--help` must not wait for Kafka clients

    entry = next(entry for entry in SUITE if entry.name == name)
    chosen = None if peers is None else tuple(peer.strip() for peer in peers.split(",") if peer.strip())
    files = {name: json_file} if json_file else {}
    _measured(_run((entry,), files, runs, records, chosen, bootstrap, every_s))


def _measured(measuring: Coroutine[Any, Any, None]) -> None:
    """On uvloop: the load of the workflow benchmarks comes out of this process and must cost little."""
    import uvloop  # noqa: PLC0415 - as above

    uvloop.run(_until_told(measuring))


async def _until_told(measuring: Coroutine[Any, Any, None]) -> None:
    """Run it; SIGTERM stops it in order, as Ctrl-C does: sides ended, topics deleted, the broker stopped."""
    task = asyncio.ensure_future(measuring)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        raise typer.Exit(128 + signal.SIGTERM) from None


async def _run(
    entries: "tuple[Entry, ...]",
    files: dict[str, Path],
    runs: int | None,
    records: int | None,
    peers: tuple[str, ...] | None,
    bootstrap: str,
    every_s: float = 0.0,
) -> None:
    """Measure each, show it and write it; a benchmark whose own side failed makes the command fail at the end."""
    from app.bench.child import SideFailed  # noqa: PLC0415 - as above
    from app.bench.result import show, write_json  # noqa: PLC0415 - as above
    from app.bench.side import Effort  # noqa: PLC0415 - as above
    from app.bench.suite import broker_for  # noqa: PLC0415 - as above

    results: list[Result] = []
    with _screen() as (say, progress):
        brokers, broker_settings = entries[0].brokers, entries[0].broker_settings
        async with broker_for(bootstrap, say, brokers, broker_settings) as broker:
            for entry in entries:
                say(f"{entry.name}: {entry.about}")
                effort = Effort(records or entry.records, runs or entry.runs, peers, every_s)
                try:
                    result = await entry.run(broker, effort, say, progress)
                except SideFailed as failure:
                    raise HeadraceError(f"bench {entry.name} has no figure: {failure}") from failure
                if entry.name in files:
                    write_json(result, files[entry.name])
                results.append(result)
    for result in results:
        show(result, console())
    failed = [result.name for result in results if result.ours is None]
    if failed:
        raise HeadraceError(f"No figure of our own: {', '.join(failed)}. The reasons are above.")


@contextmanager
def _screen() -> "Iterator[tuple[Say, Progress]]":
    """Lines and one moving bar on stderr; the bar only on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415 - as above
    from rich.progress import Progress as Bar  # noqa: PLC0415 - as above

    screen = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield lambda text: screen.print(text, markup=False), progress
