"""`headrace doctor`: what this machine lacks, and what to do about it."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.broker import quiet
from app.cli.options import AsJson, ConfigFile, SetFlags, console, load_settings, print_json
from app.errors import ConfigError

if TYPE_CHECKING:
    from app.doctor import Finding

_COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}


def command(
    bootstrap: Annotated[
        str | None, typer.Option("--bootstrap", metavar="HOST:PORT", help="Look at this Kafka.")
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Do not compare clocks, which makes and deletes a topic on the broker.")
    ] = False,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Find out what is missing on this machine.

    Each line is ok, warn (works, but look at it) or fail (will not work) with what to do. Exit code 1 on a fail.
    """
    from app.doctor import examine  # noqa: PLC0415 - `--help` must not wait for Kafka clients
    from config.settings import Settings  # noqa: PLC0415 - as above

    quiet()
    problems: tuple[str, ...] = ()
    try:
        settings = load_settings(config, flags, kafka__bootstrap_servers=bootstrap).settings
    except ConfigError as error:
        settings, problems = Settings(), error.problems
    findings = []
    for finding in examine(settings, problems, probe_clock=not read_only):
        findings.append(finding)
        if not as_json:
            _print(finding)
    failed = sum(1 for each in findings if each.status == "fail")
    warned = sum(1 for each in findings if each.status == "warn")
    if as_json:
        print_json({"ok": not failed, "findings": [each._asdict() for each in findings]})
    elif failed or warned:
        print(f"{failed} to mend, {warned} to look at.")
    else:
        print("All is well.")
    raise typer.Exit(1 if failed else 0)


def _print(finding: "Finding") -> None:
    from rich.text import Text  # noqa: PLC0415 - as above

    line = Text(f"{finding.status:<5}", style=_COLORS[finding.status])
    line.append(f"{finding.subject:<12} {finding.detail}", style="default")
    console().print(line)
    if finding.advice:
        console().print(Text(f"{'':<18}→ {finding.advice}"))
