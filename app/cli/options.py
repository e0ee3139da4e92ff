"""Options that commands share, and how answers are printed."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

if TYPE_CHECKING:
    from rich.console import Console

    from config.load import Loaded

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="YAML file of settings [or HEADRACE_CONFIG].")
]
SetFlags = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="One setting, before file and environment; repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def load_settings(config: Path | None, flags: list[str] | None = None, **values: Any) -> "Loaded":
    """The settings of a command: its options > --set > environment > secrets folder > file > defaults.

    `values` are the command's own options by setting, `producer__batch_size=…`; None means not given.
    """
    from config.load import load  # noqa: PLC0415 - `--help` of a command must not wait for pydantic

    named = {name.replace("__", "."): value for name, value in values.items()}
    return load(config, flags=tuple(flags or ()), values=named)


def print_json(value: Any) -> None:
    """One JSON document on stdout, for programs: stable keys, nothing else beside it."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode() + "\n")


def console(*, stderr: bool = False) -> "Console":
    """A rich console; it respects NO_COLOR and writes no colour into a file or pipe."""
    from rich.console import Console  # noqa: PLC0415 - 60 ms that commands without tables save

    return Console(stderr=stderr, highlight=False, soft_wrap=True)
