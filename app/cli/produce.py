"""`headrace produce`: the device fleet alone, or recorded files replayed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.broker import Bootstrap, load_with_broker
from app.cli.options import ConfigFile, SetFlags
from app.errors import UserError

if TYPE_CHECKING:
    from app.adapters.csv_replay import Recording


def command(
    more_files: Annotated[list[Path] | None, typer.Argument(metavar="FILE", help="Further files to replay.")] = None,
    replay: Annotated[
        list[Path] | None, typer.Option("--replay", metavar="FILE…", help="Replay recorded CSV files, merged by time.")
    ] = None,
    mapping: Annotated[
        str | None, typer.Option("--mapping", metavar="NAME|PATH", help="What the columns of the files mean.")
    ] = None,
    speed: Annotated[
        float | None, typer.Option("--speed", metavar="X", min=0, help="1 as recorded, 10 ten times, 0 at once.")
    ] = None,
    times: Annotated[
        str | None, typer.Option("--times", metavar="now|keep", help="Shift recorded times to now, or keep them.")
    ] = None,
    devices: Annotated[
        int | None, typer.Option("--devices", metavar="N", min=0, help="Devices of the fleet (device.count).")
    ] = None,
    interval_ms: Annotated[
        int | None, typer.Option("--interval-ms", metavar="M", help="Between samples (device.sample_interval_ms).")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", metavar="S", min=0.1, help="Stop after this time; else at Ctrl-C.")
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option("--metrics-port", metavar="PORT", min=0, help="Serve /metrics; else no port is opened."),
    ] = None,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ledger as JSON at the end.")] = False,
) -> None:
    """Run the device fleet, or replay recorded files.

    Ctrl-C stops in order: devices say their last word, everything is acknowledged, the ledger is printed.
    Exit code 1 when the ledger does not balance or records were dropped against your will.
    """
    files = [*(replay or ()), *(more_files or ())]
    _consistent(files, replay, mapping=mapping, speed=speed, times=times, devices=devices, interval_ms=interval_ms)
    loaded = load_with_broker(
        config,
        flags,
        bootstrap,
        device__count=devices,
        device__sample_interval_ms=interval_ms,
        replay__speed=speed,
        replay__times=times,
    )
    recording = _open(files, mapping) if files else None
    import uvloop  # noqa: PLC0415 - `--help` must not wait for Kafka clients

    from app.cli.produce_run import Job, run  # noqa: PLC0415 - as above

    raise typer.Exit(uvloop.run(run(Job(loaded, recording, seconds, metrics_port, as_json))))


def _consistent(files: list[Path], replay: list[Path] | None, **given: object) -> None:
    """Options of the fleet and of a replay do not mix. Raises `UserError`."""
    if files and not replay:
        raise UserError(f"{files[0]}: put --replay before the files to replay them.")
    of_fleet, of_replay = ("devices", "interval_ms"), ("mapping", "speed", "times")
    wrong = [name for name in (of_fleet if files else of_replay) if given[name] is not None]
    if wrong:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise UserError(f"{named}: {'not with' if files else 'only with'} --replay FILE.")


def _open(files: list[Path], mapping: str | None) -> "Recording":
    from app.adapters.csv_replay import open_recording  # noqa: PLC0415 - as above
    from config.mapping import load_mapping, shipped  # noqa: PLC0415 - as above

    if mapping is None:
        raise UserError(
            "--replay needs --mapping, which says what the columns mean: a YAML file, "
            f"or one that comes with the program ({', '.join(shipped())})."
        )
    return open_recording(files, load_mapping(mapping))
