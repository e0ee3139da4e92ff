"""The reference of the command line as a page, made from the commands themselves: `python -m app.cli.manual`."""

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from app.cli import COMMANDS, Entry

PAGE = Path("docs/cli.md")
MARK = "<!-- From here on written by `python -m app.cli.manual`; change the commands' own help instead. -->"


def reference() -> str:
    """Every command with its arguments and options, in Markdown."""
    return "\n".join(line for entry in COMMANDS for line in _entry(entry))


def page(before: str) -> str:
    """The page with its reference made anew; what stands above the mark is kept."""
    return f"{before.partition(MARK)[0]}{MARK}\n\n{reference()}\n"


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that can be run, by its full name."""
    for entry in COMMANDS:
        yield from _leaves(f"headrace {entry.name}", _loaded(entry))


def _loaded(entry: Entry) -> Any:
    module: Any = importlib.import_module(entry.module)
    program = typer.Typer(rich_markup_mode=None, add_completion=False)
    if hasattr(module, "command"):
        program.command(entry.name)(module.command)
        return get_command(program)
    module.app.info.rich_markup_mode = None
    program.add_typer(module.app, name=entry.name)
    return get_command(program).commands[entry.name]  # type: ignore[attr-defined]


def _leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", None)
    if not below:
        yield name, command
        return
    if command.invoke_without_command:
        yield name, command
    for word, one in below.items():
        yield from _leaves(f"{name} {word}", one)


def _entry(entry: Entry) -> Iterator[str]:
    yield from (f"## headrace {entry.name}", "")
    for name, command in _leaves(f"headrace {entry.name}", _loaded(entry)):
        yield from _command(name, command)


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and "--help" not in each.opts]
    words = " ".join([name, *(_argument(each) for each in arguments), *(["[OPTIONS]"] if options else [])])
    yield from (f"### `{words}`", "")
    if command.help:
        yield from (inspect.cleandoc(command.help).replace("*", "\\*"), "")
    described = [*arguments, *options]
    if described:
        yield from ("| | | default |", "|---|---|---|")
        yield from (f"| {_name(each)} | {_cell(each.help or '')} | {_default(each)} |" for each in described)
        yield ""


def _argument(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name.upper())
    name = name if parameter.required else f"[{name}]"
    return f"{name}…" if parameter.nargs == -1 else name


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_cell(_argument(parameter))}`"
    words = ", ".join((*parameter.opts, *parameter.secondary_opts))
    metavar = "" if parameter.is_flag else f" {parameter.metavar or parameter.bare_type().upper()}"
    return f"`{_cell(words + metavar)}`"


def _default(parameter: Any) -> str:
    """The default where it says something: not of switches, nor of what is simply not given."""
    value = parameter.default
    if value in (None, "", ()) or isinstance(value, bool) or callable(value):
        return ""
    return f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8") if PAGE.exists() else ""), "utf-8")
