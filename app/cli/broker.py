"""What commands that talk to Kafka share: which broker, how long to wait for it, and a quiet log."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from app.cli.options import load_settings
from app.errors import UserError

if TYPE_CHECKING:
    from config.load import Loaded
    from config.settings import Settings

T = TypeVar("T")

Bootstrap = Annotated[
    str | None,
    typer.Option(
        "--bootstrap",
        metavar="HOST:PORT",
        help="The Kafka to use; without it the one of the settings, else the one that `headrace up` starts.",
    ),
]
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="WHEN", help="15m, 2h, 7d ago, or a time such as 2026-01-31T08:00Z."),
]

# A command at a prompt does not wait for a broker to be started; a moment's restart it does.
PATIENCE_S = 5.0
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def load_with_broker(config: Path | None, flags: list[str] | None, bootstrap: str | None, **values: Any) -> "Loaded":
    """The settings with a broker in them. Raises `UserError` when none is known."""
    loaded = load_settings(config, flags, kafka__bootstrap_servers=bootstrap, **values)
    if loaded.settings.kafka.bootstrap_servers:
        return loaded
    port = loaded.settings.embedded.port
    if not port:
        raise UserError(
            "No Kafka is named, and the embedded one takes any free port: pass --bootstrap HOST:PORT or set "
            "kafka.bootstrap_servers (KAFKA_BOOTSTRAP_SERVERS)."
        )
    return load_settings(config, flags, kafka__bootstrap_servers=f"127.0.0.1:{port}", **values)


def ask_kafka(
    config: Path | None,
    flags: list[str] | None,
    bootstrap: str | None,
    question: "Callable[[Settings], Coroutine[Any, Any, T]]",
) -> T:
    """Ask a broker that answers. Raises `BrokerUnavailable` when none does within `PATIENCE_S`."""
    settings = load_with_broker(config, flags, bootstrap).settings
    quiet()

    async def ask() -> T:
        from app.adapters.topics_admin import wait_for_broker  # noqa: PLC0415 - `--help` needs no Kafka client

        patience_s = min(PATIENCE_S, settings.kafka.startup_timeout_s)
        await wait_for_broker(settings.kafka.bootstrap_servers, patience_s, settings.kafka)
        return await question(settings)

    return asyncio.run(ask())


def quiet() -> None:
    """Keep the clients' own chatter off the terminal: what matters of it arrives as an error of ours."""
    logging.getLogger().addHandler(logging.NullHandler())


def instant_ms(text: str, now_ms: int, option: str = "--since") -> int:
    """Milliseconds UTC of `15m` (ago), an ISO time (UTC unless it names a zone) or milliseconds. Raises `UserError`."""
    text = text.strip()
    if text[:-1].isdigit() and text[-1:] in _UNITS_S:
        return now_ms - int(text[:-1]) * _UNITS_S[text[-1]] * 1000
    if text.isdigit():
        return int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise UserError(
            f"{option} {text}: not a time; write 15m, 2h or 7d for so long ago, or a time such as 2026-01-31T08:00Z."
        ) from error
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def since_ms(text: str | None, option: str = "--since") -> int | None:
    """The instant that an option names, None when it is not given; judged before anything is connected."""
    if text is None:
        return None
    from app.adapters.clock import SystemClock  # noqa: PLC0415 - wanted only with the option

    return instant_ms(text, SystemClock().now_ms(), option)


def as_time(at_ms: int | None) -> str:
    """A time of an event as people and programs read it, UTC."""
    if at_ms is None:
        return "–"
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")
