"""`headrace up`: Kafka, the fleet, the pipeline and the API in one command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO, cast

import typer

from app.cli.options import ConfigFile, SetFlags, load_settings
from app.cli.roles import ROLES, parse_roles

if TYPE_CHECKING:
    from app.supervisor_run import Plan
    from app.supervisor_screen import Screen
    from config.settings import Settings


def command(
    roles: Annotated[str, typer.Option("--roles", metavar="ROLE[,ROLE…]", help="One process each.")] = ",".join(ROLES),
    config: ConfigFile = None,
    flags: SetFlags = None,
) -> None:
    """Run everything: Kafka, the fleet, the pipeline and the API."""
    import uvloop  # noqa: PLC0415 - `--help` must not wait for Kafka clients

    from app import log  # noqa: PLC0415
    from app.adapters.node_lock import data_folder  # noqa: PLC0415
    from app.supervisor_run import Run  # noqa: PLC0415
    from app.supervisor_screen import AboveLive, Screen  # noqa: PLC0415

    wanted = parse_roles(roles)
    settings = load_settings(config, flags).settings
    screen = Screen()
    log.configure(settings.log, role="supervisor", stream=cast(TextIO, AboveLive(screen)))
    with data_folder(settings.tables.directory, wanted):
        code = uvloop.run(Run(_plan(settings, wanted, screen, config, flags or []), screen).run())
    raise typer.Exit(code)


def _plan(
    settings: "Settings", roles: tuple[str, ...], screen: "Screen", config: Path | None, flags: list[str]
) -> "Plan":
    """An embedded Kafka when none is named; the children get the same file and flags as this command."""
    from app.adapters.embedded import EmbeddedKafka  # noqa: PLC0415
    from app.supervisor_child import worker_command  # noqa: PLC0415
    from app.supervisor_run import Plan  # noqa: PLC0415

    settings, flags = _with_known_port(settings, flags)
    bootstrap = settings.kafka.bootstrap_servers
    broker = None if bootstrap else EmbeddedKafka(settings.embedded, say=screen.progress)
    passed_on = [*(("--config", str(config)) if config else ()), *(word for flag in flags for word in ("--set", flag))]

    async def prepare(found: str) -> None:
        await _prepare_topics(found, settings)

    async def demonstrate(found: str) -> str:
        from app.adapters.clock import SystemClock  # noqa: PLC0415
        from app.demo_workflows import show_workflows  # noqa: PLC0415

        kafka = settings.kafka.model_copy(update={"bootstrap_servers": found})
        return await show_workflows(kafka, SystemClock())

    return Plan(
        settings=settings,
        bootstrap_servers=bootstrap,
        data_folder=str(
            Path(settings.embedded.data_dir if broker else settings.tables.directory).expanduser().absolute()
        ),
        broker=broker,
        prepare=prepare,
        roles=roles,
        command=lambda role: [*worker_command(role), *passed_on],
        demonstrate=demonstrate if settings.supervisor.demo_workflows and "coordinator" in roles else None,
    )


def _with_known_port(settings: "Settings", flags: list[str]) -> tuple["Settings", list[str]]:
    """Port 0 of the API as a free one chosen here: the child that binds it could not tell the block its number."""
    from app.http.server import bind  # noqa: PLC0415

    if settings.http.port:
        return settings, flags
    with bind(settings.http.host, 0, "the HTTP API", "http.port") as listening:
        port: int = listening.getsockname()[1]
    http = settings.http.model_copy(update={"port": port})
    return settings.model_copy(update={"http": http}), [*flags, f"http.port={port}"]


async def _prepare_topics(bootstrap: str, settings: "Settings") -> None:
    """Wait for the broker, create what is missing, and report what is other than declared."""
    import logging  # noqa: PLC0415

    from app.adapters.topics_admin import ensure_topics, wait_for_broker  # noqa: PLC0415
    from config.topics import ALL_TOPICS  # noqa: PLC0415

    await wait_for_broker(bootstrap, settings.kafka.startup_timeout_s, settings.kafka)
    for mismatch in await ensure_topics(bootstrap, ALL_TOPICS, settings.kafka):
        logging.getLogger(__name__).warning(str(mismatch), extra={"action": "topic_mismatch"})
