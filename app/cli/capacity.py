"""`headrace capacity`: memory and CPU for a fleet, by the manual's formulas and by measured coefficients."""

import json
from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import AsJson, console, print_json
from app.domain.capacity import REFERENCE, Coefficients, Load, Need, need
from app.errors import UserError

MEASURED_FILE = Path("bench-results/capacity.json")


def command(
    devices: Annotated[int, typer.Option("--devices", min=0, help="Devices of the fleet.")] = 1000,
    rate: Annotated[float, typer.Option("--rate", min=0, help="Messages a second.")] = 10_000,
    buffered: Annotated[
        int | None, typer.Option("--buffered", min=0, help="Records waiting for the broker; default: one second's.")
    ] = None,
    bench: Annotated[
        Path | None,
        typer.Option(
            "--bench", metavar="FILE", help=f"Result of `headrace bench capacity` [default: {MEASURED_FILE}]."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Plan memory and CPU of the producer for a fleet.

    Coefficients measured on this machine come from `headrace bench capacity --json bench-results/capacity.json`.
    """
    load = Load(devices, rate, round(rate) if buffered is None else buffered)
    by = {"reference": REFERENCE}
    if bench is not None or MEASURED_FILE.exists():
        by["measured"] = read_coefficients(bench or MEASURED_FILE)
    needs = {name: need(load, coefficients) for name, coefficients in by.items()}
    if as_json:
        plans = {name: {**needs[name]._asdict(), "coefficients": by[name]._asdict()} for name in by}
        print_json({"load": load._asdict(), **plans})
        return
    _print(load, by, needs)


def read_coefficients(path: Path) -> Coefficients:
    """The coefficients in a benchmark's result. Raises `UserError` when the file is not one."""
    try:
        ours = json.loads(path.read_text(encoding="utf-8"))["ours"]
        return Coefficients(**{name: float(ours[name]) for name in Coefficients._fields})
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a result of `headrace bench capacity --json FILE`.") from error


def _print(load: Load, by: dict[str, Coefficients], needs: dict[str, Need]) -> None:
    from rich.table import Table  # noqa: PLC0415 - `--json` needs no tables

    out = console()
    out.print(
        f"{load.devices:,} devices, {load.messages_per_s:,.0f} messages/s, {load.buffered_records:,} records buffered"
    )
    table = Table()
    for heading in ("coefficients", "memory", "CPU", "memory limit (80 %)", "CPU limit (70 %)"):
        table.add_column(heading, justify="left" if heading == "coefficients" else "right")
    for name, it in needs.items():
        table.add_row(
            name,
            f"{it.memory_mb:,.0f} MB",
            f"{it.cpu_millicores:,.0f} m",
            f"{it.memory_limit_mb:,.0f} MB",
            f"{it.cpu_limit_millicores:,.0f} m",
        )
    out.print(table)
    for name, c in by.items():
        out.print(
            f"{name}: memory MB = {c.base_memory_mb:g} + {c.memory_mb_per_device:g} × devices"
            f" + {c.memory_mb_per_buffered_record:g} × buffered;"
            f" CPU m = {c.base_cpu_millicores:g} + {c.cpu_millicores_per_1000_messages:g} × messages/s ÷ 1000"
        )
    if "measured" not in by:
        out.print(f"No measured coefficients yet: `headrace bench capacity --json {MEASURED_FILE}` finds them.")
