"""`headrace cluster`: several nodes on this machine, and what a cluster says of its nodes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from app.cli.api import Api, Url
from app.cli.options import AsJson, ConfigFile, SetFlags, load_settings, print_json
from app.cli.roles import parse_roles
from app.cli.tables import show_table

if TYPE_CHECKING:
    import asyncio

    from app.cluster_run import LocalCluster, LocalNode
    from app.supervisor_screen import Screen

app = typer.Typer()

LOOK_S: Final = 1.0
_SHOWN: Final = 12


@app.callback(invoke_without_command=True)
def cluster(
    context: typer.Context,
    nodes: Annotated[int, typer.Option("--nodes", metavar="N", min=1, max=20, help="How many.")] = 3,
    brokers: Annotated[int, typer.Option("--brokers", metavar="1|3", help="Of three, one may be lost.")] = 1,
    roles: Annotated[
        list[str] | None,
        typer.Option(
            "--roles",
            metavar="ROLE[,ROLE…]",
            help="Roles of the nodes in turn, the last for all that follow; repeatable. Without it they are mixed.",
        ),
    ] = None,
    data_dir: Annotated[
        Path, typer.Option("--data-dir", metavar="FOLDER", help="Where each node and Kafka have a folder.")
    ] = Path(".headrace/cluster"),
    config: ConfigFile = None,
    flags: SetFlags = None,
) -> None:
    """Run a cluster on this machine: one Kafka and N nodes, each with its own folder and ports, until Ctrl-C."""
    if context.invoked_subcommand is not None:
        return
    import uvloop  # noqa: PLC0415 - `--help` must not wait for Kafka clients

    from app import log  # noqa: PLC0415
    from app.cluster_run import MIXED_ROLES, LocalCluster  # noqa: PLC0415
    from app.supervisor_screen import Screen  # noqa: PLC0415

    settings = load_settings(config, flags).settings
    screen = Screen()
    log.configure(settings.log, role="cluster")
    made = LocalCluster(
        folder=data_dir,
        nodes=nodes,
        brokers=brokers,
        roles=tuple(map(parse_roles, roles)) if roles else MIXED_ROLES,
        settings=dict(flag.split("=", 1) for flag in flags or ()),
        config=config,
        bootstrap=settings.kafka.bootstrap_servers,
        embedded=settings.embedded.model_copy(update={"port": 0}),
        api_port=settings.http.port,
        demonstrate=settings.supervisor.demo_workflows,
        say=screen.progress,
    )
    raise typer.Exit(uvloop.run(_run(made, screen)))


async def _run(cluster: "LocalCluster", screen: "Screen") -> int:
    """(1) start (2) show until the stop, or until no node is left (3) stop in order. The exit code."""
    import asyncio  # noqa: PLC0415 - `--help` must not wait for it

    from app.lifecycle import exit_now, on_stop_signals  # noqa: PLC0415

    stop = asyncio.Event()
    # What is tied to this process ends with it.
    on_stop_signals(stop, lambda: exit_now(130))
    starting = asyncio.create_task(cluster.start(), name="start")  # 1
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            return 0
        starting.result()
        screen.close()
        screen.line(block(cluster))
        return await _show(cluster, screen, stop)  # 2
    finally:
        stopping.cancel()
        screen.progress("Stopping …")
        orderly = await cluster.stop()  # 3
        screen.close()
        screen.line("Everything has stopped in order." if orderly else "Some of it had to be killed.")


async def _show(cluster: "LocalCluster", screen: "Screen", stop: "asyncio.Event") -> int:
    import asyncio  # noqa: PLC0415 - as above
    import contextlib  # noqa: PLC0415

    ended: set[str] = set()
    while not stop.is_set():
        for node in cluster.nodes:
            if node.pid is None and node.name not in ended:
                ended.add(node.name)
                screen.line(f"{node.name} has ended ({_ending(node)}); its log is {node.log_file}.")
        if len(ended) == len(cluster.nodes):
            screen.line("No node is left.")
            return 1
        screen.progress(f"{len(cluster.nodes) - len(ended)} of {len(cluster.nodes)} nodes run")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), LOOK_S)
    return 0


def _ending(node: "LocalNode") -> str:
    import signal  # noqa: PLC0415 - as above

    code = node.exit_code
    return f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"


def block(cluster: "LocalCluster") -> str:
    """Who is what and where it answers."""
    import sys  # noqa: PLC0415 - as above

    from app.supervisor_run import typed  # noqa: PLC0415

    program = typed(sys.argv[0])
    lines = ["", f"  A cluster of {len(cluster.nodes)} nodes is up.", ""]
    for node in cluster.nodes:
        lines.append(f"    {node.name:<8} {', '.join(node.roles)}; process {node.pid}")
        if node.api_url:
            lines.append(f"    {'':<8} API     {node.api_url}/docs")
        lines.append(f"    {'':<8} Health  {node.health_url}/health")
    kafka = "not ours" if cluster.kafka is None else f"embedded, {len(cluster.kafka.pids)} of its brokers run"
    lines += ["", f"    Kafka    {cluster.bootstrap} ({kafka})", f"    Data     {cluster.folder}, with a log a node"]
    api = next((node.api_url for node in cluster.nodes if node.api_url), None)
    if api is not None:
        lines += ["", "  Try next, in another terminal:", "", f"    {program} cluster stats --url {api}"]
        lines += [f"    kill -9 {cluster.nodes[-1].pid}  # and look again"] if len(cluster.nodes) > 1 else []
    return "\n".join([*lines, "", "  Ctrl-C stops everything in order.", ""])


@app.command()
def stats(url: Url = None, config: ConfigFile = None, flags: SetFlags = None, as_json: AsJson = False) -> None:
    """Show the nodes of a cluster, who leads, and how its partitions are spread."""
    found = Api(url, config, flags).get("cluster", "stats")
    if as_json:
        print_json(found)
        return
    leads = f"{found['leader']} leads" if found["leader"] else "nobody leads"
    missing = f"{found['ownerless']} partitions without owner" if found["ownerless"] else "every partition has an owner"
    print(f"{found['members']} nodes, {found['status']}, {leads}, {missing}.")
    headings = ("node", "state", "version", "roles", ">partitions", ">standbys", ">lag", "clock", "heard", "API")
    show_table(headings, map(_node_cells, found["nodes"]))
    if found["groups"]:
        show_table(("group", ">partitions", ">owned", "without owner", ">lag"), map(_group_cells, found["groups"]))


def _node_cells(node: dict[str, Any]) -> tuple[str, ...]:
    ahead_ms = node["clock_ahead_ms"]
    return (
        node["node_id"],
        node["state"] + (", leads" if node["leads"] else ""),
        node["version"],
        ", ".join(node["roles"]),
        str(node["partitions"]),
        str(node["standbys"]),
        "?" if node["lag_records"] is None else str(node["lag_records"]),
        "?" if ahead_ms is None else f"{ahead_ms / 1000:+.1f} s",
        f"{node['heard_ms_ago'] / 1000:.1f} s ago",
        node["api"],
    )


def _group_cells(group: dict[str, Any]) -> tuple[str, ...]:
    lost = group["ownerless"]
    named = ", ".join(lost[:_SHOWN]) + (f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else "")
    return (
        group["group"],
        "?" if group["partitions"] is None else str(group["partitions"]),
        str(group["owned"]),
        named,
        "?" if group["lag_records"] is None else str(group["lag_records"]),
    )
