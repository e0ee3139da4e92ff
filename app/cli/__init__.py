"""The command line: the written list of commands, loaded one at a time, and what its errors look like."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import typer
from typer.main import get_command

from app.errors import ConfigError, HeadraceError, UserError


class Entry(NamedTuple):
    """One command: the module has `app` (a `typer.Typer` with sub-commands) or `command` (a function)."""

    name: str
    module: str
    help: str


# A command is added by its module and one line here.
COMMANDS: tuple[Entry, ...] = (
    Entry("up", "app.cli.up", "Run everything: Kafka, the fleet, the pipeline and the API."),
    Entry("cluster", "app.cli.cluster", "Run several nodes on this machine, or show the nodes of a cluster."),
    Entry("worker", "app.cli.worker", "Run some roles in this process."),
    Entry("produce", "app.cli.produce", "Run the device fleet, or replay recorded files."),
    Entry("schedules", "app.cli.schedules", "List, put, pause, resume, run and delete schedules."),
    Entry("backfill", "app.cli.backfill", "Run a workflow for every due time of a range."),
    Entry("devices", "app.cli.devices", "List devices, show one, inject a fault."),
    Entry("workflows", "app.cli.workflows", "Check, register and read definitions of workflows."),
    Entry("trigger", "app.cli.trigger", "Start an execution of a workflow."),
    Entry("executions", "app.cli.executions", "Search executions, show and watch them, cancel, retry, signal."),
    Entry("topics", "app.cli.topics", "Create the topics and compare them with the broker's."),
    Entry("config", "app.cli.config_cmd", "Show and check the settings, with the origin of each value."),
    Entry("dlq", "app.cli.dlq", "List dead letters, of telemetry and of workflows, and send them again."),
    Entry("check", "app.cli.check", "Hold the rollups against the telemetry they are made from."),
    Entry("score", "app.cli.score", "Tell how well the rules find what truly happened."),
    Entry("capacity", "app.cli.capacity", "Plan memory and CPU for a fleet."),
    Entry("bench", "app.cli.bench_cmd", "Measure this machine, beside other clients."),
    Entry("doctor", "app.cli.doctor", "Find out what is missing on this machine."),
)

EXIT_CODES = (
    "Exit codes: 0 done; 1 failed; 2 wrong use or settings; 3 this machine lacks something;"
    " 4 the broker or another server does not answer; 130 interrupted."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and end the process with its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    try:
        _check_text(arguments)
        get_command(_program(wanted)).main(args=list(arguments), prog_name="headrace")
    except HeadraceError as error:
        print(explain(error), file=sys.stderr)
        sys.exit(error.exit_code)
    finally:
        _flush()


def _flush() -> None:
    """Write what is still to be written, here: at the interpreter's end what cannot be would be a traceback."""
    if sys.stdout is None:  # closed by whoever started this: `headrace topics check >&-`
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer is tried once more at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # `headrace executions list | head`
            return
        print(f"headrace: what was to be printed could not be written: {error.strerror}", file=sys.stderr)
        pending = error.__context__  # a bug on its way out keeps its traceback, and an exit code that says more its own
        if not isinstance(pending, Exception) and not (isinstance(pending, SystemExit) and pending.code):
            sys.exit(1)


def _check_text(arguments: Sequence[str]) -> None:
    """Raises `UserError` for bytes that are no text: nothing that is sent or printed could hold them."""
    for place, word in enumerate(arguments, 1):
        if any("\ud800" <= each <= "\udfff" for each in word):
            raise UserError(f"Argument {place} is not UTF-8 text: {word.encode(errors='backslashreplace').decode()}")


def explain(error: HeadraceError) -> str:
    """What a person reads of an error; one line, but for settings with several problems."""
    if isinstance(error, ConfigError) and len(error.problems) > 1:
        return "\n".join([f"headrace: the settings have {len(error.problems)} problems:", *error.problems])
    return f"headrace: {error}"


def _program(wanted: str | None) -> typer.Typer:
    """The program with the wanted command loaded and the others by name and help only.

    Loading all of them would make `headrace --help` wait for Kafka clients and web servers.
    """
    program = typer.Typer(
        name="headrace",
        help="Industrial telemetry into action over Apache Kafka.",
        epilog=EXIT_CODES,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    program.callback(invoke_without_command=True)(_root)
    for entry in COMMANDS:
        if entry.name == wanted:
            _attach(program, entry)
        else:
            program.command(entry.name, help=entry.help)(_listed)
    return program


def _attach(program: typer.Typer, entry: Entry) -> None:
    module: Any = importlib.import_module(entry.module)
    if hasattr(module, "command"):
        program.command(entry.name)(module.command)  # its docstring is its help
        return
    module.app.info.rich_markup_mode = None
    alone = module.app.registered_callback
    runs_alone = alone is not None and alone.invoke_without_command is True
    program.add_typer(module.app, name=entry.name, help=entry.help, no_args_is_help=not runs_alone)


def _listed() -> None:
    """Stand for a command in the list of all; never runs, as the command that runs is loaded."""


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed  # noqa: PLC0415 - 20 ms that only this needs

        print(f"headrace {installed('headrace')}")
    elif context.invoked_subcommand is None:
        print(context.get_help())
