"""What the dead letters of telemetry and of workflows share on the command line."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from app.errors import UserError

if TYPE_CHECKING:
    from app.adapters.dead_letters import Place
    from config.settings import Settings

OfReason = Annotated[str | None, typer.Option("--reason", metavar="REASON", help="Only this reason.")]
Places = Annotated[list[str] | None, typer.Argument(metavar="PARTITION:OFFSET", help="These; or select by options.")]
Everything = Annotated[bool, typer.Option("--all", help="All of them.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell what would be sent.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DETAIL_CHARS: Final = 100
INTERRUPTED: Final = 130


class Sending(NamedTuple):
    """What a redrive works with; `stop` is set by a signal."""

    producer: Any
    clock: Any
    stop: asyncio.Event


@asynccontextmanager
async def sending(settings: "Settings") -> AsyncIterator[Sending]:
    """A producer for as long as it lasts; the first signal asks to stop, the second ends the process."""
    from app.adapters.clock import SystemClock  # noqa: PLC0415 - `--help` needs no Kafka client
    from app.http.health import HealthRegistry  # noqa: PLC0415 - as above
    from app.lifecycle import exit_now, on_stop_signals  # noqa: PLC0415 - as above
    from app.roles.context import Context  # noqa: PLC0415 - as above

    stop, clock = asyncio.Event(), SystemClock()
    on_stop_signals(stop, lambda: exit_now(INTERRUPTED))
    context = Context(settings, lambda: settings, HealthRegistry(frozenset(), ""), stop, clock)
    async with context.producer("redrive") as producer:
        yield Sending(producer, clock, stop)


def check_redrive(selected: bool, options: str, *, yes: bool, dry_run: bool) -> None:
    """Raises `UserError` when nothing was selected, or when nobody is there to be asked."""
    if not selected:
        raise UserError(f"Say which: PARTITION:OFFSET…, {options}, --since or --all.")
    if not (yes or dry_run or sys.stdin.isatty()):
        raise UserError("There is nobody to ask here: pass --yes to redrive, or --dry-run to see what would be sent.")


def place_of(text: str) -> "Place":
    """The place that `PARTITION:OFFSET` names. Raises `UserError`."""
    from app.adapters.dead_letters import Place  # noqa: PLC0415 - `--help` needs no Kafka client

    partition, _, offset = text.partition(":")
    if not (partition.isdigit() and offset.isdigit()):
        raise UserError(f"{text}: a place is PARTITION:OFFSET, as in 0:42; `headrace dlq list` tells them.")
    return Place(int(partition), int(offset))


def plain(text: str) -> str:
    """Whoever wrote a record may have sent any text; a terminal must not obey it."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
