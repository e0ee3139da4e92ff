"""`headrace worker`: some roles in this process, until a signal stops it."""

import asyncio
import contextlib
import importlib
import os
from typing import Annotated, Any

import typer

from app.cli.options import ConfigFile, SetFlags, load_settings
from app.cli.roles import parse_roles
from app.errors import UserError


def command(
    roles: Annotated[
        str, typer.Option("--roles", metavar="ROLE[,ROLE…]", help="producer, worker, coordinator, api-gateway.")
    ],
    config: ConfigFile = None,
    flags: SetFlags = None,
) -> None:
    """Run some roles in this process."""
    wanted = parse_roles(roles)
    loaded = load_settings(config, flags)
    settings = loaded.settings
    if not settings.kafka.bootstrap_servers:
        raise UserError(
            "No Kafka is named: set kafka.bootstrap_servers (or KAFKA_BOOTSTRAP_SERVERS), or run `headrace up`."
        )
    from app import lifecycle, log  # noqa: PLC0415 - `--help` must not wait for web servers
    from app.adapters.beats import Seats  # noqa: PLC0415
    from app.adapters.node_lock import data_folder  # noqa: PLC0415
    from config.live import LiveSettings  # noqa: PLC0415

    role = ",".join(wanted)
    log.configure(settings.log, role=role)
    live, seats = LiveSettings(loaded), Seats()
    live.subscribe(lambda _old, new: log.configure(new.log, role=role))

    async def run_roles(*given: Any) -> None:
        # Kafka clients and tables take seconds to load on a busy machine; health answers meanwhile.
        wiring = await asyncio.to_thread(importlib.import_module, "app.wiring")
        await wiring.run_roles(*given, live=live, seats=seats)

    # The supervisor of a child holds the folder for it.
    is_child = lifecycle.Parent.from_environ(os.environ).pid is not None  # noqa: TID251 - a fact of the start
    with contextlib.nullcontext() if is_child else data_folder(settings.tables.directory, wanted):
        code = lifecycle.main(settings, frozenset(wanted), run_roles, lambda: live.current, seats)
    raise typer.Exit(code)
