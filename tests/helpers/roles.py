"""A tiny stand-in for the composition: real processes with a role that does nothing but obey.

`python -m tests.helpers.roles ROLE [MODE]` is a child; `python -m tests.helpers.roles up [MODE]` is a supervisor
of three of them. Ports are free ones; a supervisor writes its addresses in its block.
"""

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import uvloop

from app.domain.watchdog import Progress
from app.errors import EnvironmentError_, UserError
from app.http.health import Check, HealthRegistry
from app.lifecycle import main
from app.metrics import LEDGER, MESSAGES_SENT
from app.supervisor_run import Plan, Run
from app.supervisor_screen import Screen
from config.settings import Settings

HEALTHY = Check(ok=True, detail="joined")


def settings(**sections: dict[str, Any]) -> Settings:
    """Free ports everywhere, and quick back-off."""
    values: dict[str, Any] = {
        "http": {"port": 0},
        "health": {"port": 0, "watchdog_interval_s": 0.05},
        "metrics": {"port": 0},
        # A busy machine lets a child answer late; a test asks for 5 s.
        "supervisor": {"restart_backoff_ms": 20, "status_interval_s": 0.05, "scrape_timeout_ms": 3000},
        "cluster": {"frozen_kill_after_s": 60},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return Settings(**values)


async def obey(_: Settings, roles: frozenset[str], health: HealthRegistry, stop: asyncio.Event) -> None:
    """Generate ten, have seven acknowledged, and the rest when asked to stop."""
    health.add("joined", lambda: HEALTHY)
    if "producer" in roles:
        MESSAGES_SENT.labels("device.telemetry").inc(7)
        LEDGER.labels("generated").inc(10)
        LEDGER.labels("acknowledged").inc(7)
    await stop.wait()
    print(f"{','.join(roles)} stops", flush=True)
    if "producer" in roles:
        LEDGER.labels("acknowledged").inc(3)


async def never_join(_: Settings, roles: frozenset[str], health: HealthRegistry, stop: asyncio.Event) -> None:
    health.add("recovered", lambda: Check(ok=False, detail="no group yet"), probe="startup")
    health.add("joined", lambda: HEALTHY)
    await stop.wait()


async def come_up_for_ever(_: Settings, roles: frozenset[str], health: HealthRegistry, stop: asyncio.Event) -> None:
    """A start that waits for something and does not look at the stop."""
    health.add("recovered", lambda: Check(ok=False, detail="no group yet"), probe="startup")
    health.add("joined", lambda: HEALTHY)
    await asyncio.Event().wait()


async def stall(_: Settings, roles: frozenset[str], health: HealthRegistry, stop: asyncio.Event) -> None:
    health.add("joined", lambda: HEALTHY)
    health.watch("transform", lambda: Progress(lag=5, processed=1))
    await stop.wait()


async def ignore_stop(_: Settings, roles: frozenset[str], health: HealthRegistry, stop: asyncio.Event) -> None:
    health.add("joined", lambda: HEALTHY)
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue


async def crash(_: Settings, roles: frozenset[str], health: HealthRegistry, stop: asyncio.Event) -> None:
    raise RuntimeError("a bug")


async def block_loop(_: Settings, roles: frozenset[str], health: HealthRegistry, stop: asyncio.Event) -> None:
    """Answer once, then never again."""
    health.add("joined", lambda: HEALTHY)
    while not health.startup().ok:  # noqa: ASYNC110 - checks are asked, they do not call
        await asyncio.sleep(0)
    while True:
        time.perf_counter()


async def impatient(settings_: Settings, roles: frozenset[str], health: HealthRegistry, stop: asyncio.Event) -> None:
    """As `obey`, under a supervisor that soon kills who stands still."""
    await obey(settings_, roles, health, stop)


MODES = {
    mode.__name__: mode
    for mode in (obey, never_join, come_up_for_ever, stall, ignore_stop, crash, block_loop, impatient)
}
# Of the supervisor, by the mode of its producer.
HURRIED: dict[str, dict[str, dict[str, Any]]] = {
    "block_loop": {"supervisor": {"unresponsive_after_s": 1.0}},
    "impatient": {"cluster": {"frozen_kill_after_s": 1.0}},
}


def command(role: str, mode: str = "obey") -> list[str]:
    return [sys.executable, "-m", "tests.helpers.roles", role, mode]


async def no_topics(_: str) -> None:
    """There is no broker to create them on."""


def plan(mode: str, chosen: Settings | None = None) -> Plan:
    """Three roles in one mode; only the producer is in a mode that is not `obey`."""

    def of(role: str) -> Sequence[str]:
        return command(role, mode if role == "producer" else "obey")

    return Plan(
        settings=chosen or settings(**HURRIED.get(mode, {})),
        bootstrap_servers="127.0.0.1:1",
        data_folder=os.devnull,
        broker=None,
        prepare=no_topics,
        command=of,
        joins=False,
    )


def _child(role: str, mode: str) -> int:
    if mode == "hopeless":
        raise EnvironmentError_("The disk is full.")
    hurried = {"stall_after_s": 0.3, "exit_after_s": 1.0, "stop_deadline_s": 0.5}
    chosen = settings(health=hurried) if mode in {"stall", "ignore_stop"} else settings()
    return main(chosen, frozenset({role}), MODES[mode])


if __name__ == "__main__":
    try:
        what, *more = sys.argv[1:]
        asked = more[0] if more else "obey"
        sys.exit(uvloop.run(Run(plan(asked), Screen()).run()) if what == "up" else _child(what, asked))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
