"""`headrace topics`: create the declared topics, compare them with the broker's, list them."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.broker import Bootstrap, ask_kafka
from app.cli.options import AsJson, ConfigFile, SetFlags, print_json
from app.cli.tables import show_table

if TYPE_CHECKING:
    from app.adapters.topics_admin import Mismatch, TopicState
    from config.settings import Settings

app = typer.Typer()


@app.command()
def declare(
    bootstrap: Bootstrap = None, config: ConfigFile = None, flags: SetFlags = None, as_json: AsJson = False
) -> None:
    """Create the topics that are missing; change none that exists.

    Exit code 1 when one that exists is not as declared.
    """

    async def work(settings: "Settings") -> "tuple[list[str], list[Mismatch]]":
        from app.adapters.topics_admin import describe_topics, ensure_topics  # noqa: PLC0415 - `--help` is quick
        from config.topics import ALL_TOPICS  # noqa: PLC0415

        server = settings.kafka.bootstrap_servers
        before = {state.name for state in await describe_topics(server, None, settings.kafka)}
        differences = await ensure_topics(server, ALL_TOPICS, settings.kafka)
        return [spec.name for spec in ALL_TOPICS if spec.name not in before], differences

    created, differences = ask_kafka(config, flags, bootstrap, work)
    if as_json:
        print_json({"created": created, "differences": _plain(differences)})
    else:
        print(f"Created: {', '.join(created)}" if created else "Every topic was there already.")
        _print_differences(differences, [])
    raise typer.Exit(1 if differences else 0)


@app.command()
def check(
    bootstrap: Bootstrap = None, config: ConfigFile = None, flags: SetFlags = None, as_json: AsJson = False
) -> None:
    """Compare the broker's topics with the declared ones.

    Exit code 1 when a topic is missing or not as declared.
    """

    async def work(settings: "Settings") -> "tuple[list[str], list[Mismatch]]":
        from app.adapters.topics_admin import compare, describe_topics  # noqa: PLC0415 - as above
        from config.topics import ALL_TOPICS  # noqa: PLC0415

        names = [spec.name for spec in ALL_TOPICS]
        states = await describe_topics(settings.kafka.bootstrap_servers, names, settings.kafka)
        found = {state.name: state for state in states}
        missing = [name for name in names if name not in found]
        known = [spec for spec in ALL_TOPICS if spec.name in found]
        return missing, [each for spec in known for each in compare(spec, found[spec.name], settings.kafka)]

    missing, differences = ask_kafka(config, flags, bootstrap, work)
    if as_json:
        print_json({"missing": missing, "differences": _plain(differences)})
    elif missing or differences:
        _print_differences(differences, missing)
    else:
        print("Every topic is as declared.")
    raise typer.Exit(1 if missing or differences else 0)


@app.command("list")
def list_topics(
    everything: Annotated[bool, typer.Option("--all", help="Also topics that Headrace does not declare.")] = False,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """List the declared topics with what the broker has of them."""

    async def work(settings: "Settings") -> "list[TopicState]":
        from app.adapters.topics_admin import describe_topics  # noqa: PLC0415 - as above

        return await describe_topics(settings.kafka.bootstrap_servers, None, settings.kafka)

    rows = _rows({state.name: state for state in ask_kafka(config, flags, bootstrap, work)}, everything=everything)
    if as_json:
        print_json(rows)
        return
    _print_rows(rows)


def _plain(differences: "list[Mismatch]") -> list[dict[str, str]]:
    return [
        {"topic": each.topic, "setting": each.setting, "declared": each.expected, "actual": each.actual}
        for each in differences
    ]


def _print_differences(differences: "list[Mismatch]", missing: list[str]) -> None:
    for name in missing:
        print(f"topic {name}: missing; `headrace topics declare` creates it")
    for each in differences:
        print(each)
    if differences:
        print("Topics that exist are never changed here: change them with the broker's own tools, or the settings.")


def _rows(found: "dict[str, TopicState]", *, everything: bool) -> list[dict[str, Any]]:
    from config.topics import ALL_TOPICS  # noqa: PLC0415 - as above

    declared = {spec.name: spec for spec in ALL_TOPICS}
    others = sorted(found.keys() - declared.keys()) if everything else []
    rows = []
    for name in [*declared, *others]:
        spec, state = declared.get(name), found.get(name)
        configs = state.configs if state else {}
        rows.append(
            {
                "topic": name,
                "key": spec.key if spec else None,
                "schema": spec.schema if spec else None,
                "exists": state is not None,
                "partitions": state.partitions if state else None,
                "replication_factor": state.replication_factor if state else None,
                "leaderless_partitions": state.leaderless if state else None,
                "cleanup": configs.get("cleanup.policy"),
                "retention_ms": int(configs["retention.ms"]) if "retention.ms" in configs else None,
            }
        )
    return rows


def _print_rows(rows: list[dict[str, Any]]) -> None:
    headings = ("topic", "key", "schema", ">partitions", ">replicas", "cleanup", "retention")
    show_table(headings, map(_cells, rows))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    named = (row["topic"], row["key"] or "", row["schema"] or "")
    if not row["exists"]:
        return (*named, "missing", "", "", "")
    leaderless = f" ({row['leaderless_partitions']} without leader)" if row["leaderless_partitions"] else ""
    return (
        *named,
        f"{row['partitions']}{leaderless}",
        str(row["replication_factor"]),
        row["cleanup"] or "",
        _retention(row["cleanup"], row["retention_ms"]),
    )


def _retention(cleanup: str | None, retention_ms: int | None) -> str:
    if retention_ms is None or retention_ms < 0 or "delete" not in (cleanup or ""):
        return "for ever"
    hours = retention_ms / 3_600_000
    return f"{hours / 24:g} days" if hours >= 24 else f"{hours:g} h"
